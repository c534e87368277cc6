"""The report: one html file that shows a project."""
