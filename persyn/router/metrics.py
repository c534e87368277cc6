"""Router metrics: how well strengths choose teachers on held-out parallel prompts, beside controls.

Legend: N prompts, M teachers.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import expit
from scipy.stats import entropy

from persyn.errors import InputError
from persyn.statistics import paired_difference, verdict
from persyn.ties import TIE

logger = logging.getLogger(__name__)


def split_prompts(
    prompts: pl.DataFrame, holdout: float, name: str = "router.holdout"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split parallel prompts into (train, held out) by a hash of their id: the same rows on every machine.

    Raises:
        InputError: `holdout` leaves either part empty.
    """
    lots = [hashlib.sha256(f"holdout:{identity}".encode()).hexdigest() for identity in prompts["prompt_id"]]
    order = prompts.with_columns(lot=pl.Series(lots, dtype=pl.String)).sort("lot").drop("lot")
    num_held_out = round(holdout * prompts.height)
    if not 0 < num_held_out < prompts.height:
        raise InputError(
            f"{name} {holdout} of {prompts.height} parallel prompts holds out {num_held_out}; "
            f"it must leave at least one on either side"
        )
    return order[num_held_out:], order[:num_held_out]


def reward_matrix(rewards: pl.DataFrame, prompt_ids: Sequence[str], teachers: Sequence[str]) -> np.ndarray:
    """REWARDS as an (N, M) array in the order of `prompt_ids` and `teachers`."""
    wide = rewards.pivot(on="teacher", index="prompt_id", values="reward")
    order = pl.DataFrame({"prompt_id": list(prompt_ids)}, schema={"prompt_id": pl.String})
    return (
        order.join(wide, on="prompt_id", how="left", validate="1:1", maintain_order="left").select(teachers).to_numpy()
    )


def routing_metrics(strengths: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
    """Hit@1, Hit@3 in both readings and regret of routing by the largest strength.

    Args:
        strengths: (N, M) of the router or a control.
        rewards: (N, M), Eq. 2.

    Returns:
        hit_at_1; hit_at_3 (a best teacher is in the router's top 3); hit_at_3_oracle (fewer than 3 teachers beat the
        router's choice), both None with three teachers or fewer; regret (mean reward below the best teacher's). Rewards
        that differ by ties.TIE of their scale are equal.
    """
    got, best = _got(strengths, rewards), rewards.max(axis=1)
    equal = TIE * np.maximum(np.abs(rewards).max(axis=1), 1.0)
    top = np.argsort(-strengths, axis=1, kind="stable")[:, :3]
    in_top = np.take_along_axis(rewards, top, axis=1).max(axis=1)
    beaten_by = (rewards > (got + equal)[:, None]).sum(axis=1)
    few = rewards.shape[1] <= 3  # then Hit@3 is 1 by construction
    return {
        "hit_at_1": float((got >= best - equal).mean()),
        "hit_at_3": None if few else float((in_top >= best - equal).mean()),
        "hit_at_3_oracle": None if few else float((beaten_by < 3).mean()),
        "regret": float((best - got).mean()),
    }


def health_card(
    strengths: np.ndarray, rewards: np.ndarray, teachers: Sequence[str], controls: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The metrics in metrics/router.json, of a router on held-out prompts.

    Args:
        strengths: (N, M) of the router.
        rewards: (N, M), Eq. 2.
        teachers: M names.
        controls: name -> strengths (N, M); `majority` must be there.

    Returns:
        routing_metrics, pair_metrics and allocation_metrics; controls: name -> routing_metrics; over_majority: the
        paired difference in reward between routing and sending everything to the majority teacher, as
        statistics.paired_difference returns it, and its verdict at 5 %. If this is "within noise", routing is not
        worthwhile.
    """
    card: dict[str, Any] = routing_metrics(strengths, rewards) | pair_metrics(strengths, rewards)
    card |= allocation_metrics(strengths, rewards, teachers)
    card["controls"] = {name: routing_metrics(control, rewards) for name, control in controls.items()}
    card["over_majority"] = paired_difference(_got(strengths, rewards), _got(controls["majority"], rewards))
    over = card["over_majority"]
    over["verdict"] = verdict(over["p"], over["identical"])
    if over["verdict"] != "differs" or over["difference"] < 0:
        logger.warning("on held-out prompts the router is no better than one teacher for everything (within noise)")
    return card


def allocation_metrics(strengths: np.ndarray, rewards: np.ndarray, teachers: Sequence[str]) -> dict[str, Any]:
    """Each teacher's share of the prompts under the router and under the oracle (the first of equally good teachers).

    Returns:
        share, oracle_share: teacher -> share of the prompts; entropy, oracle_entropy in nats; collapsed: whether one
        teacher gets at least 0.9 of the prompts where the oracle gives it 0.2 less.
    """
    shares = [np.bincount(m.argmax(axis=1), minlength=len(teachers)) / len(m) for m in (strengths, rewards)]
    largest = shares[0].argmax()
    return {
        "share": dict(zip(teachers, shares[0].tolist(), strict=True)),
        "oracle_share": dict(zip(teachers, shares[1].tolist(), strict=True)),
        "entropy": float(entropy(shares[0])),
        "oracle_entropy": float(entropy(shares[1])),
        "collapsed": bool(shares[0][largest] >= 0.9 and shares[0][largest] - shares[1][largest] >= 0.2),
    }


def pair_metrics(strengths: np.ndarray, rewards: np.ndarray) -> dict[str, Any]:
    """Accuracy and calibration of P(B beats A) on every held-out pair whose rewards differ.

    Returns:
        pair_accuracy; calibration: the expected calibration error over the bins of `reliability`; num_pairs. The first
        two are None where there is no pair.
    """
    bins = reliability(strengths, rewards)
    num_pairs = int(bins["pairs"].sum())
    if not num_pairs:
        return {"pair_accuracy": None, "calibration": None, "num_pairs": 0}
    share = bins["pairs"] / num_pairs
    return {
        "pair_accuracy": float((bins["accuracy"] * share).sum()),
        "calibration": float(((bins["accuracy"] - bins["confidence"]).abs() * share).sum()),
        "num_pairs": num_pairs,
    }


def reliability(strengths: np.ndarray, rewards: np.ndarray, bins: int = 10) -> pl.DataFrame:
    """Accuracy of the router on pairs by its confidence: columns confidence (mean, 0.5 to 1), accuracy and pairs, a row
    for each non-empty one of `bins` equal bins of the confidence. If calibrated, confidence equals accuracy.
    """
    won_by = (strengths[:, :, None] - strengths[:, None, :])[rewards[:, :, None] > rewards[:, None, :]]
    confidence = expit(np.abs(won_by.astype(float)))
    rows = pl.DataFrame(
        {
            "bin": np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1),
            "confidence": confidence,
            "accuracy": np.where(won_by == 0, 0.5, won_by > 0),
        }
    )
    means = rows.group_by("bin").agg(pl.col("confidence", "accuracy").mean(), pairs=pl.len()).sort("bin")
    return means.select("confidence", "accuracy", "pairs")


def majority_strengths(train_rewards: np.ndarray, num_prompts: int) -> np.ndarray:
    """Control: for all prompts, the teacher with the highest mean reward on the training prompts."""
    return np.tile(train_rewards.mean(axis=0), (num_prompts, 1))


def _got(strengths: np.ndarray, rewards: np.ndarray) -> np.ndarray:
    """The reward (N,) of each prompt's strongest teacher."""
    return rewards[np.arange(len(rewards)), strengths.argmax(axis=1)]
