from collections.abc import Iterable
from typing import Any

import numpy as np
import polars as pl
import pytest
from scipy import stats

from persyn.comparison import (
    compare_seeds,
    compare_strategies,
    comparison_table,
    cut_shares,
    seeds_table,
    told_cuts,
)
from persyn.errors import InputError
from persyn.schemas import SAMPLES
from persyn.statistics import detectable_shift, holm, paired_difference

NO_NOISE = {"difference_interval": None, "p": None, "mde": None, "p_holm": None}


def samples(values: Iterable[float], task: str = "task", first: int = 0, cut: int | None = 0) -> pl.DataFrame:
    """`cut`: so many of the responses were cut."""
    told = [None if cut is None else at < cut for at in range(10_000)]
    rows = [(task, f"s{i:03}", "acc", float(value), "text", told[i - first]) for i, value in enumerate(values, first)]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


def scores(seeds: dict[str, list[pl.DataFrame]], strategy: str, reference: str = "persyn") -> dict[str, Any]:
    return compare_seeds(seeds, reference)[strategy]["task"]["acc"]


def shifted(gaps: list[float]) -> dict[str, list[pl.DataFrame]]:
    """`persyn` better than `random` by these gaps, one a seed, on each of four items."""
    return {
        "persyn": [samples([gap, gap + 1, gap + 2, gap + 3]) for gap in gaps],
        "random": [samples([0, 1, 2, 3]) for _ in gaps],
    }


def cells(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]


def test_binary_values_get_the_exact_mcnemar_test() -> None:
    reference, other = np.array([1] * 12 + [0] * 8), np.array([0] * 10 + [1] * 2 + [0] * 7 + [1])
    result = paired_difference(reference.astype(float), other.astype(float))
    assert result["difference"] == pytest.approx(9 / 20)
    assert result["p"] == pytest.approx(stats.binomtest(10, 11).pvalue)
    assert result["interval"][0] < 0.45 < result["interval"][1]
    assert result["n"] == 20


def test_no_difference_claims_nothing() -> None:
    result = paired_difference(np.ones(5), np.ones(5))
    assert result == {"difference": 0.0, "interval": None, "p": 1.0, "mde": None, "n": 5, "identical": True}
    found = compare_strategies({"persyn": samples([1, 1]), "random": samples([1, 1])})["random"]["task"]["acc"]
    assert found["p_holm"] == 1.0
    assert found["verdict"] == "identical"


def test_a_small_gap_is_within_noise_and_the_detectable_one_is_larger() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=40)
    result = paired_difference(reference, reference + rng.normal(size=40))
    assert result["p"] > 0.05
    assert result["mde"] > abs(result["difference"])


def test_the_table_says_it_in_words() -> None:
    tables = {"persyn": samples([1, 0, 1, 1]), "random": samples([0, 0, 1, 1])}
    header, _, persyn, random = cells(comparison_table(tables, compare_strategies(tables)))
    assert header[3:] == ["value", "persyn minus it", "95 %", "p (Holm)", "smallest detectable", "verdict"]
    assert persyn == ["task", "acc", "persyn", "0.750", "-", "-", "-", "-", "-"]
    assert random[2:5] == ["random", "0.500", "+0.250"]
    assert random[6:] == ["1.000", "none with 4 items", "within noise"]


def test_a_metric_that_is_0_for_all_is_named_below_the_table() -> None:
    silent = {name: samples([0, 0]).with_columns(metric=pl.lit("exact")) for name in ("persyn", "random")}
    tables = {name: pl.concat([samples([1, 0]), table]) for name, table in silent.items()}
    table, _, note = comparison_table(tables, compare_strategies(tables)).rpartition("\n\n")
    assert "exact" not in table
    assert note == "Left out: exact of task, which is 0 for all of them."
    assert comparison_table(silent, compare_strategies(silent)).count("| exact ") == 2, "a task keeps its only metric"


def test_items_are_paired_by_their_content_whatever_the_order() -> None:
    table = compare_strategies({"persyn": samples([1, 0, 1]), "random": samples([0, 0, 1]).reverse()})
    assert table["random"]["task"]["acc"]["difference"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="different items"):
        compare_strategies({"persyn": samples([1, 0, 1]), "random": samples([0, 0])})
    with pytest.raises(InputError, match="needs one called persyn"):
        compare_strategies({"random": samples([0])})
    with pytest.raises(InputError, match=r"persyn: .*s000.* occurs twice"):
        compare_strategies({"random": samples([1]), "persyn": pl.concat([samples([1])] * 2)})


def test_holm_by_hand() -> None:
    # sorted .005 x4 = .02, .01 x3 = .03, .03 x2 = .06, .04 x1 = .04 but never below the one before
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([0.2]) == [0.2]
    assert holm([]) == []


def test_holm_agrees_with_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    p = np.random.default_rng(0).beta(0.3, 1, size=20)
    assert holm(p.tolist()) == pytest.approx(multitest.multipletests(p, method="holm")[1])


def test_a_verdict_counts_how_many_strategies_were_tried() -> None:
    better, worse = samples([1] * 6 + [0, 1] * 7), samples([0] * 6 + [0, 1] * 7)
    alone = compare_strategies({"persyn": better, "a": worse})["a"]["task"]["acc"]
    among = compare_strategies({"persyn": better, "a": worse, "b": better, "c": better})
    assert alone["p"] == alone["p_holm"] == pytest.approx(2 / 2**6)
    assert alone["verdict"] == "differs"
    assert among["a"]["task"]["acc"] == {**alone, "p_holm": pytest.approx(6 / 2**6), "verdict": "within noise"}
    assert among["b"]["task"]["acc"]["p_holm"] == 1.0


def test_seeds_by_hand() -> None:
    found = scores(shifted([1, 2, 3]), "random")
    half = 4.302653 / np.sqrt(3)  # t(0.975, 2) times the standard error of 1, 2, 3, whose deviation is 1
    assert found["difference"] == pytest.approx(2)
    assert found["difference_interval"] == pytest.approx([2 - half, 2 + half])
    assert found["p"] == pytest.approx(2 * stats.t.sf(2 * np.sqrt(3), 2))
    assert found["p"] == pytest.approx(0.0741799, abs=1e-6)
    assert found["mde"] == pytest.approx(detectable_shift(3) / np.sqrt(3))
    assert found["p_items"] < 0.01, "all 12 items are better"
    assert found["verdict"] == "within noise"
    assert (found["mean"], found["interval"], found["seeds"]) == (1.5, None, [1.5] * 3)
    persyn = scores(shifted([1, 2, 3]), "persyn")
    expected = {"mean": 3.5, "interval": pytest.approx([3.5 - half, 3.5 + half]), "seeds": [2.5, 3.5, 4.5]}
    assert persyn == {**expected, "n_seeds": 3, "n_items": 12, "cut": 0.0}


def test_pooled_binary_items_get_the_exact_mcnemar_test() -> None:
    seeds = {"persyn": [samples([1, 1, 0, 1]), samples([1, 1, 1])], "random": [samples([0, 0, 1, 1]), samples([0] * 3)]}
    found = scores(seeds, "random")
    assert found["p_items"] == pytest.approx(stats.binomtest(5, 6).pvalue)
    assert found["difference"] == pytest.approx((0.25 + 1) / 2), "a seed counts as one, however many its items"
    assert found["n_items"] == 7


def test_any_strategy_may_be_the_reference() -> None:
    there, back = scores(shifted([1, 2, 4]), "random"), scores(shifted([1, 2, 4]), "persyn", reference="random")
    assert back["difference"] == -there["difference"]
    assert back["difference_interval"] == pytest.approx([-bound for bound in there["difference_interval"][::-1]])
    assert back["p"] == pytest.approx(there["p"])
    assert "p" not in scores(shifted([1, 2, 4]), "random", reference="random")


@pytest.mark.parametrize("gaps", [[0.5], [0.1, 0.1, 0.1], [0.0, 0.0], [0.1 + 0.2, 0.3]])
def test_without_noise_between_seeds_nothing_is_claimed(gaps: list[float]) -> None:
    comparison = compare_seeds(shifted(gaps))
    found = comparison["random"]["task"]["acc"]
    assert found["difference"] == pytest.approx(np.mean(gaps))
    assert found["n_seeds"] == len(gaps)
    assert NO_NOISE.items() <= found.items()
    assert found["verdict"] == ("not tested" if any(gaps) else "identical")
    assert cells(seeds_table(comparison))[-1][-3:] == ["-", "-", found["verdict"]]


def test_under_the_null_few_experiments_claim_anything() -> None:
    """Trainings differ by their seed alone: the test over seeds holds its level, the one over pooled items does not."""
    rng = np.random.default_rng(0)
    claims, p_items = 0, []
    for _ in range(200):
        ability = rng.normal(size=40) + rng.normal(scale=0.8, size=(3, 4, 1))
        correct = rng.random((3, 4, 40)) < 1 / (1 + np.exp(-ability))
        names = ("persyn", "random", "strong")
        comparison = compare_seeds({n: [samples(seed) for seed in c] for n, c in zip(names, correct, strict=True)})
        found = [comparison[name]["task"]["acc"] for name in names[1:]]
        claims += min(each["p_holm"] or 1.0 for each in found) < 0.05
        p_items += [each["p_items"] for each in found]
    assert claims / 200 <= 0.09
    assert np.mean(np.array(p_items) < 0.05) > 0.15


def test_a_planted_difference_is_found_and_the_table_says_which() -> None:
    rng = np.random.default_rng(0)
    ability = {"persyn": 2.0, "random": 0.0, "strong": 1.9}
    logits = rng.normal(size=(4, 300))
    seeds = {n: [samples(rng.random(300) < 1 / (1 + np.exp(-x - by))) for x in logits] for n, by in ability.items()}
    comparison = compare_seeds(seeds)
    assert comparison["random"]["task"]["acc"]["p_holm"] < 0.05
    assert comparison["random"]["task"]["acc"]["difference"] > comparison["random"]["task"]["acc"]["mde"]
    header, _, *rows = cells(seeds_table(comparison))
    assert header[3:] == [
        "mean [95 % over seeds]",
        "persyn minus it [95 %]",
        "p (Holm)",
        "smallest detectable",
        "verdict",
    ]
    means = [float(row[3].split()[0]) for row in rows]
    assert means == sorted(means, reverse=True)
    by_strategy = {row[2]: row for row in rows}
    assert by_strategy["persyn"][4:] == ["-"] * 4
    assert by_strategy["random"][-1] == "differs"
    assert by_strategy["strong"][-1] == "within noise"
    found = comparison["strong"]["task"]["acc"]
    low, high = found["difference_interval"]
    shown = [f"{found['difference']:+.3f} [{low:+.3f}, {high:+.3f}]", f"{found['p_holm']:.3f}", f"{found['mde']:.3f}"]
    assert by_strategy["strong"][4:-1] == shown


@pytest.mark.parametrize("num_seeds", [2, 3, 5, 10])
def test_the_smallest_detectable_difference_is_found_four_times_in_five(num_seeds: int) -> None:
    rng = np.random.default_rng(0)
    gaps = rng.normal(size=num_seeds)
    gaps /= gaps.std(ddof=1)
    mde = scores(shifted(gaps.tolist()), "random")["mde"]
    repeated = rng.normal(loc=mde, size=(4000, num_seeds))
    assert np.mean(stats.ttest_1samp(repeated, 0, axis=1).pvalue < 0.05) == pytest.approx(0.8, abs=0.03)


def test_seeds_are_paired_by_item_whatever_the_order_and_may_have_other_items() -> None:
    other = {"persyn": [samples([1, 0, 1]), samples([1, 1], first=7)]}
    other["random"] = [samples([0, 0, 1]).reverse(), samples([0, 1], first=7)[::-1]]
    found = scores(other, "random")
    assert found["difference"] == pytest.approx((1 / 3 + 1 / 2) / 2)
    assert found["p_items"] == pytest.approx(stats.binomtest(2, 2).pvalue)
    assert scores({name: tables[::-1] for name, tables in other.items()}, "random")["p"] == pytest.approx(found["p"])


def test_seeds_that_cannot_be_compared() -> None:
    one, two = samples([1, 0]), samples([0, 1])
    with pytest.raises(InputError, match="'persin' is not among the strategies; did you mean persyn"):
        compare_seeds({"persyn": [one], "random": [two]}, reference="persin")
    with pytest.raises(InputError, match=r"\{'persyn': 2, 'random': 1\}; evaluate every strategy with the same seeds"):
        compare_seeds({"persyn": [one, two], "random": [two]})
    with pytest.raises(InputError, match="at least one"):
        compare_seeds({"persyn": []})
    with pytest.raises(InputError, match=r"seed 1: random and persyn were evaluated on different items \(2 are in "):
        compare_seeds({"persyn": [one, one], "random": [two, samples([0, 1], first=1)]})
    with pytest.raises(InputError, match=r"seed 0: random: .*s000.* occurs twice"):
        compare_seeds({"persyn": [one], "random": [pl.concat([two, two])]})
    with pytest.raises(InputError, match=r"seeds 0 and 1 do not both have .*\('else', 'acc'\)"):
        compare_seeds({"persyn": [one, samples([1], "else")], "random": [two, samples([1], "else")]})


@pytest.mark.parametrize("value", [1.0, 0.3])
def test_one_item_proves_nothing(value: float) -> None:
    """One held-out prompt, or one seed of a router's metric."""
    found = paired_difference(np.array([value]), np.array([0.0]))
    assert found == {"difference": value, "interval": None, "p": 1.0, "mde": None, "n": 1, "identical": False}
    tables = {"persyn": [samples([value])], "random": [samples([0.0])]}
    assert compare_seeds(tables)["random"]["task"]["acc"]["verdict"] == "not tested"


def test_accuracies_stay_in_0_and_1_and_the_same_runs_are_not_noise() -> None:
    """Before: 0.917 [0.558, 1.275], and "within noise" of itself."""
    seeds = [samples([1, 1, 1, 1]), samples([1, 1, 1, 0]), samples([1, 1, 1, 1])]
    comparison = compare_seeds({"persyn": seeds, "random": seeds, "strong": [samples([0, 1, 0, 0])] * 3})
    low, high = comparison["persyn"]["task"]["acc"]["interval"]
    assert 0 < low < 11 / 12 < high < 1
    verdicts = [comparison[name]["task"]["acc"]["verdict"] for name in ("random", "strong")]
    assert verdicts == ["identical", "differs"]
    swapped = [samples([1, 1, 1, 1]), samples([1, 1, 0, 1]), samples([1, 1, 1, 1])]
    found = scores({"persyn": seeds, "random": swapped}, "random")
    assert (found["difference"], found["verdict"]) == (0, "not tested"), "the means are equal, an item is not"
    assert scores({"persyn": [samples([0.5, 1.5])] * 2, "random": [samples([0, 0])] * 2}, "random")["interval"] is None


def test_cut_responses_are_told_beside_the_scores_and_students_unlike_in_them_are_warned_of() -> None:
    ran_on = {"persyn": samples([1] * 100, cut=2), "untuned": samples([0] * 100, cut=60)}
    table = comparison_table(ran_on, compare_strategies(ran_on))
    said = "Responses to task that reached the token limit and were cut: persyn 2.0%, untuned 60.0%."
    assert said in table
    assert "may differ for the length of the responses alone" in table
    alike = {"persyn": samples([1] * 100, cut=2), "untuned": samples([0] * 100, cut=5)}
    [line] = told_cuts(cut_shares(alike))
    assert line.endswith("persyn 2.0%, untuned 5.0%."), "told, without a warning"
    for never in (0, None):
        assert not told_cuts(cut_shares({"persyn": samples([1], cut=never), "untuned": samples([0], cut=never)}))
    seeds = compare_seeds({name: [table, table] for name, table in ran_on.items()})
    assert seeds["untuned"]["task"]["acc"]["cut"] == 0.6
