"""Plots: the tidy tables that both `dvc plots` and the report draw."""

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
from polars import selectors as cs

from persyn.defects import Policies
from persyn.rewards import RewardSettings, join_scores, mix_rewards
from persyn.ties import tie_width

Scores = tuple[
    Mapping[str, pl.DataFrame],
    Mapping[str, pl.DataFrame],
    pl.DataFrame,
    Sequence[str],
    Policies,
    Sequence[str],
    pl.DataFrame | None,
]
ALPHAS = [tenths / 10 for tenths in range(11)]


def allocation_curve(allocations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """How many prompts each teacher gets under each strategy.

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
        teacher; its mean quality, learnability (nats a token) and reward over the parallel prompts with its scores; and
        best: the share of all parallel prompts on which its reward is the highest, ties split equally. By teacher.
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
    domains: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """For how many parallel prompts each teacher would be the best under other weights of learnability.

    Args:
        quality, learnability, defects, teachers, policies, anchored, domains: as build_rewards takes them.
        settings: the section `rewards`; its alpha is ignored.

    Returns:
        alpha (0, 0.1 to 1), teacher, share (of the parallel prompts on which its reward is the highest, ties split
        equally; 0 to 1); sorted by alpha, then teacher.

    Raises:
        InputError: as build_rewards.
    """
    scores = join_scores(quality, learnability, defects, teachers, policies, anchored, domains)
    shares = [
        _best(mix_rewards(scores, settings.changed(alpha=alpha))).select(pl.lit(alpha).alias("alpha"), pl.all())
        for alpha in ALPHAS
    ]
    return pl.concat(shares)


def comparison_curve(comparison: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, Any]]) -> pl.DataFrame:
    """The scores of every strategy and of what stands beside them, and their differences from `persyn`.

    Args:
        comparison: metrics/comparison.json.
        evaluations: strategy -> metrics/evaluation/<strategy>.json; and the entries of metrics/beside.json.

    Returns:
        task, metric, strategy, value, difference (persyn minus it), low, high (its 95 % interval), verdict; by task and
        metric, the strategies in the order given. Values missing in the comparison, as all of persyn's own, are null.
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
    """Calls and tokens of the chosen teachers' responses under each strategy, as if no other strategy had run.

    Args:
        cost: metrics/cost.json.

    Returns:
        strategy, part (spent: newly generated; cached: taken from the parallel set), calls, prompt_tokens,
        response_tokens; two rows for each strategy, in the order given.
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
    """All curves of a run, in the form that DVC's own templates draw.

    Args:
        scores: teacher -> QUALITY, teacher -> LEARNABILITY, DEFECTS, and the last four of alpha_curve.
        weighing: the section `rewards` of params.yaml.
        rewards: REWARDS.
        allocations, evaluations, comparison, cost: as the curves of these names take them.

    Returns:
        name -> table, numbers to six significant digits. allocation, comparison and ledger begin with `bar`, the
        label of a bar; comparison has no rows of persyn itself. landscape has a column `<teacher> learnability` for
        each teacher, alpha a column `<teacher> share`.

    Raises:
        InputError: as build_rewards.
    """
    quality, learnability, defects, teachers, policies, anchored, domains = scores
    tables = pl.concat(quality.values()), pl.concat(learnability.values()), defects
    compared = comparison_curve(comparison, evaluations).filter(pl.col("difference").is_not_null())
    landscape = landscape_curve(rewards)
    alpha = alpha_curve(*tables, teachers, policies, weighing, anchored, domains)
    curves = {
        "allocation": _labelled(allocation_curve(allocations), "strategy", "teacher"),
        "landscape": _spread(landscape, landscape.columns, "learnability"),
        "alpha": _spread(alpha, ["alpha"], "share"),
        "comparison": _labelled(compared, "strategy", "metric", "task"),
        "ledger": _labelled(ledger_curve(cost), "strategy", "part"),
    }
    return {name: curve.with_columns(cs.float().round_sig_figs(6)) for name, curve in curves.items()}


def plot_entries(teachers: Sequence[str], strategies: Sequence[str]) -> dict[str, Any]:
    """The entries of a DVC plots file for the curves whose columns depend on the teachers or strategies.

    The file must be placed beside the folders of the curves (`plots`) and of the training losses (`training`).
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
    """teacher, share of the prompts of REWARDS on which its reward is the highest; ties are split equally."""
    first = pl.col("reward") >= pl.col("reward").max().over("prompt_id") - tie_width("reward")
    won = first / first.sum().over("prompt_id")
    prompts = rewards["prompt_id"].n_unique()
    return rewards.with_columns(won=won).group_by("teacher").agg(share=pl.col("won").sum() / prompts).sort("teacher")


def _labelled(curve: pl.DataFrame, *names: str) -> pl.DataFrame:
    return curve.select(pl.concat_str(names, separator=", ").alias("bar"), pl.all())


def _spread(curve: pl.DataFrame, index: Sequence[str], value: str) -> pl.DataFrame:
    """One row for each distinct `index`, and a column for each teacher's value; NaN if it has none: NaN is not drawn,
    while an empty cell is drawn as 0."""
    series = curve.select(*index, pl.col(value).alias("value"), series=pl.format("{} " + value, "teacher"))
    return series.pivot("series", index=index, values="value").with_columns(cs.float().fill_null(float("nan")))
