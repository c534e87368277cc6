"""Router metrics: how well strengths choose teachers on held-out parallel prompts, beside three controls.

Legend: N prompts, M teachers.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl

from persyn.schemas import InputError


def split_prompts(prompts: pl.DataFrame, holdout: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Split parallel prompts into (train, held out) by a hash of their id: the same rows on every machine.

    Raises:
        InputError: `holdout` leaves either part empty.
    """
    lots = [hashlib.sha256(f"holdout:{identity}".encode()).hexdigest() for identity in prompts["prompt_id"]]
    order = prompts.with_columns(lot=pl.Series(lots, dtype=pl.String)).sort("lot").drop("lot")
    num_held_out = round(holdout * prompts.height)
    if not 0 < num_held_out < prompts.height:
        raise InputError(
            f"router.holdout {holdout} of {prompts.height} parallel prompts holds out {num_held_out}; "
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


def routing_metrics(strengths: np.ndarray, rewards: np.ndarray) -> dict[str, float]:
    """Hit@1, Hit@3 in both readings and regret of routing by the largest strength.

    Args:
        strengths: (N, M) of the router or a control.
        rewards: (N, M), Eq. 2.

    Returns:
        hit_at_1; hit_at_3 (a best teacher is in the router's top 3); hit_at_3_oracle (fewer than 3 teachers beat the
        router's choice); regret (mean reward lost against the best teacher, reward units).
    """
    chosen = strengths.argmax(axis=1)
    got, best = rewards[np.arange(len(rewards)), chosen], rewards.max(axis=1)
    top = np.argsort(-strengths, axis=1, kind="stable")[:, :3]
    beaten_by = (rewards > got[:, None]).sum(axis=1)
    return {
        "hit_at_1": float((got == best).mean()),
        "hit_at_3": float((np.take_along_axis(rewards, top, axis=1).max(axis=1) == best).mean()),
        "hit_at_3_oracle": float((beaten_by < 3).mean()),
        "regret": float((best - got).mean()),
    }


def pair_metrics(strengths: np.ndarray, rewards: np.ndarray, min_margin: float = 0.0, bins: int = 10) -> dict[str, Any]:
    """Accuracy and calibration of P(B beats A) on every held-out pair whose rewards differ by more than min_margin.

    Returns:
        pair_accuracy; calibration: the expected calibration error over `bins` equal bins of the confidence in
        [0.5, 1]; num_pairs. The first two are None where there is no pair.
    """
    gaps = strengths[:, :, None] - strengths[:, None, :]  # (N, M, M)
    wins = rewards[:, :, None] - rewards[:, None, :] > min_margin
    won_by = gaps[wins]
    if not len(won_by):
        return {"pair_accuracy": None, "calibration": None, "num_pairs": 0}
    right = np.where(won_by == 0, 0.5, won_by > 0)
    confidence = 1 / (1 + np.exp(-np.abs(won_by)))
    bin_of = np.minimum(((confidence - 0.5) * 2 * bins).astype(int), bins - 1)
    errors = [
        abs(right[bin_of == b].mean() - confidence[bin_of == b].mean()) * (bin_of == b).mean() for b in set(bin_of)
    ]
    return {"pair_accuracy": float(right.mean()), "calibration": float(sum(errors)), "num_pairs": len(won_by)}


def majority_strengths(train_rewards: np.ndarray, num_prompts: int) -> np.ndarray:
    """Control: the teacher with the highest mean reward on the training prompts, for everything."""
    return np.tile(train_rewards.mean(axis=0), (num_prompts, 1))


def knn_strengths(
    train_vectors: np.ndarray, train_rewards: np.ndarray, vectors: np.ndarray, neighbours: int = 5
) -> np.ndarray:
    """Control: mean rewards of the most similar training prompts, by cosine of their embeddings."""
    unit_train, unit = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (train_vectors, vectors))
    nearest = np.argsort(-(unit @ unit_train.T), axis=1, kind="stable")[:, :neighbours]
    return train_rewards[nearest].mean(axis=1)


def shuffle_prompts(pairs: pl.DataFrame, seed: int) -> pl.DataFrame:
    """Control: the same pairs handed to other prompts. A router trained on them may learn who wins, not where."""
    identities = pairs["prompt_id"].unique(maintain_order=True)
    other = pl.DataFrame({"prompt_id": identities, "other": identities.sample(fraction=1.0, shuffle=True, seed=seed)})
    joined = pairs.join(other, on="prompt_id", how="left", validate="m:1")
    return joined.with_columns(prompt_id="other").drop("other")
