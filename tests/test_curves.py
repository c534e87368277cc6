"""Curves: the tables behind the pictures, by hand."""

import polars as pl
import pytest

from persyn.curves import allocation_curve, alpha_curve, comparison_curve, landscape_curve, ledger_curve
from persyn.defects import Policies
from persyn.schemas import DEFECTS, LEARNABILITY, QUALITY, REWARDS, InputError


def test_allocation() -> None:
    persyn = {"entropy": 0.6, "prompts": 48, "share": {"a": 0.645833, "b": 0.354167, "c": 0.0}}
    strong = {"entropy": 0.0, "prompts": 48, "share": {"a": 0.0, "b": 1.0, "c": 0.0}}
    curve = allocation_curve({"persyn": persyn, "strong": strong})
    assert curve.columns == ["strategy", "teacher", "share", "prompts"]
    assert curve.rows()[:3] == [("persyn", "a", 0.645833, 31), ("persyn", "b", 0.354167, 17), ("persyn", "c", 0.0, 0)]
    assert curve.filter(strategy="strong")["prompts"].to_list() == [0, 48, 0]


def test_landscape_shares_a_tie_and_counts_a_prompt_that_a_teacher_has_not() -> None:
    """p: a wins. q: a and b, equal but for rounding, share it. r: b wins, c is not scored there."""
    rows = [
        ("p", "a", 1.0, -1.0, 0.9), ("p", "b", 0.0, -2.0, 0.1), ("p", "c", 0.0, -3.0, 0.0),
        ("q", "a", 0.0, -2.0, 0.1 + 0.2), ("q", "b", 1.0, -2.0, 0.3), ("q", "c", 0.5, -5.0, 0.2),
        ("r", "a", 0.5, -3.0, 0.0), ("r", "b", 0.5, -2.0, 0.4),
    ]  # fmt: skip
    curve = landscape_curve(pl.DataFrame(rows, schema=REWARDS, orient="row"))
    assert curve.columns == ["teacher", "quality", "learnability", "reward", "best"]
    assert curve["teacher"].to_list() == ["a", "b", "c"]
    assert curve["quality"].to_list() == pytest.approx([0.5, 0.5, 0.25])
    assert curve["learnability"].to_list() == pytest.approx([-2.0, -2.0, -4.0])
    assert curve["reward"].to_list() == pytest.approx([0.4, 0.8 / 3, 0.1])
    assert curve["best"].to_list() == pytest.approx([1.5 / 3, 1.5 / 3, 0.0])


def scores() -> tuple[pl.DataFrame, pl.DataFrame]:
    """On p: a is best in quality, b in learnability, c the mean of both. On q all are equal but for b's quality."""
    quality = [("p", "a", 10.0), ("p", "b", 0.0), ("p", "c", 4.0), ("q", "a", 2.0), ("q", "b", 1.0), ("q", "c", 2.0)]
    learned = [
        ("p", "a", -3.0),
        ("p", "b", -1.0),
        ("p", "c", -2.2),
        ("q", "a", -1.0),
        ("q", "b", -1.0),
        ("q", "c", -1.0),
    ]
    table = pl.DataFrame([(*row, 5, False) for row in learned], schema=LEARNABILITY, orient="row")
    return pl.DataFrame(quality, schema=QUALITY, orient="row"), table


def test_alpha() -> None:
    """p: rewards 1 - alpha, alpha and 0.4: a wins below 0.5, b above, both at it (c, 0.4 there, never).

    q: quality 1, 0, 1 and no learnability: a and c share it, and at alpha 1 all three.
    """
    quality, learned = scores()
    curve = alpha_curve(quality, learned, pl.DataFrame(schema=DEFECTS), ["a", "b", "c"], Policies(), alpha=0.4)
    assert curve.columns == ["alpha", "teacher", "share"]
    assert curve["alpha"].unique(maintain_order=True).to_list() == [0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1]
    by_alpha = {alpha: rows["share"].to_list() for (alpha,), rows in curve.group_by("alpha", maintain_order=True)}
    for alpha in (0.0, 0.4):
        assert by_alpha[alpha] == pytest.approx([0.75, 0.0, 0.25])
    assert by_alpha[0.5] == pytest.approx([0.5, 0.25, 0.25])
    assert by_alpha[0.9] == pytest.approx([0.25, 0.5, 0.25])
    assert by_alpha[1.0] == pytest.approx([1 / 6, 4 / 6, 1 / 6])


def test_alpha_heeds_defects_and_the_other_parameters() -> None:
    quality, learned = scores()
    defects = pl.DataFrame([("p", "b", True, *[False] * 5)], schema=DEFECTS, orient="row")
    tables = quality, learned, defects, ["a", "b", "c"], Policies()
    assert alpha_curve(*tables).filter(alpha=1.0)["share"].to_list() == pytest.approx([1 / 6, 1 / 6, 4 / 6])
    assert alpha_curve(*tables, penalty=0.0).filter(alpha=1.0)["share"].to_list()[1] == pytest.approx(4 / 6)
    raw = alpha_curve(*tables, normalization="none").filter(alpha=0.7, teacher="a")
    assert raw["share"].to_list() == [0.75], "p by raw scores at 0.7: a 0.9, b -0.7 - 1, c -0.34"
    with pytest.raises(InputError, match="min_max"):
        alpha_curve(*tables, normalization="max")


def test_comparison() -> None:
    def scored(one: float, two: float) -> dict[str, dict[str, dict[str, float]]]:
        return {"math": {"exact": {"value": one}}, "ifeval": {"loose": {"value": two}}}

    evaluations = {"persyn": scored(0.5, 0.7), "strong": scored(0.25, 0.7)}
    differs = {"difference": 0.25, "interval": [0.1, 0.4], "verdict": "differs"}
    equal = {"difference": 0.0, "interval": None, "verdict": "within noise"}
    curve = comparison_curve({"strong": {"math": {"exact": differs}, "ifeval": {"loose": equal}}}, evaluations)
    assert curve.columns == ["task", "metric", "strategy", "value", "difference", "low", "high", "verdict"]
    assert curve.rows() == [
        ("ifeval", "loose", "persyn", 0.7, None, None, None, None),
        ("ifeval", "loose", "strong", 0.7, 0.0, None, None, "within noise"),
        ("math", "exact", "persyn", 0.5, None, None, None, None),
        ("math", "exact", "strong", 0.25, 0.25, 0.1, 0.4, "differs"),
    ]


def test_ledger() -> None:
    use = {"calls": 1, "prompt_tokens": 20, "response_tokens": 300}
    none = dict.fromkeys(use, 0)
    cost = {"routed": {"persyn": {"spent": use, "cached": none}, "strong": {"spent": none, "cached": use}}}
    curve = ledger_curve(cost)
    assert curve.columns == ["strategy", "part", "calls", "prompt_tokens", "response_tokens"]
    assert curve.rows() == [
        ("persyn", "spent", 1, 20, 300),
        ("persyn", "cached", 0, 0, 0),
        ("strong", "spent", 0, 0, 0),
        ("strong", "cached", 1, 20, 300),
    ]
