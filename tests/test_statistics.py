import itertools
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from persyn.statistics import (
    _mcnemar,
    _t_test,
    corrected_interval,
    detectable_gap,
    detectable_shift,
    mean_interval,
    paired_difference,
    seed_difference,
    verdict,
    what_shows,
)


def test_corrected_interval_by_hand() -> None:
    found = corrected_interval(np.array([0.01, 0.02, 0.03, 0.06]), train=150, test=50)
    error = np.sqrt((1 / 4 + 50 / 150) * (0.02**2 + 0.01**2 + 0 + 0.03**2) / 3)
    assert found["difference"] == pytest.approx(0.03)
    assert found["interval"] == pytest.approx([0.03 - 3.182446 * error, 0.03 + 3.182446 * error])
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.03 / error, 3))
    assert found["mde"] == pytest.approx(detectable_shift(4) * error)
    assert (found["splits"], found["splits_won"]) == (4, 4)


def test_the_correction_keeps_its_level_where_the_plain_t_test_does_not() -> None:
    """Means over random thirds of a sample of noise: the plain t test over splits finds an effect far too often."""
    rng = np.random.default_rng(0)
    plain = corrected = 0
    for _ in range(200):
        noise = rng.normal(size=90)
        means = np.array([rng.permutation(noise)[:30].mean() for _ in range(20)])
        plain += bool(stats.ttest_1samp(means, 0.0).pvalue < 0.05)
        corrected += corrected_interval(means, 60, 30)["p"] < 0.05
    assert plain > 100
    assert corrected < 20


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (-0.1, 0.0)])
def test_equal_differences_have_an_interval_of_no_width(value: float, p: float) -> None:
    found = corrected_interval(np.full(5, value), 60, 30)
    assert found["interval"] == pytest.approx([value, value])
    assert (found["p"], found["mde"], found["splits_won"]) == (p, None, 0)


def test_one_split_has_no_interval_and_nonsense_is_refused() -> None:
    assert corrected_interval(np.array([0.1]), 60, 30) == {
        **{"difference": 0.1, "interval": None, "p": None, "mde": None},
        **{"splits": 1, "splits_won": 1},
    }
    for differences, train in ((np.array([]), 60), (np.array([np.nan, 1]), 60), (np.ones(2), 0)):
        with pytest.raises(ValueError, match="differences"):
            corrected_interval(differences, train, 30)


def test_an_interval_of_shares_stays_in_0_and_1() -> None:
    seeds = np.array([0.85, 0.93, 0.915])  # the plain t interval ends at 1.003
    low, high = mean_interval(seeds, shares=True) or (0, 0)
    centre = special.logit(seeds.mean())
    half = 4.302653 * stats.sem(seeds) / (seeds.mean() * (1 - seeds.mean()))
    assert [special.logit(low), special.logit(high)] == pytest.approx([centre - half, centre + half])
    assert 0 < low < seeds.mean() < high < 1
    assert mean_interval(np.array([0.9, 1.0]), shares=True)[1] <= 1  # type: ignore[index]
    assert (mean_interval(np.array([1.0, 1.0]), True), mean_interval(np.array([0.4]), True)) == (None, None)
    assert mean_interval(seeds + 1, shares=False) == pytest.approx(
        list(stats.ttest_1samp(seeds + 1, 0).confidence_interval())
    )


@pytest.mark.parametrize(("a", "b", "num_seeds"), [(2, 18, 3), (18, 2, 5), (1, 30, 3), (10, 10, 3), (0.5, 5, 5)])
def test_the_interval_of_shares_covers_more_often_than_one_that_is_cut(a: float, b: float, num_seeds: int) -> None:
    seeds = np.random.default_rng(0).beta(a, b, size=(1000, num_seeds))
    cut = np.array([_t_test(each)[0] for each in seeds])
    bounded = np.array([mean_interval(each, shares=True) for each in seeds])
    covered = [np.mean((bounds[:, 0] <= a / (a + b)) & (a / (a + b) <= bounds[:, 1])) for bounds in (bounded, cut)]
    assert covered[0] > 0.91
    assert covered[0] > covered[1] - 0.005


@pytest.mark.parametrize("n", [2, 5, 6, 7, 16, 25, 300])
def test_mcnemar_and_its_interval_agree(n: int) -> None:
    """For every number of wins and losses; of 300 items, for some."""
    for wins, losses in itertools.product(range(0, n + 1, 1 + n // 50), repeat=2):
        if 0 < wins + losses <= n:
            agree(_mcnemar(wins, losses, n), (wins - losses) / n)


def test_the_sign_flip_test_and_its_interval_agree() -> None:
    """Also where gaps tie, cancel, or are 0, and for both ways of choosing flips (17 items and more: at random)."""
    rng = np.random.default_rng(0)
    significant = 0
    for n, unit in itertools.product([2, 5, 6, 9, 12, 16, 17, 40], [0.1, 1.0, 3.7]):
        for shift in (0, 0, 0.5, 1, 1.5, -2):
            gaps = unit * np.round(rng.normal(shift, 2, size=n))
            if gaps.any():
                found = paired_difference(gaps, np.zeros(n))
                agree(found, gaps.mean())
                significant += found["p"] < 0.05
    assert 20 < significant < 120


def agree(found: dict[str, Any], difference: float) -> None:
    if found["interval"] is None:
        assert found["p"] >= 0.05
        return
    low, high = found["interval"]
    assert low <= difference + 1e-12
    assert difference <= high + 1e-12
    assert (low > 0 or high < 0) == (found["p"] < 0.05)


def test_a_bootstrap_interval_and_mcnemar_do_not_agree() -> None:
    """What was shown before: five wins of sixteen, none lost: p 0.0625, and an interval from 0.125 up."""
    found = paired_difference(np.array([1.0] * 5 + [0] * 11), np.zeros(16))
    assert found["p"] == 0.0625
    assert found["interval"][0] < 0 < found["interval"][1]


@pytest.mark.parametrize("n", [8, 20])
def test_the_interval_of_mcnemar_covers_the_true_difference(n: int) -> None:
    """Exactly, by all counts of wins and losses."""
    counts = [(won, lost) for won in range(n + 1) for lost in range(n + 1 - won) if won + lost]
    intervals = {(won, lost): _mcnemar(won, lost, n)["interval"] for won, lost in counts}
    for differ, wins in itertools.product((0.2, 0.5, 0.9), (0.5, 0.7, 1.0)):
        covered = stats.binom.pmf(0, n, differ)
        for (won, lost), (low, high) in intervals.items():
            chance = stats.binom.pmf(won + lost, n, differ) * stats.binom.pmf(won, won + lost, wins)
            covered += chance * (low - 1e-9 <= (2 * wins - 1) * differ <= high + 1e-9)
        assert covered > 0.95


def test_the_sign_flip_test_is_that_of_scipy() -> None:
    gaps = np.random.default_rng(1).normal(0.6, 1, size=9)
    exact = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=np.inf)
    assert paired_difference(gaps, np.zeros(9))["p"] == pytest.approx(exact.pvalue)
    many = np.random.default_rng(1).normal(0.2, 1, size=60)
    found = paired_difference(many, np.zeros(60))
    assert found["interval"] == pytest.approx(list(stats.ttest_1samp(many, 0).confidence_interval()), abs=0.03)


def test_the_bounds_of_the_sign_flip_interval_are_where_the_test_turns() -> None:
    gaps = np.random.default_rng(2).normal(0.3, 1, size=10)
    for bound, inside in zip(paired_difference(gaps, np.zeros(10))["interval"], (1e-6, -1e-6), strict=True):
        p_in, p_out = (paired_difference(gaps, np.full(10, bound + by))["p"] for by in (inside, -inside))
        assert p_in >= 0.05 > p_out


@pytest.mark.parametrize(("n", "discordant"), [(16, 5), (64, 6), (100, 40)])
def test_the_smallest_detectable_gap_is_found_by_mcnemar_four_times_in_five(n: int, discordant: int) -> None:
    gap = detectable_gap(n, discordant)
    assert gap is not None
    share = max(discordant / n, gap)
    rng = np.random.default_rng(0)
    differ = rng.binomial(n, share, size=1000)
    wins = rng.binomial(differ, (1 + gap / share) / 2)
    found = [count > 0 and stats.binomtest(won, count).pvalue < 0.05 for won, count in zip(wins, differ, strict=True)]
    assert np.mean(found) == pytest.approx(0.8, abs=0.04)


def test_with_sixteen_items_the_normal_formula_promised_too_much() -> None:
    reference, other = np.array([1.0] * 4 + [0] * 12), np.array([0.0] * 4 + [1] + [0] * 11)
    normal = 2.8016 * stats.sem(reference - other)
    assert paired_difference(reference, other)["mde"] > normal + 0.05
    assert paired_difference(reference[3:8], other[3:8])["mde"] is None, "five items show nothing"
    assert paired_difference(np.array([0.5, 0.3, 0.1, 0.2]), np.zeros(4))["mde"] is None


def test_what_an_evaluation_can_show_is_known_before_it_runs() -> None:
    assert what_shows(500) == {"items": 500, "difference": detectable_gap(500, 50)}
    assert what_shows(5) == {"items": 5, "difference": None}, "five items show nothing"
    assert what_shows(None) is None


def test_seeds_of_shares_have_no_difference_above_1() -> None:
    found = seed_difference([np.ones(4), np.array([1.0, 0, 1, 1])], [np.zeros(4), np.zeros(4)])
    assert found["difference_interval"][1] == 1
    assert found["mde"] is None


def test_identical_is_said_of_items_not_of_means() -> None:
    one, other = np.array([1.0, 0, 1]), np.array([1.0, 1, 0])
    assert paired_difference(one, one)["identical"]
    assert not paired_difference(one, other)["identical"]
    assert seed_difference([one, other], [one, other])["identical"]
    assert not seed_difference([one, other], [other, other])["identical"]
    assert [verdict(p, same) for p, same in ((1.0, True), (None, False), (0.01, False), (0.5, False))] == [
        "identical",
        "not tested",
        "differs",
        "within noise",
    ]
