"""Rewards: raw quality and learnability -> one reward a response, comparable within its prompt."""

from collections.abc import Sequence
from typing import Literal

import polars as pl

from persyn.schemas import REWARDS, InputError


def build_rewards(
    quality: pl.DataFrame,
    learnability: pl.DataFrame,
    teachers: Sequence[str],
    *,
    alpha: float,
    normalization: Literal["min_max", "z_score", "none"] = "min_max",
) -> pl.DataFrame:
    """r = (1 - alpha) * r_q + alpha * r_l (PerSyn, Eq. 2), both normalised over the teachers of a prompt.

    Args:
        quality: QUALITY of every teacher.
        learnability: LEARNABILITY of every teacher.
        teachers: who must have answered every prompt.
        alpha: weight of learnability, 0 to 1.
        normalization: min_max to [0, 1]; z_score; none. Scores that are all equal normalise to 0.

    Returns:
        REWARDS.

    Raises:
        InputError: alpha or normalization is not legal, or a prompt lacks a teacher's score.
    """
    if not 0 <= alpha <= 1:
        raise InputError(f"rewards.alpha is {alpha}; it must be from 0 (quality alone) to 1 (learnability alone)")
    if normalization not in ("min_max", "z_score", "none"):
        raise InputError(f"rewards.normalization is {normalization!r}; it must be min_max, z_score or none")
    keys = ["prompt_id", "teacher"]
    scores = quality.join(learnability, on=keys, how="full", coalesce=True, validate="1:1").sort(keys)
    _check_complete(scores, teachers)
    mixed = (1 - alpha) * _normalised("quality", normalization) + alpha * _normalised("learnability", normalization)
    return scores.with_columns(reward=mixed).select(REWARDS.names())


def _normalised(column: str, normalization: str) -> pl.Expr:
    value = pl.col(column)
    if normalization == "none":
        return value
    shift, scale = {
        "min_max": (value.min(), value.max() - value.min()),
        "z_score": (value.mean(), value.std(ddof=0)),
    }[normalization]
    spread = value.max().over("prompt_id") > value.min().over("prompt_id")
    return pl.when(spread).then((value - shift.over("prompt_id")) / scale.over("prompt_id")).otherwise(0.0)


def _check_complete(scores: pl.DataFrame, teachers: Sequence[str]) -> None:
    wanted = scores.select("prompt_id").unique().join(pl.DataFrame({"teacher": list(teachers)}), how="cross")
    missing = wanted.join(scores.drop_nulls(["quality", "learnability"]), on=["prompt_id", "teacher"], how="anti")
    broken = scores.filter(~pl.col("quality").is_finite() | ~pl.col("learnability").is_finite())
    for rows, what in ((missing, "have no score"), (broken, "have a score that is not finite")):
        if rows.height:
            named = rows.select("prompt_id", "teacher").sort("prompt_id", "teacher").rows()[:5]
            raise InputError(f"{rows.height} responses {what}, first {named}; run their quality and learnability again")
    unknown = set(scores["teacher"]) - set(teachers)
    if unknown:
        raise InputError(f"scores of {', '.join(sorted(unknown))}, which is not among {', '.join(teachers)}")
