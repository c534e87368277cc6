"""Other alphas and students: what they would choose, and what DVC's experiments with them found."""

import polars as pl
from markupsafe import Markup

from persyn.curves import allocation_curve, alpha_curve
from persyn.defects import Policies
from persyn.report import charts
from persyn.report.parts import REFERENCE, Chart, Run, Section, Table, decimal, percent


def alpha_section(run: Run) -> Section:
    """Who is best as learnability weighs more."""
    title = "How much should learnability weigh?"
    lead = "Alpha mixes the two scores: 0 is quality alone, 1 learnability alone. Nothing is paid for to draw this."
    params = dict(run.section("rewards"))
    missing = [stage for stage in ("quality", "learnability") if not getattr(run, stage)]
    if run.defects is None:
        missing.append("defects")
    if missing or "alpha" not in params:
        return Section("alpha", title, lead, missing=missing or ["rewards"])
    teachers = run.section("teachers")
    anchored = [name for name, entry in teachers.items() if (entry or {}).get("anchors") is not None]
    tables = pl.concat(run.quality.values()), pl.concat(run.learnability.values()), run.defects
    curve = alpha_curve(*tables, list(teachers), Policies(**run.section("defects")), anchored, **params)  # type: ignore[arg-type]
    scores = _alpha_scores(run)
    there = {name: look for name, look in run.teachers.items() if name in set(curve["teacher"])}
    best = curve.sort("share", descending=True).unique("alpha", keep="first").sort("alpha")
    told = "; ".join(f"{row['alpha']:g}: {row['teacher']} {row['share']:.0%}" for row in best.iter_rows(named=True))
    svg = charts.alpha_lines("alpha", f"Most often best by alpha. {told}", curve, there, params["alpha"], scores)
    caption = (
        "Share of the parallel prompts on which each teacher's reward is the highest, by alpha; dashed: this run's."
    )
    drawn = [Chart(svg, caption, there, "line")]
    if scores.height:
        tasks = charts.score_looks(scores)
        note = (
            f"Below: scores of the same student trained on {REFERENCE}'s data by alpha, from this run and experiments."
        )
        drawn.append(Chart(Markup(), note, tasks, "dot"))
    rows = [
        [f"{alpha:g}", *(percent(of.get(name)) for name in there)]
        for alpha in curve["alpha"].unique().sort()
        for of in [dict(curve.filter(alpha=alpha).select("teacher", "share").iter_rows())]
    ]
    return Section("alpha", title, lead, drawn, [Table("Best on, by alpha", ["alpha", *there], rows, folded=True)])


def by_run(run: Run) -> pl.DataFrame:
    student, alpha = run.section("student").get("model"), run.section("rewards").get("alpha")
    named = {f"this run: alpha {alpha}": run.metric("allocation")}
    for each in run.experiments:
        other = f", {each.student}" if each.student != student else ""
        named[f"{each.name}: alpha {each.alpha}{other}"] = each.allocation
    shares = {name: of[REFERENCE] for name, of in named.items() if REFERENCE in of}
    return allocation_curve(shares).rename({"strategy": "row"})


def runs_table(run: Run) -> Table:
    """Students and alphas with their scores under persyn."""
    own = (
        run.name,
        run.section("student").get("model", ""),
        run.section("rewards").get("alpha"),
        run.metric("evaluation"),
    )
    others = [(each.name, each.student, each.alpha, each.evaluation) for each in run.experiments]
    scores = [of.get(REFERENCE) or {} for *_, of in (own, *others)]
    cells = list(dict.fromkeys((task, metric) for of in scores for task, metrics in of.items() for metric in metrics))
    rows = [
        [name, str(student), decimal(alpha, 2)]
        + [decimal(((of.get(REFERENCE) or {}).get(task, {}).get(metric) or {}).get("value")) for task, metric in cells]
        for name, student, alpha, of in (own, *others)
    ]
    columns = ["run", "student", "alpha", *(f"{task} {metric}" for task, metric in cells)]
    return Table(f"This run and DVC's experiments: scores under {REFERENCE}", columns, rows, words=2)


def _alpha_scores(run: Run) -> pl.DataFrame:
    """alpha, task (and metric), value of the same student under persyn, where runs with other alphas are there."""
    own, student = run.section("rewards").get("alpha"), run.section("student").get("model")
    runs = [(own, run.metric("evaluation"))]
    runs += [(each.alpha, each.evaluation) for each in run.experiments if each.student == student]
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
