"""Losses of the router: how well the strengths on a prompt fit its pairs or its rewards.

Legend: B prompts, M teachers.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import torch

from persyn.errors import InputError


def bradley_terry_loss(outputs: Any, wins: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Weighted mean over the pairs of -log sigmoid(o_winner - o_loser): P(B beats A | x) = sigmoid(z^T pi(x)), z being
    +1 at B and -1 at A (PerSyn, Eq. 3); binary cross-entropy with the winner as the label (Eq. 4).

    Args:
        outputs: `logits` (B, M) are the strengths o.
        wins: (B, M, M), the weight of the pair if the row's teacher beats the column's, else 0. NaN for padding, which
            has no weight.
        num_items_in_batch: the sum of all weights of the update, if these prompts are only a part of it, else None.
    """
    strengths = outputs["logits"].float()
    gaps = strengths.unsqueeze(2) - strengths.unsqueeze(1)  # (B, M, M): o_row - o_column
    wins = wins.to(gaps).nan_to_num()
    total = num_pairs(wins) if num_items_in_batch is None else num_items_in_batch
    return -(wins * torch.nn.functional.logsigmoid(gaps)).sum() / total.clamp(min=1e-9)


def plackett_luce_loss(outputs: Any, rewards: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean over the prompts of -log P(ranking by reward) / (M - 1), where each next teacher is drawn by the softmax of
    the remaining strengths: Plackett-Luce, Bradley-Terry for whole rankings (ListMLE, Xia et al. 2008).

    Args:
        outputs: `logits` (B, M).
        rewards: (B, M); equal ones rank in the order of the teachers. NaN for padding, which has no weight.
        num_items_in_batch: the number of prompts of the update, if these are only a part of it, else None.
    """
    total = num_prompts(rewards) if num_items_in_batch is None else num_items_in_batch
    real = ~rewards.isnan().any(dim=1)
    strengths, rewards = outputs["logits"].float()[real], rewards[real]
    order = rewards.to(strengths.device).argsort(dim=1, descending=True, stable=True)
    ranked = strengths.gather(1, order)  # (B, M), the best first
    left = ranked.flip(1).logcumsumexp(1).flip(1)  # log of the sum over teachers not drawn yet
    return (left - ranked).sum(dim=1).sum() / total / max(1, ranked.shape[1] - 1)


def num_pairs(wins: torch.Tensor) -> torch.Tensor:
    """The weight of all pairs in (B, M, M), the denominator of bradley_terry_loss."""
    return wins.nan_to_num().sum()


def num_prompts(rewards: torch.Tensor) -> torch.Tensor:
    """The number of rows in (B, M) that are not padding, the denominator of plackett_luce_loss."""
    return (~rewards.isnan().any(dim=1)).sum()


LOSSES = {"pairwise": bradley_terry_loss, "listwise": plackett_luce_loss}
ITEMS = {"pairwise": num_pairs, "listwise": num_prompts}
"""Loss -> its denominator."""


def win_matrices(pairs: pl.DataFrame, teachers: Sequence[str], by_margin: bool = False) -> dict[str, np.ndarray]:
    """prompt_id -> (M, M), positive where the row's teacher beats the column's on that prompt.

    Args:
        by_margin: whether the weight of a pair is proportional to its margin, with mean 1; else every weight is 1.
    """
    index = {teacher: position for position, teacher in enumerate(teachers)}
    weight = pl.col("margin") / pl.col("margin").mean() if by_margin else pl.lit(1.0)
    wins: dict[str, np.ndarray] = {}
    for identity, winner, loser, weighs in pairs.select("prompt_id", "winner", "loser", weight=weight).iter_rows():
        if winner not in index or loser not in index:
            raise InputError(f"pair {winner} over {loser}: both must be among the teachers {', '.join(teachers)}")
        matrix = wins.setdefault(identity, np.zeros((len(teachers), len(teachers)), dtype=np.float32))
        matrix[index[winner], index[loser]] = weighs
    return wins
