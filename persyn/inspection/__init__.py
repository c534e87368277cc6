"""Inspection of a run: one prompt, the difference of two revisions, signs of failure."""
