"""Curves: the tables behind the pictures, by hand."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from ruamel.yaml import YAML

from persyn.defects import Policies
from persyn.files import write_json, write_text
from persyn.plots import (
    allocation_curve,
    alpha_curve,
    build_plots,
    comparison_curve,
    landscape_curve,
    ledger_curve,
    plot_entries,
)
from persyn.rewards import RewardSettings, build_rewards
from persyn.schemas import DEFECTS, LEARNABILITY, QUALITY, REWARDS

ROOT = Path(__file__).parent.parent
SETTINGS = RewardSettings(alpha=0.4)


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
    tables = quality, learned, pl.DataFrame(schema=DEFECTS), ["a", "b", "c"], Policies()
    curve = alpha_curve(*tables, SETTINGS)
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
    defects = pl.DataFrame([("p", "b", True, *[False] * 6)], schema=DEFECTS, orient="row")
    tables = quality, learned, defects, ["a", "b", "c"], Policies()
    assert alpha_curve(*tables, SETTINGS).filter(alpha=1.0)["share"].to_list() == pytest.approx([1 / 6, 1 / 6, 4 / 6])
    lenient = alpha_curve(*tables, SETTINGS.changed(penalty=0.0)).filter(alpha=1.0)
    assert lenient["share"].to_list()[1] == pytest.approx(4 / 6)
    raw = alpha_curve(*tables, SETTINGS.changed(normalization="none")).filter(alpha=0.7, teacher="a")
    assert raw["share"].to_list() == [0.75], "p by raw scores at 0.7: a 0.9, b -0.7 - 1, c -0.34"


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


def run(strategies: list[str]) -> dict[str, pl.DataFrame]:
    """The curves of teachers a, b and c on `scores`, under strategies that all do the same."""
    quality, learned = scores()
    by_teacher = [{t: table.filter(teacher=t) for t in "abc"} for table in (quality, learned)]
    rewards, _ = build_rewards(quality, learned, pl.DataFrame(schema=DEFECTS), ["a", "b", "c"], Policies(), SETTINGS)
    same = {"difference": 0.0, "interval": None, "verdict": "within noise"}
    comparison = {name: {"math": {"exact": same}} for name in strategies if name != "persyn"}
    use = {"calls": 1, "prompt_tokens": 20, "response_tokens": 300}
    return build_plots(
        (by_teacher[0], by_teacher[1], pl.DataFrame(schema=DEFECTS), ["a", "b", "c"], Policies(), (), None),
        SETTINGS,
        rewards,
        {name: {"prompts": 2, "share": {"a": 0.5, "b": 0.0, "c": 0.5}} for name in strategies},
        {name: {"math": {"exact": {"value": 0.5}}} for name in strategies},
        comparison,
        {"routed": {name: {"spent": use, "cached": use} for name in strategies}},
    )


def test_every_teacher_is_a_column_of_its_own_where_a_plot_has_one_line_each() -> None:
    curves = run(["persyn", "mix"])
    alpha, landscape = curves["alpha"], curves["landscape"]
    assert alpha.row(0) == (0.0, 0.75, 0.0, 0.25), "alpha 0: shares of a, b and c, as above"
    assert alpha.height == 11
    assert landscape["a learnability"].fill_nan(None).to_list() == [-2.0, None, None]
    assert landscape["quality"].to_list() == [6.0, 0.5, 3.0]
    assert curves["comparison"]["bar"].to_list() == ["mix, exact, math"]
    assert curves["ledger"]["bar"].to_list() == ["persyn, spent", "persyn, cached", "mix, spent", "mix, cached"]


@pytest.mark.parametrize("strategies", [["persyn", "mix", "car"], ["persyn"]])
def test_dvc_draws_every_plot_of_whatever_teachers_and_strategies(strategies: list[str], tmp_path: Path) -> None:
    shutil.copy(ROOT / "dvc.yaml", tmp_path)
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml") | {"strategies": dict.fromkeys(strategies)}
    YAML().dump(params, tmp_path / "params.yaml")
    reports = tmp_path / "metrics" / "reports"
    for name, curve in run(strategies).items():
        write_text(curve.write_csv(), reports / "plots" / f"{name}.csv")
    of_strategies = [f"{kind}/{name}" for kind in ("allocation", "dataset", "evaluation") for name in strategies]
    for name in ("prompts", "defects", "rewards", "router", "beside", "comparison", "cost", *of_strategies):
        write_json({}, tmp_path / "metrics" / f"{name}.json")  # they are plots to DVC, for its run cache
    for name in strategies:
        write_text("step,loss\n1,2.0\n2,1.0\n", reports / "training" / f"{name}.csv")
    write_text("confidence,accuracy,pairs\n0.6,0.5,3\n", reports / "reliability.csv")
    write_json(plot_entries(["a", "b", "c"], strategies), reports / "dvc.yaml")
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=tmp_path, check=True)
    shown = subprocess.run([*dvc, "plots", "show", "--json"], cwd=tmp_path, check=True, capture_output=True).stdout
    plots = json.loads(shown)
    assert "errors" not in plots
    drawn = {name: plot[0]["content"]["data"]["values"] for name, plot in plots["data"].items() if plot}
    assert {row["field"] for row in drawn["best teacher by alpha"]} == {"a share", "b share", "c share"}
    points = [row for row in drawn["quality and learnability of every teacher"] if row["dvc_inferred_y_value"] != "NaN"]
    assert [(row["field"], row["dvc_inferred_y_value"]) for row in points] == [
        ("a learnability", "-2.0"),
        ("b learnability", "-1.0"),
        ("c learnability", "-1.6"),
    ]
    assert len(drawn["training loss"]) == 2 * len(strategies)
    assert len(drawn["allocation"]) == 3 * len(strategies)
    assert len(drawn["ledger"]) == 2 * len(strategies)
    assert len(drawn.get("persyn minus the others", [])) == len(strategies) - 1
    assert "metrics/reports/reliability.csv" in drawn
