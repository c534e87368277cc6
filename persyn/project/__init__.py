"""Project: where a run keeps its parameters, tables and metrics, and how to read them. No other room knows a path."""

from pathlib import Path

REPORT = Path("metrics/reports/report.html")
"""Where `persyn report` writes, unless told otherwise."""
