"""Inspection: looking into a run: one prompt, two revisions, signs of failure."""
