"""Ties: when two rewards or scores on a prompt are equal but for rounding."""

import polars as pl

TIE = 1e-9
"""Share of their scale by which equal numbers may differ."""


def tie_width(column: str) -> pl.Expr:
    """Two values of `column` on a prompt that differ by this much or less are equal: TIE times the largest absolute
    value there, or times 1 if that is larger."""
    return TIE * pl.max_horizontal(pl.col(column).abs().max().over("prompt_id"), 1.0)
