"""PerSyn: route every prompt to the teacher whose answer this student learns most from, then generate."""

__version__ = "0.1.0"
