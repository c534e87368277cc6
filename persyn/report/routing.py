"""Where the prompts went and why: allocation, reward landscape, router, alpha."""

from typing import Any

import polars as pl

from persyn.curves import allocation_curve, alpha_curve, landscape_curve
from persyn.defects import Policies
from persyn.report import charts
from persyn.report.parts import REFERENCE, Chart, Run, Section, Table, count, decimal, interval, percent
from persyn.report.svg import Look, looks


def allocation_section(run: Run) -> Section:
    """Who got how many prompts: by strategy, by source under persyn, and by run."""
    title, lead = (
        "Where the prompts went",
        "Each strategy gives every prompt one teacher; bars are shares of the prompts.",
    )
    allocations = run.metric("allocation")
    if not allocations:
        return Section("allocation", title, lead, missing=["routes"])
    order = [name for name in run.strategies if name in allocations] or list(allocations)
    curve = allocation_curve({name: allocations[name] for name in order})
    used = _used(run, curve)
    svg = charts.stacked_shares("allocation", _told(curve, "strategy"), curve.rename({"strategy": "row"}), used)
    drawn = [Chart(svg, "Share of the prompts by teacher, a bar a strategy.", used)]
    tables = [_counts("Prompts by strategy and teacher", curve, "strategy", used)]
    by_source = _by_source(run)
    if by_source is not None:
        svg = charts.stacked_shares("sources", _told(by_source, "row"), by_source, used)
        drawn.append(Chart(svg, f"The same under {REFERENCE}, a bar a domain and source."))
        tables.append(_counts(f"{REFERENCE}: prompts by domain and source", by_source, "row", used))
    if run.experiments:
        runs = _by_run(run)
        svg = charts.stacked_shares("runs", _told(runs, "row"), runs, used)
        drawn.append(Chart(svg, f"{REFERENCE} in this run and in DVC's experiments: student and alpha with the name."))
        tables.append(_runs(run))
    notes = [run.experiments_note] if run.experiments_note else []
    return Section("allocation", title, lead, drawn, tables, notes)


def landscape_section(run: Run) -> Section:
    """Quality against learnability."""
    title = "Why: quality and learnability of what the teachers wrote"
    lead = (
        "A response is worth its quality and how likely the student finds it (learnability, the mean log-probability "
        "of a token: higher is easier). Far to the left is what this student cannot follow yet."
    )
    if run.rewards is None or run.rewards.is_empty():
        return Section("landscape", title, lead, missing=["rewards"])
    domains = (
        {} if run.prompts is None else dict(run.prompts.select("prompt_id", pl.col("domain").cast(pl.String)).rows())
    )
    curve = landscape_curve(run.rewards)
    there = {name: look for name, look in run.teachers.items() if name in set(curve["teacher"])}
    told = "; ".join(
        f"{row['teacher']}: quality {row['quality']:.2f}, learnability {row['learnability']:.2f}"
        for row in curve.iter_rows(named=True)
    )
    svg = charts.landscape("landscape", f"Mean quality and learnability. {told}", run.rewards, there, domains)
    caption = "Small: responses on the parallel set. Large, outlined: a teacher's mean."
    if run.rewards.height > charts.MAX_POINTS:
        caption += f" Of {run.rewards.height:,} responses about {charts.MAX_POINTS:,} are drawn; means are of all."
    if run.rewards["quality"].n_unique() <= 10:
        caption += " Quality has few values: points are spread a little up and down so that they can be seen."
    rows = {row["teacher"]: row for row in curve.iter_rows(named=True)}
    fields = ("quality", "learnability", "reward")
    table = Table(
        "Means over the parallel set; best: the share of prompts on which its reward is the highest, ties shared.",
        ["teacher", "quality", "learnability (nats a token)", "reward", "best on"],
        [[name, *(decimal(rows[name][of]) for of in fields), percent(rows[name]["best"])] for name in there],
    )
    return Section("landscape", title, lead, [Chart(svg, caption, there, "dot")], [table])


def router_section(run: Run) -> Section:
    """The health card."""
    title, card = "Is the router any good?", run.metric("router")
    lead = "Measured on parallel prompts that it was not trained on, beside controls that need no router."
    if not card:
        return Section("router", title, lead, missing=["router"])
    lead += f" Here: {card['num_held_out']:,} held-out prompts, {card['num_pairs']:,} pairs. {_worth(card)}"
    names = {
        "hit_at_1": "Hit@1 ↑",
        "hit_at_3": "Hit@3 ↑",
        "hit_at_3_oracle": "Hit@3, oracle's ↑",
        "regret": "regret ↓",
    }
    ranked = {"router": card, **card["controls"]}
    panels = {label: {name: of[field] for name, of in ranked.items()} for field, label in names.items()}
    told = ", ".join(f"{name} {of['hit_at_1']:.2f}" for name, of in ranked.items())
    drawn = [
        Chart(
            charts.small_bars("controls", f"Router and controls. Hit@1: {told}", panels, "router"),
            "Hit@1: it chose the best teacher. Hit@3: the best is among its three first; oracle's: its choice is among "
            "the three best. Regret: mean reward lost against the best.",
        )
    ]
    bins = run.reliability
    if bins is not None and bins.height:
        svg = charts.reliability("reliability", "How often the router is right about a pair, by how sure it is", bins)
        drawn.append(Chart(svg, "Reliability: on the dashed line it is as often right as it thinks; below, too sure."))
    shares = {"router": card["share"], "oracle": card["oracle_share"]}
    told = "; ".join(
        f"{name} {share:.0%}, oracle {card['oracle_share'][name]:.0%}" for name, share in card["share"].items()
    )
    svg = charts.side_by_side("oracle", f"Held-out prompts by teacher. {told}", shares, run.teachers)
    drawn.append(Chart(svg, "Whom the router chooses on held-out prompts, and who was best there."))
    numbers = [[label, *(decimal(of[field]) for of in ranked.values())] for field, label in names.items()]
    tables = [Table("Router and controls", ["", *ranked], numbers), _card(card)]
    return Section("router", title, lead, drawn, tables)


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
        tasks = looks(scores["task"].unique().sort())
        note = (
            f"Below: scores of the same student trained on {REFERENCE}'s data by alpha, from this run and experiments."
        )
        drawn.append(Chart(charts.Markup(), note, tasks, "dot"))
    rows = [
        [f"{alpha:g}", *(percent(of.get(name)) for name in there)]
        for alpha in curve["alpha"].unique().sort()
        for of in [dict(curve.filter(alpha=alpha).select("teacher", "share").iter_rows())]
    ]
    return Section("alpha", title, lead, drawn, [Table("Best on, by alpha", ["alpha", *there], rows, folded=True)])


def _worth(card: dict[str, Any] | Any) -> str:
    over = card["over_majority"]
    says = f"Over sending everything to the majority teacher it gains {decimal(over['difference'], sign=True)} reward "
    says += f"(95 % {interval(over['interval'])}): {over['verdict']}."
    return says + (" It has collapsed onto one teacher." if card["collapsed"] else "")


def _card(card: Any) -> Table:
    over = card["over_majority"]
    rows = [
        ["pair accuracy", decimal(card["pair_accuracy"])],
        ["calibration error (ECE)", decimal(card["calibration"])],
        ["reward over the majority teacher", decimal(over["difference"], sign=True)],
        ["its 95 % interval", interval(over["interval"])],
        ["smallest detectable", decimal(over["mde"])],
        ["p", decimal(over["p"])],
        ["verdict", over["verdict"]],
        ["entropy of its shares, of the oracle's (nats)", f"{card['entropy']:.3f}, {card['oracle_entropy']:.3f}"],
        ["collapsed onto one teacher", "yes" if card["collapsed"] else "no"],
    ]
    return Table("Health card", ["", "held-out prompts"], rows)


def _used(run: Run, curve: pl.DataFrame) -> dict[str, Look]:
    return {name: look for name, look in run.teachers.items() if name in set(curve["teacher"])}


def _counts(caption: str, shares: pl.DataFrame, by: str, used: dict[str, Look]) -> Table:
    """Prompts, a row each value of `by`, a column a teacher."""
    rows = []
    for (name,), group in shares.group_by(by, maintain_order=True):
        of = dict(group.select("teacher", "prompts").iter_rows())
        rows.append([str(name), count(sum(of.values())), *(count(of.get(teacher, 0)) for teacher in used)])
    return Table(caption, [by if by != "row" else "domain · source", "prompts", *used], rows)


def _by_source(run: Run) -> pl.DataFrame | None:
    """row (domain · source), teacher, share, prompts of persyn's routes."""
    if run.prompts is None or REFERENCE not in run.routes:
        return None
    name = pl.concat_str(pl.col("domain").cast(pl.String), pl.col("source"), separator=" · ")
    routes = run.routes[REFERENCE].join(run.prompts.with_columns(row=name), on="prompt_id", how="left", validate="m:1")
    counts = routes.group_by("row", "teacher").agg(prompts=pl.len()).sort("row", "teacher")
    return counts.with_columns(share=pl.col("prompts") / pl.col("prompts").sum().over("row"))


def _by_run(run: Run) -> pl.DataFrame:
    student, alpha = run.section("student").get("model"), run.section("rewards").get("alpha")
    named = {f"this run: {student}, {alpha}": run.metric("allocation")}
    named |= {f"{each.name}: {each.student}, {each.alpha}": each.allocation for each in run.experiments}
    shares = {name: of[REFERENCE] for name, of in named.items() if REFERENCE in of}
    return allocation_curve(shares).rename({"strategy": "row"})


def _runs(run: Run) -> Table:
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


def _told(shares: pl.DataFrame, by: str) -> str:
    """The chart's largest share of each bar, in words."""
    top = shares.sort("share", descending=True).unique(by, keep="first", maintain_order=True)
    return "Largest share: " + "; ".join(
        f"{row[by]} {row['teacher']} {row['share']:.0%}" for row in top.iter_rows(named=True)
    )
