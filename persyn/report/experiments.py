"""Other alphas and students: their choices, and the results of DVC's experiments with them."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from markupsafe import Markup

from persyn.defects import Policies
from persyn.errors import InputError
from persyn.plots import allocation_curve, alpha_curve
from persyn.project.snapshot import Snapshot, changed_values
from persyn.quality import QualitySettings
from persyn.report import charts
from persyn.report.page import REFERENCE, Chart, Section, Table, decimal, listed, percent, teacher_looks
from persyn.rewards import RewardSettings, with_student

OUTSIDE = ("budget", "licenses", "prices", "speed", "strategies")
"""Sections of params.yaml that do not change the results of persyn."""


def alpha_section(run: Snapshot) -> Section:
    """The best teachers by the weight of learnability."""
    title = "How much should learnability weigh?"
    lead = "Alpha mixes the two scores: 0 is quality alone, 1 learnability alone. Nothing is paid for to draw this."
    params, policies = run.section("rewards"), run.section("defects")
    missing = [stage for stage in ("quality", "learnability") if not getattr(run, stage)]
    defects = run.defects
    if missing or defects is None or "alpha" not in params:
        missing += ["defects"] * (defects is None)
        return Section("alpha", title, lead, missing=missing or ["rewards"])
    quality = dict(run.quality)
    own = quality.pop(run.student, None)
    tables = pl.concat(quality.values()), pl.concat(run.learnability.values()), defects
    try:
        how = Policies.parse(policies, "defects"), RewardSettings.parse(params, "rewards")
        domains = run.prompts if own is None else _with_own(run, own, how[0])
        curve = alpha_curve(*tables, run.teachers, *how, run.anchored, domains)
    except InputError as error:  # a teacher may have no scores yet
        return Section("alpha", title, lead, notes=[f"This cannot be drawn: {error}."])
    scores = _alpha_scores(run)
    there = {name: look for name, look in teacher_looks(run).items() if name in set(curve["teacher"])}
    best = curve.sort("share", descending=True).unique("alpha", keep="first").sort("alpha")
    told = "; ".join(f"{row['alpha']:g}: {row['teacher']} {row['share']:.0%}" for row in best.iter_rows(named=True))
    svg = charts.alpha_lines("alpha", f"Most often best by alpha. {told}", curve, there, params["alpha"], scores)
    caption = (
        "Share of the parallel prompts on which each teacher's reward is the highest, by alpha; dashed: this run's."
    )
    drawn = [Chart(svg, caption, there, "line")]
    if scores.height:
        tasks = charts.score_looks(scores)
        note = f"Below: scores under {REFERENCE} of this run and of the experiments that differ from it in alpha alone."
        drawn.append(Chart(Markup(), note, tasks, "dot"))
    rows = [
        [f"{alpha:g}", *(percent(of.get(name)) for name in there)]
        for alpha in curve["alpha"].unique().sort()
        for of in [dict(curve.filter(alpha=alpha).select("teacher", "share").iter_rows())]
    ]
    table = Table("Best on, by alpha", ["alpha", *there], rows, folded=True)
    return Section("alpha", title, lead, drawn, [table], by_anchors(run))


def _with_own(run: Snapshot, own: pl.DataFrame, policies: Policies) -> pl.DataFrame:
    """As with_student; of several samples of the student the first."""
    scales = QualitySettings.parse(run.section("quality"), "quality").scales
    return with_student(run.need("prompts"), own, run.need("defects"), policies, scales)


def by_anchors(run: Snapshot) -> list[str]:
    """A note on shares and means, if some teachers responded to a few parallel prompts only."""
    if run.rewards is None or not run.anchored:
        return []
    scored = dict(run.rewards["teacher"].value_counts().rows())
    few = listed([f"{name} ({scored.get(name, 0):,})" for name in run.anchored])
    prompts = run.rewards["prompt_id"].n_unique()
    return [
        f"Teachers with anchors are scored on so many of the {prompts:,} prompts only: {few}. Their means are over "
        "those, the share on which they are the best is of all."
    ]


def by_run(run: Snapshot) -> pl.DataFrame:
    """row, teacher, share, prompts: allocation of this run and of the experiments, labelled by what differs."""
    named = {f"this run: alpha {_alpha(run.params)}": run.metric("allocation")}
    for each in run.experiments:
        others = _others(run, each)
        also = f", {listed(others, 3)}" if others else ""
        named[f"{each.title}: alpha {_alpha(each.params)}{also}"] = each.metric("allocation")
    shares = {name: of[REFERENCE] for name, of in named.items() if REFERENCE in of}
    return allocation_curve(shares).rename({"strategy": "row"})


def runs_table(run: Snapshot) -> Table:
    """Students and alphas with their scores under persyn."""
    runs = [run, *run.experiments]
    scores = [each.metric("evaluation").get(REFERENCE) or {} for each in runs]
    cells = list(dict.fromkeys((task, metric) for of in scores for task, metrics in of.items() for metric in metrics))
    rows = [
        [each.title, _student(each.params), listed(_others(run, each), 4) or "—", decimal(_alpha(each.params), 2)]
        + [decimal((of.get(task, {}).get(metric) or {}).get("value")) for task, metric in cells]
        for each, of in zip(runs, scores, strict=True)
    ]
    columns = ["run", "student", "differs also in", "alpha", *(f"{task} {metric}" for task, metric in cells)]
    return Table(f"This run and DVC's experiments: scores under {REFERENCE}", columns, rows, words=3)


def _alpha_scores(run: Snapshot) -> pl.DataFrame:
    """alpha, task (and metric), value under persyn, for runs that differ only in alpha."""
    runs = [(_alpha(run.params), run.metric("evaluation"))]
    runs += [(_alpha(each.params), each.metric("evaluation")) for each in run.experiments if not _others(run, each)]
    schema = {"alpha": pl.Float64, "task": pl.String, "value": pl.Float64}
    if len({alpha for alpha, _ in runs}) < 2:
        return pl.DataFrame(schema=schema)
    rows = [
        (alpha, f"{task} {metric}", found["value"])
        for alpha, of in runs
        for task, metrics in (of.get(REFERENCE) or {}).items()
        for metric, found in metrics.items()
    ]
    return pl.DataFrame(rows, schema=schema, orient="row")


def _alpha(params: Mapping[str, Any]) -> float | None:
    return (params.get("rewards") or {}).get("alpha")


def _student(params: Mapping[str, Any]) -> str:
    return str((params.get("student") or {}).get("model", ""))


def _others(run: Snapshot, each: Snapshot) -> list[str]:
    """The parameters other than alpha that differ between an experiment and this run; its student by name."""
    changed = changed_values(*map(_deciding, (run.params, each.params)))
    return [_student(each.params) if path == "student.model" else path for path in changed if path != "rewards.alpha"]


def _deciding(params: Mapping[str, Any]) -> dict[str, Any]:
    rule = (params.get("strategies") or {}).get(REFERENCE)
    return {key: of for key, of in params.items() if key not in OUTSIDE} | {REFERENCE: rule}
