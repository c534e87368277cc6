"""Statistics: paired differences with their uncertainty, and corrections for many tests.

Legend: N items of one task and metric, S seeds (students trained anew)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import optimize, stats

LEVEL = 0.05  # significance level of every test; intervals cover 1 - LEVEL

POWER = 0.8


def paired_difference(reference: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """`reference` minus `other`, both (N,) over the same items.

    Returns:
        difference: mean of the paired differences; interval: its 95 % percentile bootstrap interval;
        p: exact McNemar if all values are 0 or 1, else a paired sign-flip permutation test; mde: the smallest true
        difference found with 80 % power at 5 %; n. If no item differs, or there is only one, interval and mde are
        None: such a sample says nothing about their size.
    """
    gaps = reference - other
    n, p = len(gaps), _p_value(reference, other, seed)
    result: dict[str, Any] = {"difference": float(gaps.mean()), "interval": None, "p": p, "mde": None, "n": n}
    if gaps.any() and n > 1:
        bootstrap = stats.bootstrap((gaps,), np.mean, n_resamples=2000, method="percentile", rng=seed)
        result["interval"] = [float(bound) for bound in bootstrap.confidence_interval]
        result["mde"] = float((stats.norm.ppf(1 - LEVEL / 2) + stats.norm.ppf(POWER)) * stats.sem(gaps))
    return result


def seed_difference(reference: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int = 0) -> dict[str, Any]:
    """`reference` minus `other`, for each of S seeds (N,) over the same items.

    Returns:
        difference: mean over seeds of the mean paired differences; difference_interval (95 %), p (two-sided), mde: of
        the paired t test over these S means; p_items: the test of paired_difference over the items of all seeds. It
        ignores training noise and counts an item in two seeds as two items, so it may be far too small.
    """
    gaps = np.array([(one - two).mean() for one, two in zip(reference, other, strict=True)])
    interval, p, mde = _t_test(gaps)
    p_items = _p_value(np.concatenate(reference), np.concatenate(other), seed)
    return {"difference": float(gaps.mean()), "difference_interval": interval, "p": p, "p_items": p_items, "mde": mde}


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number M, in the order given (Holm 1979, step-down).

    The k-th smallest (k from 0) becomes the largest of (M - j) * p_j over j <= k, 1 at most. If nothing differs, the
    probability that any of the M is below 0.05 is 5 % at most, however the tests depend on each other.
    """
    p, order = np.asarray(p_values, dtype=float), np.argsort(p_values, kind="stable")
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(np.arange(len(p), 0, -1) * p[order]))
    return corrected.tolist()


@cache
def detectable_shift(n: int) -> float:
    """True mean over its standard error that a two-sided t test of `n` >= 2 values finds with 80 % power at 5 %.

    The root d of P(T > t(0.975, n - 1)) = 0.8, T noncentral t about d (n - 1 degrees); P(T < -t) is 1e-6 at most.
    """
    critical = stats.t.ppf(1 - LEVEL / 2, n - 1)
    return float(optimize.brentq(lambda shift: POWER - stats.nct.sf(critical, n - 1, shift), 0.0, 30.0))


def corrected_interval(differences: np.ndarray, train: int, test: int) -> dict[str, Any]:
    """Mean difference over J random splits of the same data into `train` and `test`, with its corrected uncertainty.

    Training sets of different splits share most of their data, so an ordinary t test over splits is far too sure. The
    corrected resampled t test takes (1/J + test/train) times the sample variance as the squared standard error, with
    J - 1 degrees of freedom (Nadeau and Bengio 2003, Inference for the Generalization Error, section 3).

    Args:
        differences: (J,), one a split, in any unit; above 0 where the split is won.
        train: how many units (say prompts) of a split were trained on.
        test: how many were tested on.

    Returns:
        difference (mean), interval (95 %), p (two-sided, against 0), mde (smallest true difference found with 80 %
        power at 5 %, by the noncentral t), splits, and splits_won (how many are above 0). If all differences are equal
        to d, interval is [d, d], p is 1 where d is 0, else 0, and mde is None. One split has no interval, p and mde.

    Raises:
        ValueError: there is no difference, one is not finite, or `train` or `test` is below 1.
    """
    values = np.asarray(differences, dtype=float)
    if not values.size or not np.isfinite(values).all() or min(train, test) < 1:
        raise ValueError(f"got {values.size} differences (finite ones are needed), {train=}, {test=}; all must be >= 1")
    mean, splits = float(values.mean()), len(values)
    result: dict[str, Any] = {"difference": mean, "interval": None, "p": None, "mde": None}
    if splits > 1 and _is_constant(values):
        result |= {"interval": [mean, mean], "p": float(mean == 0)}
    elif splits > 1:
        error = float(np.sqrt((1 / splits + test / train) * values.var(ddof=1)))
        low, high = stats.t.interval(1 - LEVEL, splits - 1, loc=mean, scale=error)
        p = 2 * stats.t.sf(abs(mean) / error, splits - 1)
        result |= {"interval": [float(low), float(high)], "p": float(p), "mde": detectable_shift(splits) * error}
    return result | {"splits": splits, "splits_won": int((values > 0).sum())}


def _is_constant(values: np.ndarray) -> bool:
    """Whether all are equal up to rounding."""
    return bool(np.ptp(values) <= max(1e-9 * np.abs(values).max(), 1e-12))


def _t_test(values: np.ndarray) -> tuple[list[float] | None, float | None, float | None]:
    """Interval, p and mde of the mean of (S,) values against 0; all None where t is not defined.

    That is the case with one value, and if all are equal up to rounding: their deviation is 0, so t is infinite or 0/0.
    Scores of few items can be equal by chance, and a seed that changes nothing measures no noise.
    """
    if len(values) < 2 or _is_constant(values):
        return None, None, None
    test = stats.ttest_1samp(values, 0.0)
    interval = [float(bound) for bound in test.confidence_interval(1 - LEVEL)]
    return interval, float(test.pvalue), float(detectable_shift(len(values)) * stats.sem(values))


def _p_value(reference: np.ndarray, other: np.ndarray, seed: int) -> float:
    gaps = reference - other
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    if not wins + losses or len(gaps) < 2:
        return 1.0
    if np.isin([reference, other], (0, 1)).all():
        return float(stats.binomtest(wins, wins + losses).pvalue)
    test = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=5000, rng=seed, batch=500)
    return float(test.pvalue)
