"""Project: where a run keeps its parameters, tables and metrics, and how to read them."""
