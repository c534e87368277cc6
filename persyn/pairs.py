"""Pairs: rewards -> which teacher beats which on a prompt."""

from typing import Annotated

import polars as pl
from pydantic import Field

from persyn.errors import InputError
from persyn.schemas import PAIRS
from persyn.settings import Settings
from persyn.ties import tie_width


class PairSettings(Settings):
    """The section `pairs`."""

    min_margin: Annotated[float, Field(ge=0)] = 0.0
    """Two rewards that differ by this much or less make no pair. Rounding (1e-9 of their scale) does not count."""


def build_pairs(rewards: pl.DataFrame, settings: PairSettings) -> pl.DataFrame:
    """Expand each prompt's ranking of its teachers into all pairs (winner, loser).

    A gap of settings.min_margin or less makes no pair, so rewards that are equal, or differ only by rounding, never do.
    n teachers without ties give n(n-1)/2 pairs a prompt.

    Returns:
        PAIRS; margin is the difference of the two rewards.

    Raises:
        InputError: no pair is left.
    """
    min_margin = settings.min_margin
    side = rewards.select("prompt_id", "teacher", "reward", width=tie_width("reward"))
    pairs = (
        side.join(side, on="prompt_id", suffix="_loser", validate="m:m")
        .with_columns(margin=pl.col("reward") - pl.col("reward_loser"))
        .filter(pl.col("margin") > min_margin + pl.col("width"))
        .select("prompt_id", winner="teacher", loser="teacher_loser", margin="margin")
        .sort("prompt_id", "winner", "loser")
    )
    if pairs.is_empty():
        raise InputError(
            f"no pair has a margin above {min_margin} among {rewards['prompt_id'].n_unique()} prompts; lower "
            f"pairs.min_margin, or look at data/rewards.parquet: all teachers may be scored alike"
        )
    return pairs.select(PAIRS.names())
