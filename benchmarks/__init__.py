"""Benchmarks: each is one command, `python -m benchmarks.<name>`, and prints one table."""
