"""PerSyn: route every prompt to the teacher whose response this student learns most from, then generate."""

__version__ = "0.1.0"
