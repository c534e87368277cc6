import numpy as np
import polars as pl
import pytest
from scipy import stats

from persyn.comparison import compare_strategies, comparison_table, paired_difference
from persyn.schemas import SAMPLES, InputError


def samples(values: list[float]) -> pl.DataFrame:
    rows = [("task", f"s{i:03}", "acc", value, "text") for i, value in enumerate(values)]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


def test_binary_values_get_the_exact_mcnemar_test() -> None:
    reference, other = np.array([1] * 12 + [0] * 8), np.array([0] * 10 + [1] * 2 + [0] * 7 + [1])
    result = paired_difference(reference.astype(float), other.astype(float))
    assert result["difference"] == pytest.approx(9 / 20)
    assert result["p"] == pytest.approx(stats.binomtest(10, 11).pvalue)
    assert result["interval"][0] < 0.45 < result["interval"][1]
    assert result["verdict"] == "differs"
    assert result["n"] == 20


def test_no_difference_claims_nothing() -> None:
    result = paired_difference(np.ones(5), np.ones(5))
    expected = {"difference": 0.0, "interval": None, "p": 1.0, "mde": None, "n": 5, "verdict": "within noise"}
    assert result == expected


def test_a_small_gap_is_within_noise_and_the_detectable_one_is_larger() -> None:
    rng = np.random.default_rng(0)
    reference = rng.normal(size=40)
    result = paired_difference(reference, reference + rng.normal(size=40))
    assert result["verdict"] == "within noise"
    assert result["mde"] > abs(result["difference"])


def test_the_table_says_it_in_words() -> None:
    tables = {"persyn": samples([1, 0, 1, 1]), "random": samples([0, 0, 1, 1])}
    lines = comparison_table(tables, compare_strategies(tables)).splitlines()
    assert [cell.strip() for cell in lines[2].split("|")[1:-1]] == [
        "task",
        "acc",
        "persyn",
        "0.750",
        "-",
        "-",
        "-",
        "-",
    ]
    assert [cell.strip() for cell in lines[3].split("|")[3:6]] == ["random", "0.500", "+0.250"]
    assert "within noise" in lines[3]


def test_items_are_paired_by_their_content_whatever_the_order() -> None:
    table = compare_strategies({"persyn": samples([1, 0, 1]), "random": samples([0, 0, 1]).reverse()})
    assert table["random"]["task"]["acc"]["difference"] == pytest.approx(1 / 3)
    with pytest.raises(InputError, match="different items"):
        compare_strategies({"persyn": samples([1, 0, 1]), "random": samples([0, 0])})
    with pytest.raises(InputError, match="needs one called persyn"):
        compare_strategies({"random": samples([0])})
