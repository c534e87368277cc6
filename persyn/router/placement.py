"""Placement: a new teacher joins a trained router after responding to only K prompts, its anchors, without retraining.

Its strength is modelled as a blend of those of the teachers that the router knows, o_new(x) = sum_m a_m o_m(x) + b, and
(a, b) are fitted to its wins and losses on the K anchor prompts by penalised Bradley-Terry likelihood (Eq. 3, with the
known strengths held fixed). The penalty pulls it towards a teacher that is average everywhere, which it is without
anchors. Ours, not the paper's.

Legend: K anchors, M known teachers.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.optimize import minimize
from scipy.special import expit

from persyn.errors import InputError
from persyn.files import write_text
from persyn.router.metrics import reward_matrix
from persyn.router.reading import prompt_texts

PLACED = "placed.json"


class PlacedRouter:
    """A router and the teachers placed beside its own: name -> result of place_teacher; `teachers` orders all."""

    def __init__(self, router: Any, placed: Mapping[str, Mapping[str, Any]], teachers: Sequence[str]) -> None:
        self.router, self.placed, self.teachers = router, placed, list(teachers)

    def strengths(
        self, prompts: Sequence[str], sources: Sequence[str] | None = None, features: np.ndarray | None = None
    ) -> np.ndarray:
        """Strengths (N, M + placed), in the order of `teachers`."""
        known = self.router.strengths(prompts, sources, features)
        columns = np.column_stack([known, *(self._blended(known, place) for place in self.placed.values())])
        names = [*self.router.teachers, *self.placed]
        return columns[:, [names.index(teacher) for teacher in self.teachers]]

    def save(self, folder: str | Path) -> None:
        """Write the router, and the placed teachers beside it."""
        self.router.save(folder)
        write_text(json.dumps({"placed": self.placed, "teachers": self.teachers}, indent=2), Path(folder) / PLACED)

    def _blended(self, known: np.ndarray, place: Mapping[str, Any]) -> np.ndarray:
        blend = np.array([place["blend"][teacher] for teacher in self.router.teachers], dtype=np.float32)
        return known @ blend + np.float32(place["offset"])


def place_teacher(
    router: Any, name: str, prompts: pl.DataFrame, rewards: pl.DataFrame, penalty: float = 1.0
) -> dict[str, Any]:
    """Fit a new teacher's blend of the strengths of a trained router.

    Args:
        prompts: columns prompt_id and prompt. Those on which the teacher has a reward are its anchors.
        rewards: REWARDS on them, including the known teachers'.
        penalty: of the squared distance of the blend from 1/M each, and of the offset, in nats.

    Returns:
        {anchors: K, blend: {known teacher: a_m}, offset: b}.

    Raises:
        InputError: the teacher is known already, or it ties with every teacher on all anchors.
    """
    if name in router.teachers:
        raise InputError(f"{name} is already among the router's teachers {', '.join(router.teachers)}")
    anchors = prompts.join(rewards.filter(teacher=name), on="prompt_id", how="semi")
    matrix = reward_matrix(rewards, anchors["prompt_id"].to_list(), [*router.teachers, name]) if len(anchors) else None
    sign = np.sign(matrix[:, -1:] - matrix[:, :-1]) if matrix is not None else np.zeros(0)  # (K, M)
    if not sign.any():
        raise InputError(f"{name} ties with every teacher on all {len(anchors)} anchors; give it more of them")
    sources = anchors["source"].to_list() if "source" in anchors.columns else None
    known = router.strengths(prompt_texts(anchors), sources).astype(float)  # (K, M)
    average = np.full(known.shape[1], 1 / known.shape[1])

    def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
        blend, offset = point[:-1], point[-1]
        won_by = sign * ((known @ blend + offset)[:, None] - known)  # (K, M): o_winner - o_loser
        pull = -np.where(sign == 0, 0.0, sign * expit(-won_by)).sum(axis=1)  # (K,): d loss / d o_new
        value = np.where(sign == 0, 0.0, np.logaddexp(0, -won_by)).sum()
        value += penalty * (((blend - average) ** 2).sum() + offset**2)
        slope = np.append(pull @ known + 2 * penalty * (blend - average), pull.sum() + 2 * penalty * offset)
        return float(value), slope

    found = minimize(loss, np.append(average, 0.0), jac=True, method="L-BFGS-B").x
    blend = {teacher: float(value) for teacher, value in zip(router.teachers, found[:-1], strict=True)}
    return {"anchors": len(anchors), "blend": blend, "offset": float(found[-1])}
