"""Routers that predict every teacher's reward from prompts like the one asked about, by weighted means, so that noise
in single rewards averages out. Fitted in closed form, in seconds.

Legend: N prompts, M teachers, D features (Scaling), S sources.
"""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from persyn.files import read_json, read_tensors, write_text
from persyn.router.settings import RouterSettings

TENSORS, CONFIG = "smoothing_router.safetensors", "smoothing_router.json"
CHUNK = 4096
"""Prompts whose similarities to all training prompts are held in memory at once."""
logger = logging.getLogger(__name__)


@dataclass
class Smoother:
    """Predicts rewards (N, M): the means of a prompt's source, and what its features add to them."""

    mean: np.ndarray
    """(M,), over all training prompts."""
    by_source: dict[str, np.ndarray]
    """Source -> means (M,)."""
    neighbours: list[int]
    features: np.ndarray | None = None
    """(N, D) of the training prompts, rows of length 1, for knn."""
    left: np.ndarray | None = None
    """(N, M), their rewards less those of their sources, for knn."""
    weight: np.ndarray | None = None
    """(D, M), for regression."""

    @classmethod
    def fit(
        cls, features: np.ndarray | None, sources: Sequence[str], rewards: np.ndarray, settings: RouterSettings
    ) -> "Smoother":
        """From the training prompts' features (N, D; None for method source), sources and rewards (N, M)."""
        method = settings.method
        by_source = source_means(sources, rewards) if method in ("source", "blend") else {}
        most = max(1, len(rewards) // 4)
        found = cls(rewards.mean(axis=0), by_source, sorted({min(number, most) for number in settings.neighbours}))
        left = rewards - found._source_part(sources)
        if features is not None and method in ("knn", "blend"):
            found.features, found.left = features, left
        if features is not None and method in ("regression", "blend"):
            found.weight = np.mean([ridge(features, left, penalty) for penalty in settings.penalties], axis=0)
        return found

    def predict(self, features: np.ndarray | None, sources: Sequence[str]) -> np.ndarray:
        """Rewards (N, M) of prompts with these features (N, D) and sources."""
        parts = []
        if self.features is not None and self.left is not None and features is not None:
            parts.append(knn(self.features, self.left, features, self.neighbours))
        if self.weight is not None and features is not None:
            parts.append(features @ self.weight)
        base = self._source_part(sources)
        return base + np.mean(parts, axis=0) if parts else base

    def _source_part(self, sources: Sequence[str]) -> np.ndarray:
        means = np.tile(self.mean, (len(sources), 1))
        for row, source in enumerate(sources):
            if source in self.by_source:
                means[row] = self.by_source[source]
        return means


def source_means(sources: Sequence[str], rewards: np.ndarray) -> dict[str, np.ndarray]:
    """Source -> its teachers' mean rewards (M,), shrunk towards the means over all prompts as far as the differences
    between sources are chance.

    Empirical Bayes, one-way random effects: a source of n prompts keeps n / (n + k) of its difference, k = variance of
    a reward within its source / variance between sources, both pooled over the teachers and estimated by moments (Efron
    and Morris 1975). If the sources differ no more than chance lets them, all of them get the overall means.
    """
    of, mean = np.array(sources), rewards.mean(axis=0)
    parts = {str(source): rewards[of == source] for source in np.unique(of)}
    sizes = np.array([len(part) for part in parts.values()])
    total, number = len(rewards), len(parts)
    if number < 2 or total <= number:
        return dict.fromkeys(parts, mean)
    within = sum(((part - part.mean(axis=0)) ** 2).sum() for part in parts.values()) / (total - number)
    between = sum(len(part) * ((part.mean(axis=0) - mean) ** 2).sum() for part in parts.values())
    variance = (between - (number - 1) * within) / (total - (sizes**2).sum() / total)
    if variance <= 0:
        return dict.fromkeys(parts, mean)
    prior = within / variance
    return {source: mean + len(p) / (len(p) + prior) * (p.mean(axis=0) - mean) for source, p in parts.items()}


def ridge(features: np.ndarray, targets: np.ndarray, penalty: float) -> np.ndarray:
    """Coefficients (D, M) of the ridge regression of targets (N, M) on features (N, D)."""
    number, dimensions = features.shape
    if number <= dimensions:
        return features.T @ np.linalg.solve(features @ features.T + penalty * np.eye(number), targets)
    return np.linalg.solve(features.T @ features + penalty * np.eye(dimensions), features.T @ targets)


def knn(features: np.ndarray, targets: np.ndarray, asked: np.ndarray, neighbours: Sequence[int]) -> np.ndarray:
    """Mean targets of the most similar prompts, averaged over the numbers of neighbours.

    Args:
        features: (N, D) of the prompts with targets (N, M).
        asked: (A, D).
        neighbours: numbers of them, each from 1 to N.

    Returns:
        (A, M).
    """
    found = [np.zeros((0, targets.shape[1]))]
    for start in range(0, len(asked), CHUNK):
        near = _nearest(asked[start : start + CHUNK] @ features.T, max(neighbours))
        sums = np.cumsum(targets[near], axis=1)  # (A, K, M)
        found.append(np.mean([sums[:, number - 1] / number for number in neighbours], axis=0))
    return np.concatenate(found)


def _nearest(similarity: np.ndarray, number: int) -> np.ndarray:
    """Positions (A, number) of the largest similarities (A, N) of each row, the largest first."""
    some = np.argpartition(-similarity, number - 1, axis=1)[:, :number]  # in a tenth of the time of a full sort
    order = np.argsort(-np.take_along_axis(similarity, some, axis=1), axis=1, kind="stable")
    return np.take_along_axis(some, order, axis=1)


def fit_smoothing_router(
    features: np.ndarray | None,
    sources: Sequence[str],
    rewards: np.ndarray,
    teachers: Sequence[str],
    settings: RouterSettings,
) -> "SmoothingRouter":
    """Fit method source, regression, knn or blend.

    Args:
        features: (N, L, H) of the training prompts; None for source.
        sources: their sources.
        rewards: (N, M), Eq. 2.
    """
    from persyn.router.features import Scaling, encoder_of

    if features is None:
        return SmoothingRouter(teachers, Smoother.fit(None, sources, rewards, settings), None)
    scaling = Scaling.fit(features, settings.components)
    smoother = Smoother.fit(scaling(features), sources, rewards, settings)
    return SmoothingRouter(teachers, smoother, encoder_of(settings), scaling)


class SmoothingRouter:
    """A Smoother, and the encoder and scaling that make its features."""

    def __init__(
        self, teachers: Sequence[str], smoother: Smoother, encoder: dict[str, Any] | None, scaling: Any = None
    ) -> None:
        self.teachers, self.smoother, self.encoder, self.scaling = list(teachers), smoother, encoder, scaling

    def strengths(
        self, prompts: Sequence[str], sources: Sequence[str] | None = None, features: np.ndarray | None = None
    ) -> np.ndarray:
        """Predicted rewards (N, M). Without sources, or for a new one, the means of all sources stand in.

        Args:
            features: (N, L, H) of the prompts, if known.
        """
        from persyn.router.features import embed

        asked = features is None
        if self.encoder and features is None:
            features = embed(prompts, **self.encoder)
        scaled = self.scaling(features) if self.encoder else None
        known = list(sources) if sources is not None else [""] * len(prompts)
        strange = [source for source in known if self.smoother.by_source and source not in self.smoother.by_source]
        if strange and asked:
            logger.warning(
                "%d of %d prompts come from no source that the router was trained on (first: %r): the means of all "
                "sources stand in for theirs",
                *(len(strange), len(known), strange[0]),
            )
        return self.smoother.predict(scaled, known)

    def save(self, folder: str | Path) -> None:
        """Write its arrays as safetensors, and the rest as json."""
        from safetensors.numpy import save_file

        tensors = {"mean": self.smoother.mean}
        if self.scaling is not None:
            tensors |= {f"scaling_{name}": value for name, value in vars(self.scaling).items()}
        for name in ("features", "left", "weight"):
            if (value := getattr(self.smoother, name)) is not None:
                tensors[name] = value
        if self.smoother.by_source:
            tensors["by_source"] = np.stack(list(self.smoother.by_source.values()))
        config = {
            "encoder": self.encoder,
            "teachers": self.teachers,
            "neighbours": self.smoother.neighbours,
            "sources": list(self.smoother.by_source),
        }
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, Path(folder) / TENSORS)
        write_text(json.dumps(config, indent=2), Path(folder) / CONFIG)

    @classmethod
    def load(cls, folder: str | Path) -> "SmoothingRouter":
        """Read a saved router."""

        from persyn.router.features import Scaling

        config, tensors = read_json(Path(folder) / CONFIG), read_tensors(Path(folder) / TENSORS)
        by_source = dict(zip(config["sources"], tensors.get("by_source", []), strict=True))
        arrays = [tensors.get(name) for name in ("features", "left", "weight")]
        smoother = Smoother(tensors["mean"], by_source, config["neighbours"], *arrays)
        parts = {name.removeprefix("scaling_"): value for name, value in tensors.items() if name.startswith("scaling_")}
        scaling = Scaling(**parts) if config["encoder"] else None
        return cls(config["teachers"], smoother, config["encoder"], scaling)
