"""Project: where a run keeps its parameters, tables and metrics, and how to read them. Only this room knows paths."""

from pathlib import Path

REPORT = Path("metrics/reports/report.html")
"""The default output of `persyn report`."""
