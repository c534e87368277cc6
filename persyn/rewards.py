"""Rewards: raw quality and learnability -> one reward a response, comparable within its prompt."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from persyn.defects import Policies
from persyn.errors import InputError
from persyn.schemas import REWARDS
from persyn.settings import Settings, Share

KEYS = ["prompt_id", "teacher"]


class RewardSettings(Settings):
    """The section `rewards`: how quality and learnability become one reward."""

    alpha: Share
    """Weight of learnability, from 0 (quality alone) to 1 (learnability alone)."""
    alpha_slope: float = 0.0
    """How much the weight depends on the prompt (ours, not the paper's). It is alpha + alpha_slope * (e - 1/2), clipped
    to 0 to 1; e is the rank of the prompt's mean quality among all prompts, 0 to 1. Above 0, learnability decides
    prompts on which most teachers do well, quality decides hard ones."""
    normalization: Literal["min_max", "z_score", "none"] = "min_max"
    """Over the responses to a prompt: min_max to 0 to 1; z_score; none. Equal scores normalise to 0."""
    penalty: Annotated[float, Field(ge=0)] = 1.0
    """Subtracted from the reward of a response with a defect; with min_max, 1 or more ranks it below all others."""


def build_rewards(
    quality: pl.DataFrame,
    learnability: pl.DataFrame,
    defects: pl.DataFrame,
    teachers: Sequence[str],
    policies: Policies,
    settings: RewardSettings,
    anchored: Sequence[str] = (),
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """r = (1 - alpha) * r_q + alpha * r_l (PerSyn, Eq. 2), both normalised over the teachers of a prompt.

    Args:
        quality: QUALITY of every teacher.
        learnability: LEARNABILITY of every teacher.
        defects: DEFECTS of every teacher.
        teachers: names of all teachers. A prompt that lacks a teacher's score (its call failed, or a score was not
            finite) is left out and counted: no comparison on it would be fair.
        policies: which defects cost settings.penalty.
        anchored: the teachers that got only some prompts: a prompt is complete without them.

    Returns:
        REWARDS and their metrics: {prompts, kept, dropped: {incomplete}, penalised, ties (prompts on which all rewards
        are equal), length_correlation (Spearman, of reward and response tokens: near 1 or -1, the reward mostly
        measures length; None where either is constant), teachers: {name: {quality, learnability, reward: mean}}}.

    Raises:
        InputError: a score belongs to an unknown teacher, or no prompt is left.
    """
    alpha, alpha_slope, penalty = settings.alpha, settings.alpha_slope, settings.penalty
    scores = quality.join(learnability, on=KEYS, how="full", coalesce=True, validate="1:1").sort(KEYS)
    complete = _complete(scores, teachers, anchored).join(defects, on=KEYS, how="left", validate="1:1").sort(KEYS)
    penalised = pl.any_horizontal(pl.lit(False), *policies.kinds("penalise", "drop")).fill_null(False)
    normalised = complete.with_columns(r_q=_normalised("quality", settings.normalization), penalised=penalised)
    normalised = normalised.with_columns(r_l=_normalised("learnability", settings.normalization))
    weight = pl.lit(alpha) if not alpha_slope else (alpha + alpha_slope * (_ease() - 0.5)).clip(0, 1)
    mixed = (1 - weight) * pl.col("r_q") + weight * pl.col("r_l")
    rewards = normalised.with_columns(reward=mixed - pl.when("penalised").then(float(penalty)).otherwise(0.0))
    prompts, kept = scores["prompt_id"].n_unique(), complete["prompt_id"].n_unique()
    spread = rewards.group_by("prompt_id").agg(pl.col("reward").max() > pl.col("reward").min())
    counts = {
        "prompts": prompts,
        "kept": kept,
        "dropped": {"incomplete": prompts - kept},
        "penalised": int(normalised["penalised"].sum()),
        "ties": int((~spread["reward"]).sum()),
        "length_correlation": _correlation(rewards),
        "teachers": {
            row.pop("teacher"): row
            for row in rewards.group_by("teacher")
            .agg(pl.col("quality", "learnability", "reward").mean())
            .sort("teacher")
            .to_dicts()
        },
    }
    return rewards.select(REWARDS.names()), counts


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


def _ease() -> pl.Expr:
    """Rank of the prompt's mean quality among all prompts, 0 to 1; every prompt has equally many rows."""
    mean = pl.col("quality").mean().over("prompt_id")
    return (mean.rank() - 0.5) / pl.len()


def _correlation(rewards: pl.DataFrame) -> float | None:
    found = rewards.select(pl.corr("reward", "num_tokens", method="spearman")).item()
    return found if found is not None and math.isfinite(found) else None


def _complete(scores: pl.DataFrame, teachers: Sequence[str], anchored: Sequence[str]) -> pl.DataFrame:
    """The scores of prompts on which every teacher but the anchored ones has both, finite."""
    unknown = set(scores["teacher"]) - set(teachers)
    if unknown:
        raise InputError(f"scores belong to {', '.join(sorted(unknown))}, not among the teachers {', '.join(teachers)}")
    finite = scores.filter(pl.col("quality").is_finite() & pl.col("learnability").is_finite())
    required = ~pl.col("teacher").is_in(anchored)
    complete = finite.filter(required.sum().over("prompt_id") == len(teachers) - len(anchored))
    if complete.is_empty():
        have = ", ".join(f"{teacher} {finite.filter(teacher=teacher).height}" for teacher in teachers)
        raise InputError(
            f"none of {scores['prompt_id'].n_unique()} prompts has both scores of every teacher (scored: {have}); "
            f"see metrics/defects.json for calls that failed, and run their stages again"
        )
    return complete
