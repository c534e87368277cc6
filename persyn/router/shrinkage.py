"""Shrinkage: how far a router may be trusted, by cross-validation inside its training prompts.

A router takes the teacher of the largest prediction, and the largest of several noisy numbers is the one whose noise is
largest (the winner's curse). So its strengths are pulled towards the teachers' means,

    o(x) = mean + s * slope * (f(x) - mean of f),

f being what the method says, slope the least-squares coefficient that turns f's differences into rewards, s the trust.
Where the gain over one teacher for all is not supported, s is 0, and every prompt goes to the best teacher. Ours, not
the paper's.

Legend: N training prompts, M teachers, K folds.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar

from persyn.files import write_text
from persyn.statistics import LEVEL, corrected_interval

SHRINKAGE, UNSHRUNK = "shrinkage.json", "unshrunk"
TRUST = (0.5, 0.75, 1.0)
"""What s may be, if not 0. Among real teachers half gains nearly as much as full trust, and varies half as much."""
SUPPORT = (0.5, 0.75, 1.0, 1.25, 1.5)
"""The trusts whose mean gain decides whether routing is supported: it varies less than the gain at one of them."""
SIGNAL = 0.01
"""Significance level of the test that what the router says goes with the rewards at all."""
SHUFFLES = 999

Predict = Callable[[np.ndarray], np.ndarray]
"""Positions of training prompts -> what the method, trained on these alone, says of all N: (N, M)."""


@dataclass(frozen=True)
class CrossValidation:
    """Of each prompt, what was known without it."""

    fold: np.ndarray
    """(N,), the fold that the prompt is in."""
    base: np.ndarray
    """(N, M), the teachers' mean rewards over the other folds."""
    added: np.ndarray
    """(N, M), slope * (f(x) - mean of f), f trained on the other folds."""
    slope: float
    """One number for all folds: only in it has a prompt's own reward a part."""

    @cached_property
    def best(self) -> np.ndarray:
        """(N,), the one best teacher of the other folds: thousands of shuffles ask for it."""
        return self.base.argmax(axis=1)


def cross_validate(predict: Predict, rewards: np.ndarray, folds: int, seed: int, is_reward: bool) -> CrossValidation:
    """Train on all folds but one, ask about that one, for each fold.

    Args:
        rewards: (N, M), Eq. 2. With one prompt there is nothing to learn it from: nothing is added to its rewards.
        folds: parts; with fewer prompts, one a prompt.
        is_reward: whether f is a reward; the slope is then 1 at most, so that f is never enlarged.
    """
    number = len(rewards)
    if number < 2:
        return CrossValidation(np.zeros(number, dtype=int), rewards.astype(float), np.zeros(rewards.shape), 0.0)
    fold = np.random.default_rng(seed).permutation(number) % min(folds, number)
    base, added = np.zeros(rewards.shape), np.zeros(rewards.shape)
    for part in range(fold.max() + 1):
        known, asked = np.flatnonzero(fold != part), fold == part
        said = predict(known)
        base[asked] = rewards[known].mean(axis=0)
        added[asked] = said[asked] - said[known].mean(axis=0)
    square = float((added**2).sum())
    slope = max(0.0, float((added * (rewards - base)).sum()) / square) if square else 0.0
    slope = min(slope, 1.0) if is_reward else slope
    return CrossValidation(fold, base, slope * added, slope)


def choose_trust(found: CrossValidation, rewards: np.ndarray, seed: int) -> dict[str, Any]:
    """How far to trust the router: s, by the regret in cross-validation, or 0 where no gain is supported.

    Two permutation tests decide, in which each prompt gets what the router says of another: what it says must go with
    the rewards (below SIGNAL), and so must the gain over one teacher for all, averaged over SUPPORT (below LEVEL).

    Returns:
        trust: s; slope; gains: s -> mean gain in reward over one teacher for all; signal_p, gain_p: of the two tests;
        gain: corrected_interval of the gain by fold, s chosen on the other folds. With one prompt it has no interval.
    """
    gains = np.stack([gain(found, rewards, s) for s in TRUST])  # (len(TRUST), N)
    random, number, folds = np.random.default_rng(seed), len(rewards), int(found.fold.max()) + 1
    real, beaten = _evidence(found.added, found, rewards), np.zeros(2, dtype=int)
    for _ in range(SHUFFLES):
        beaten += _evidence(found.added[random.permutation(number)], found, rewards) >= real
    signal_p, gain_p = ((1 + beaten) / (1 + SHUFFLES)).tolist()
    supported = signal_p <= SIGNAL and gain_p <= LEVEL and real[1] > 0
    parts = [found.fold == part for part in range(folds)]
    unseen = np.array([gains[_least_trust(gains[:, ~part]), part].mean() for part in parts])
    return {
        "trust": TRUST[_least_trust(gains)] if supported else 0.0,
        "slope": found.slope,
        "gains": dict(zip(map(str, TRUST), gains.mean(axis=1).tolist(), strict=True)),
        "signal_p": signal_p,
        "gain_p": gain_p,
        "gain": corrected_interval(unseen, max(1, folds - 1), 1),
    }


def _least_trust(gains: np.ndarray) -> int:
    """The first row of gains (len(TRUST), N) that no later one exceeds by two standard errors, over the prompts. With
    fewer than two prompts there is no such error, and it is the first.
    """
    if gains.shape[1] < 2:
        return 0
    for row in range(len(gains) - 1):
        over = gains[row + 1 :] - gains[row]
        error = over.std(axis=1, ddof=1) / np.sqrt(over.shape[1])
        if not (over.mean(axis=1) > 2 * error).any():
            return row
    return len(gains) - 1


def gain(found: CrossValidation, rewards: np.ndarray, trust: float, added: np.ndarray | None = None) -> np.ndarray:
    """Reward (N,) of routing less that of one teacher for all, where both were fitted without the prompt."""
    rows = np.arange(len(rewards))
    routed = (found.base + trust * (found.added if added is None else added)).argmax(axis=1)
    return rewards[rows, routed] - rewards[rows, found.best]


def _evidence(added: np.ndarray, found: CrossValidation, rewards: np.ndarray) -> np.ndarray:
    """The two statistics of the permutation tests."""
    signal = (added * (rewards - found.base)).sum()
    return np.array([signal, np.mean([gain(found, rewards, s, added).mean() for s in SUPPORT])])


def fit_temperature(found: CrossValidation, rewards: np.ndarray, trust: float) -> float:
    """What turns predicted differences in reward into log-odds: P(B beats A) = sigmoid(temperature * difference), the
    maximum of the likelihood over all pairs of the cross-validated training prompts.
    """
    said = found.base + trust * found.added
    gaps = (said[:, :, None] - said[:, None, :])[rewards[:, :, None] > rewards[:, None, :]]
    if not gaps.size or not np.abs(gaps).max():
        return 1.0
    unit = float(np.abs(gaps).max())
    loss = lambda log: float(np.logaddexp(0, -np.exp(log) * gaps / unit).mean())  # noqa: E731
    return float(np.exp(minimize_scalar(loss, bounds=(-5.0, 7.0), method="bounded").x) / unit)


class ShrunkRouter:
    """A router whose strengths are pulled towards the teachers' means.

    Args:
        means: the teachers' mean rewards (M,) over the training prompts.
        centre: the mean strengths (M,) of the router over them.
        scale: s * slope. If it is 0, the router is not asked: each prompt goes to the best teacher.
        temperature: fit_temperature.
    """

    def __init__(
        self, router: Any, means: Sequence[float], centre: Sequence[float], scale: float, temperature: float
    ) -> None:
        self.router, self.teachers, self.scale, self.temperature = router, router.teachers, scale, temperature
        self.means, self.centre = np.asarray(means, dtype=float), np.asarray(centre, dtype=float)

    def strengths(
        self, prompts: Sequence[str], sources: Sequence[str] | None = None, features: np.ndarray | None = None
    ) -> np.ndarray:
        """Strengths (N, M) as log-odds, in the order of the prompts."""
        pulled = np.tile(self.means, (len(prompts), 1))
        if self.scale:
            pulled += self.scale * (self.router.strengths(prompts, sources, features) - self.centre)
        return self.temperature * pulled

    def save(self, folder: str | Path) -> None:
        """Write the shrinkage, and the router in a folder of its own, which nobody takes for the shrunk one."""
        self.router.save(Path(folder) / UNSHRUNK)
        rest = {"means": self.means.tolist(), "centre": self.centre.tolist()}
        rest |= {"scale": self.scale, "temperature": self.temperature}
        write_text(json.dumps(rest, indent=2), Path(folder) / SHRINKAGE)
