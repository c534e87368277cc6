"""Plots: the tidy tables behind every picture of a run, which `dvc plots` and the report draw alike."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from polars import selectors as cs

from persyn.defects import Policies
from persyn.rewards import RewardSettings, build_rewards

Scores = tuple[
    Mapping[str, pl.DataFrame], Mapping[str, pl.DataFrame], pl.DataFrame, Sequence[str], Policies, Sequence[str]
]
ALPHAS = [tenths / 10 for tenths in range(11)]
TIE = 1e-9  # rewards nearer than this are equal but for rounding


def allocation_curve(allocations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """Who answers how many prompts under each strategy.

    Args:
        allocations: strategy -> metrics/allocation/<strategy>.json.

    Returns:
        strategy, teacher, share (of the routes, 0 to 1), prompts (share times the prompts); in the order given.
    """
    rows = [
        (strategy, teacher, float(share), round(share * found["prompts"]))
        for strategy, found in allocations.items()
        for teacher, share in found["share"].items()
    ]
    schema = {"strategy": pl.String, "teacher": pl.String, "share": pl.Float64, "prompts": pl.Int64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def landscape_curve(rewards: pl.DataFrame) -> pl.DataFrame:
    """Where each teacher stands between quality and learnability.

    Args:
        rewards: REWARDS.

    Returns:
        teacher, its mean quality, learnability (nats a token) and reward over the parallel prompts it is scored on, and
        best: the share of all parallel prompts on which its reward is the highest, a tie shared equally; by teacher.
    """
    best = _best(rewards)
    means = rewards.group_by("teacher").agg(pl.col("quality", "learnability", "reward").mean()).sort("teacher")
    return means.join(best, on="teacher", how="left", validate="1:1", maintain_order="left").rename({"share": "best"})


def alpha_curve(
    quality: pl.DataFrame,
    learnability: pl.DataFrame,
    defects: pl.DataFrame,
    teachers: Sequence[str],
    policies: Policies,
    settings: RewardSettings,
    anchored: Sequence[str] = (),
) -> pl.DataFrame:
    """Who would be the best teacher of how many parallel prompts, were learnability weighed otherwise.

    Args:
        quality, learnability, defects, teachers, policies, anchored: as build_rewards takes them.
        settings: of the rewards; its alpha is passed over.

    Returns:
        alpha (0, 0.1 to 1), teacher, share (of the parallel prompts on which its reward is the highest, a tie shared
        equally; 0 to 1); by alpha, then teacher.

    Raises:
        InputError: as build_rewards.
    """
    tables = quality, learnability, defects, teachers, policies
    shares = [
        _best(build_rewards(*tables, settings.changed(alpha=alpha), anchored)[0]).select(
            pl.lit(alpha).alias("alpha"), pl.all()
        )
        for alpha in ALPHAS
    ]
    return pl.concat(shares)


def comparison_curve(comparison: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """What every strategy scores, and how far `persyn` is from it.

    Args:
        comparison: metrics/comparison.json.
        evaluations: strategy -> metrics/evaluation/<strategy>.json.

    Returns:
        task, metric, strategy, value, difference (persyn minus it), low, high (its 95 % interval), verdict; by task and
        metric, the strategies in the order given. What the comparison does not tell is null: all of persyn's own.
    """
    cells = sorted({(task, metric) for tasks in evaluations.values() for task in tasks for metric in tasks[task]})
    rows = []
    for task, metric in cells:
        for strategy, tasks in evaluations.items():
            scored = tasks.get(task, {}).get(metric)
            if scored is None:
                continue
            found = comparison.get(strategy, {}).get(task, {}).get(metric, {})
            low, high = found.get("interval") or (None, None)
            gap = found.get("difference"), low, high, found.get("verdict")
            rows.append((task, metric, strategy, scored["value"], *gap))
    names = dict.fromkeys(["task", "metric", "strategy"], pl.String)
    numbers = dict.fromkeys(["value", "difference", "low", "high"], pl.Float64)
    return pl.DataFrame(rows, schema={**names, **numbers, "verdict": pl.String}, orient="row")


def ledger_curve(cost: Mapping[str, Any]) -> pl.DataFrame:
    """What the chosen teachers' answers took under each strategy, were it alone beside the parallel set.

    Args:
        cost: metrics/cost.json.

    Returns:
        strategy, part (spent: answered anew; cached: taken from the parallel set), calls, prompt_tokens,
        response_tokens; two rows a strategy, in the order given.
    """
    uses = ("calls", "prompt_tokens", "response_tokens")
    rows = [
        (strategy, part, *(found[part][use] for use in uses))
        for strategy, found in cost["routed"].items()
        for part in ("spent", "cached")
    ]
    schema = {"strategy": pl.String, "part": pl.String, **dict.fromkeys(uses, pl.Int64)}
    return pl.DataFrame(rows, schema=schema, orient="row")


def build_plots(
    scores: Scores,
    weighing: RewardSettings,
    rewards: pl.DataFrame,
    allocations: Mapping[str, Mapping[str, Any]],
    evaluations: Mapping[str, Mapping[str, Any]],
    comparison: Mapping[str, Any],
    cost: Mapping[str, Any],
) -> dict[str, pl.DataFrame]:
    """All curves of a run, as DVC's own templates draw them: what they tell apart by a column has one each.

    Args:
        scores: teacher -> QUALITY, teacher -> LEARNABILITY, DEFECTS, and the last three of alpha_curve.
        weighing: the section `rewards` of params.yaml.
        rewards: REWARDS.
        allocations, evaluations, comparison, cost: as the curves of these names take them.

    Returns:
        name -> table, numbers to six significant digits. allocation, comparison and ledger begin with `bar`, what the
        bar stands for; comparison has no row of persyn's own. landscape has a column `<teacher> learnability` for
        each, alpha `<teacher> share`.

    Raises:
        InputError: as build_rewards.
    """
    quality, learnability, defects, teachers, policies, anchored = scores
    tables = pl.concat(quality.values()), pl.concat(learnability.values()), defects
    compared = comparison_curve(comparison, evaluations).filter(pl.col("difference").is_not_null())
    landscape, alpha = landscape_curve(rewards), alpha_curve(*tables, teachers, policies, weighing, anchored)
    curves = {
        "allocation": _labelled(allocation_curve(allocations), "strategy", "teacher"),
        "landscape": _spread(landscape, landscape.columns, "learnability"),
        "alpha": _spread(alpha, ["alpha"], "share"),
        "comparison": _labelled(compared, "strategy", "metric", "task"),
        "ledger": _labelled(ledger_curve(cost), "strategy", "part"),
    }
    return {name: curve.with_columns(cs.float().round_sig_figs(6)) for name, curve in curves.items()}


def plot_entries(teachers: Sequence[str], strategies: Sequence[str]) -> dict[str, Any]:
    """The plots of a DVC file, for those curves that must name every teacher or strategy; params.yaml alone knows them.

    The file is to lie beside the folders of the curves (`plots`) and of the training losses (`training`).
    """
    landscape, alpha = ([f"{teacher} {value}" for teacher in teachers] for value in ("learnability", "share"))
    entries: dict[str, dict[str, Any]] = {
        "quality and learnability of every teacher": {
            "template": "scatter",
            "x": "quality",
            "y": {"plots/landscape.csv": landscape},
            "y_label": "learnability (nats a token)",
        },
        "best teacher by alpha": {
            "template": "simple",
            "x": "alpha",
            "y": {"plots/alpha.csv": alpha},
            "y_label": "share of the parallel prompts",
        },
        "training loss": {
            "template": "simple",
            "x": "step",
            "y": {f"training/{strategy}.csv": "loss" for strategy in strategies},
        },
    }
    return {"plots": [{name: entry} for name, entry in entries.items()]}


def _best(rewards: pl.DataFrame) -> pl.DataFrame:
    """teacher, share: of the prompts of REWARDS, on how many its reward is the highest; a tie is shared equally."""
    first = pl.col("reward") >= pl.col("reward").max().over("prompt_id") - TIE
    won = first / first.sum().over("prompt_id")
    prompts = rewards["prompt_id"].n_unique()
    return rewards.with_columns(won=won).group_by("teacher").agg(share=pl.col("won").sum() / prompts).sort("teacher")


def _labelled(curve: pl.DataFrame, *names: str) -> pl.DataFrame:
    return curve.select(pl.concat_str(names, separator=", ").alias("bar"), pl.all())


def _spread(curve: pl.DataFrame, index: Sequence[str], value: str) -> pl.DataFrame:
    """One row a different `index`, and the value of each teacher in a column of its own; NaN where it has none, which
    is not drawn, while an empty cell is drawn as 0."""
    series = curve.select(*index, pl.col(value).alias("value"), series=pl.format("{} " + value, "teacher"))
    return series.pivot("series", index=index, values="value").with_columns(cs.float().fill_null(float("nan")))
