"""Statistics: paired differences with their uncertainty, and corrections for many tests.

Legend: N items of one task and metric, S seeds (students trained anew)."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from scipy import optimize, special, stats

LEVEL = 0.05  # significance level of every test; intervals cover 1 - LEVEL
POWER = 0.8
FLIPS = 65_535
"""Up to so many sign flips (16 items) all are tried, else 10,000 at random."""
FEWEST = 6
"""Items that both tests of paired_difference need: with fewer, even the clearest result has p above 0.05."""


def paired_difference(reference: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """`reference` minus `other`, both (N,) over the same items.

    The interval is that of the test, so it excludes 0 exactly where p < 0.05. If all values are 0 or 1 the test is
    exact McNemar: wins among the D items that differ, against one half. Its interval has every (2w - 1) * s with w in
    the Clopper-Pearson interval of the wins' share of D, and s in that of D among N. (With s fixed at D / N it would
    cover as little as half of the time if one side wins every item.) Otherwise the test flips the signs of the paired
    differences, taken as symmetric about their mean: its interval lies between quantiles of the means of the subsets of
    the differences (Hartigan 1969, Using subsample values as typical values).

    Returns:
        difference: mean of the paired differences; interval (95 %); p (two-sided); mde: the smallest true difference
        that the test finds with 80 % power at 5 %; n (N); identical: whether no item differs. The mde of McNemar's test
        is detectable_gap. That of the sign-flip test is taken from the t test (detectable_shift times the standard
        error), which is near from ten items on. mde is None if not even the largest difference would be found so often.
        interval is None, too, where N is below 6 and values are not binary, or N is 1. If no item differs, p is 1, and
        interval and mde are None: such a sample says nothing about their size.
    """
    gaps = np.asarray(reference, dtype=float) - other
    n, identical = len(gaps), not gaps.any()
    result = {"difference": float(gaps.mean()), "interval": None, "p": 1.0, "mde": None, "n": n, "identical": identical}
    if identical or n < 2:
        return result
    if np.isin([reference, other], (0, 1)).all():
        return result | _mcnemar(int((gaps > 0).sum()), int((gaps < 0).sum()), n)
    return result | _sign_flip(gaps, seed, most=1.0 if are_shares([reference, other]) else np.inf)


def seed_difference(reference: Sequence[np.ndarray], other: Sequence[np.ndarray], seed: int = 0) -> dict[str, Any]:
    """`reference` minus `other`, for each of S seeds (N,) over the same items.

    Returns:
        difference: mean over seeds of the mean paired differences; difference_interval (95 %), p (two-sided), mde: of
        the paired t test over these S means; identical: whether no item of any seed differs; p_items: the test of
        paired_difference over the items of all seeds. It ignores training noise and counts an item in two seeds as two
        items, so it may be far too small. If all values are in [0, 1], the interval is cut at -1 and 1, and an mde
        above 1 is None: no difference of shares is so large.
    """
    gaps = np.array([(one - two).mean() for one, two in zip(reference, other, strict=True)])
    interval, p, mde = _t_test(gaps)
    if are_shares([*reference, *other]):
        interval = interval and np.clip(interval, -1.0, 1.0).tolist()
        mde = None if mde is None or mde > 1 else mde
    items = paired_difference(np.concatenate(reference), np.concatenate(other), seed)
    fields = {"difference": float(gaps.mean()), "difference_interval": interval, "p": p, "p_items": items["p"]}
    return fields | {"mde": mde, "identical": items["identical"]}


def mean_interval(means: np.ndarray, shares: bool) -> list[float] | None:
    """95 % interval of the mean of (S,) values, one a seed, by Student's t with S - 1 degrees of freedom.

    Args:
        means: the S values.
        shares: whether they are means of values in [0, 1]. The t interval is then that of the logit of their mean, with
            the standard error by the delta method, mapped back (as by `svy: proportion` of Stata). So it stays in
            [0, 1], and near a bound, where seeds scatter askew, it covers the mean more often than a t interval cut at
            the bound does (`tests/test_statistics.py` measures both).

    Returns:
        None where t is not defined: with one value, and if all are equal.
    """
    interval = _t_test(means)[0]
    if interval is None or not shares:
        return interval
    mean = means.mean()
    half = (interval[1] - mean) / (mean * (1 - mean))
    return special.expit(special.logit(mean) + np.array([-half, half])).tolist()


def are_shares(values: Sequence[np.ndarray]) -> bool:
    """Whether all values are in [0, 1], so that their means are, too."""
    return all(((part >= 0) & (part <= 1)).all() for part in map(np.asarray, values))


def verdict(p: float | None, identical: bool) -> str:
    """What a difference is called: "identical" (no item differs: the same run, or the same scores), "not tested" (p is
    None), "differs" (p < 0.05) or "within noise"."""
    if identical:
        return "identical"
    return "not tested" if p is None else "differs" if p < LEVEL else "within noise"


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


@cache
def detectable_gap(n: int, discordant: int) -> float | None:
    """Smallest true difference of two shares that exact McNemar finds with 80 % power at 5 %, by the binomial.

    Args:
        n: items.
        discordant: how many of them differed, above 0. Their share is taken to be the true one; for a difference above
            it the share is as large as the difference, so that one side wins them all.

    Returns:
        None if a difference of 1 would not be found so often: that is so below 6 items.
    """
    counts = np.arange(n + 1)  # of the items that will differ
    needed = stats.binom.isf(LEVEL / 2, counts, 0.5) + 1  # wins among them, for p < 0.05

    def power(gap: float) -> float:
        share = max(discordant / n, gap)
        wins = min(1.0, (1 + gap / share) / 2)
        found = stats.binom.sf(needed - 1, counts, wins) + stats.binom.cdf(counts - needed, counts, wins)
        return float(stats.binom.pmf(counts, n, share) @ found)

    return float(optimize.brentq(lambda gap: power(gap) - POWER, 0.0, 1.0)) if power(1.0) >= POWER else None


def what_shows(items: int | None) -> dict[str, float | None] | None:
    """How small a difference of two students `items` items of right or wrong can show: detectable_gap, where they
    differ on one item in ten (a guess: it is not known before). None if the number of items is not given.
    """
    if items is None:
        return None
    return {"items": items, "difference": detectable_gap(items, max(1, round(items / 10)))}


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


def _mcnemar(wins: int, losses: int, n: int) -> dict[str, Any]:
    """Interval, p and mde of paired_difference for binary items."""
    differ = wins + losses
    test = stats.binomtest(wins, differ)
    won, share = test.proportion_ci(1 - LEVEL), stats.binomtest(differ, n).proportion_ci(1 - LEVEL)
    ends = [(2 * w - 1) * s for w in (won.low, won.high) for s in (share.low, share.high)]
    return {"interval": [float(min(ends)), float(max(ends))], "p": float(test.pvalue), "mde": detectable_gap(n, differ)}


def _sign_flip(gaps: np.ndarray, seed: int, most: float) -> dict[str, Any]:
    """Interval, p and mde of paired_difference for (N,) other differences; none of them is above `most`.

    A flip of some signs makes the mean of `gaps` minus a constant as large as it is exactly if the mean of the flipped
    gaps is at most the constant. So the means of subsets, sorted, have both p and the bounds in them.
    """
    n, means = len(gaps), np.sort(_subset_means(gaps, seed))
    means[np.abs(means) < 1e-12 * np.abs(gaps).max()] = 0.0  # of values that cancel but for rounding
    flips = len(means) + 1  # with the data as they are
    extreme = 1 + min((means <= 0).sum(), (means >= 0).sum())
    outside = int(np.ceil(round(LEVEL / 2 * flips, 6))) - 1  # means beyond each bound, and the bound
    interval = [float(means[outside - 1]), float(means[-outside])] if outside > 0 else None
    mde = detectable_shift(n) * stats.sem(gaps)
    possible = n >= FEWEST and mde <= most
    return {"interval": interval, "p": float(min(1.0, 2 * extreme / flips)), "mde": float(mde) if possible else None}


def _subset_means(gaps: np.ndarray, seed: int) -> np.ndarray:
    """Means of all subsets of (N,) values but the empty one, if they are at most FLIPS; else of some at random."""
    n = len(gaps)
    if 2**n - 1 <= FLIPS:
        chosen = np.arange(1, 2**n)[:, None] >> np.arange(n) & 1
        return chosen @ gaps / chosen.sum(axis=1)
    rng, means = np.random.default_rng(seed), []
    for _ in range(20):
        chosen = rng.integers(0, 2, size=(500, n), dtype=np.int8)
        chosen = chosen[chosen.any(axis=1)]
        means.append(chosen @ gaps / chosen.sum(axis=1, dtype=float))
    return np.concatenate(means)
