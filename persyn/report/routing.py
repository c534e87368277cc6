"""Where the prompts went and why: allocation, reward landscape, router."""

from typing import Any

import polars as pl

from persyn.inspection.diagnostics import chose_one_teacher
from persyn.plots import allocation_curve, landscape_curve
from persyn.project.snapshot import Snapshot
from persyn.report import bars, charts
from persyn.report.experiments import by_anchors, by_run, runs_table
from persyn.report.page import (
    REFERENCE,
    Chart,
    Section,
    Table,
    count,
    decimal,
    interval,
    listed,
    percent,
    smallest,
    teacher_looks,
)
from persyn.report.svg import Look
from persyn.router.worth import worth_text
from persyn.summary import told_hits

HITS = {"hit_at_1": "Hit@1 ↑", "hit_at_3": "Hit@3 ↑", "hit_at_3_oracle": "Hit@3, oracle's ↑"}
HIT_3 = "Hit@3: the best is among its three first; oracle's: its choice is among the three best. "


def allocation_section(run: Snapshot) -> Section:
    """How many prompts each teacher got: by strategy, by source under persyn, and by run."""
    title, lead = (
        "Where the prompts went",
        "Each strategy gives every prompt one teacher, or two where its rule says so; bars are shares of the routes.",
    )
    allocations = run.metric("allocation")
    notes = [run.experiments_note] if run.experiments_note else []
    if not allocations:
        return Section("allocation", title, lead, notes=notes, missing=["routes"])
    order = [name for name in run.strategies if name in allocations] or list(allocations)
    curve = allocation_curve({name: allocations[name] for name in order})
    used = _used(run, curve)
    svg = bars.stacked_shares("allocation", _told(curve, "strategy"), curve.rename({"strategy": "row"}), used)
    drawn = [Chart(svg, "Share of the prompts by teacher, a bar a strategy.", used)]
    sizes = {name: (allocations[name]["prompts"], _num_routes(run, name)) for name in order}
    tables = [_counts("Prompts by strategy and teacher", "strategy", curve.rename({"strategy": "row"}), sizes, used)]
    by_source, sizes = _by_source(run)
    if by_source is not None:
        svg = bars.stacked_shares("sources", _told(by_source, "row"), by_source, used)
        drawn.append(Chart(svg, f"The same under {REFERENCE}, a bar a domain and source."))
        tables.append(_counts(f"{REFERENCE}: prompts by domain and source", "domain · source", by_source, sizes, used))
    if run.experiments and (runs := by_run(run)).height:
        there = _used(run, runs)
        svg = bars.stacked_shares("runs", _told(runs, "row"), runs, there)
        caption = f"{REFERENCE} in this run and in DVC's experiments, each with what else differs in it."
        drawn.append(Chart(svg, caption, there))
        tables.append(runs_table(run))
    return Section("allocation", title, lead, drawn, tables, notes)


def landscape_section(run: Snapshot) -> Section:
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
    there = {name: look for name, look in teacher_looks(run).items() if name in set(curve["teacher"])}
    told = "; ".join(
        f"{row['teacher']}: quality {row['quality']:.2f}, learnability {row['learnability']:.2f}"
        for row in curve.iter_rows(named=True)
    )
    svg = charts.landscape("landscape", f"Mean quality and learnability. {told}", run.rewards, there, domains)
    caption = "Small: responses on the parallel set. Large, outlined: a teacher's mean."
    if run.rewards.height > charts.MAX_POINTS:
        caption += f" Of {run.rewards.height:,} responses about {charts.MAX_POINTS:,} are drawn; means are of all."
    of_domain = pl.col("prompt_id").replace_strict(domains, default="all", return_dtype=pl.String)
    if run.rewards.group_by(of_domain).agg(pl.col("quality").n_unique())["quality"].min() <= charts.FEW:  # type: ignore[operator]
        caption += " Where quality has few values, points are spread a little up and down so that they can be seen."
    rows = {row["teacher"]: row for row in curve.iter_rows(named=True)}
    fields = ("quality", "learnability", "reward")
    table = Table(
        "Means over the parallel set; best: the share of prompts on which its reward is the highest, ties shared.",
        ["teacher", "quality", "learnability (nats a token)", "reward", "best on"],
        [[name, *(decimal(rows[name][of]) for of in fields), percent(rows[name]["best"])] for name in there],
    )
    return Section("landscape", title, lead, [Chart(svg, caption, there, "dot")], [table], by_anchors(run))


def router_section(run: Snapshot) -> Section:
    """The router's metrics beside its controls."""
    title, card = "Is the router any good?", run.metric("router")
    lead = "Measured on parallel prompts that it was not trained on, beside controls that need no router."
    if not card:
        return Section("router", title, lead, missing=["router"])
    lead += f" Here: {card['num_held_out']:,} held-out prompts, {card['num_pairs']:,} pairs. {_worth(card)}"
    lead = " ".join([*worth_text(card), lead])
    names = {field: HITS[field] for field in told_hits(card)} | {"regret": "regret ↓"}
    ranked = {"router": card, **card["controls"]}
    panels = {label: {name: of[field] for name, of in ranked.items()} for field, label in names.items()}
    told = ", ".join(f"{name} {of['hit_at_1']:.2f}" for name, of in ranked.items())
    drawn = [
        Chart(
            bars.small_bars("controls", f"Router and controls. Hit@1: {told}", panels, "router"),
            f"Hit@1: it chose the best teacher. {HIT_3 if 'hit_at_3' in names else ''}"
            "Regret: mean reward lost against the best.",
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
    svg = bars.side_by_side("oracle", f"Held-out prompts by teacher. {told}", shares, teacher_looks(run))
    drawn.append(Chart(svg, "Whom the router chooses on held-out prompts, and who was best there."))
    numbers = [[label, *(decimal(of[field]) for of in ranked.values())] for field, label in names.items()]
    tables = [Table("Router and controls", ["", *ranked], numbers), _card(card)]
    apart = f"Without {listed(run.anchored)}: teachers with anchors are placed beside the router once it is trained."
    return Section("router", title, lead, drawn, tables, [apart] if run.anchored else [])


def _worth(card: dict[str, Any] | Any) -> str:
    over = card["over_majority"]
    says = f"Over sending everything to the majority teacher it gains {decimal(over['difference'], sign=True)} reward "
    says += f"(95 % {interval(over['interval'])}): {over['verdict']}."
    return says + (" It has collapsed onto one teacher." if card["collapsed"] and not chose_one_teacher(card) else "")


def _card(card: Any) -> Table:
    over = card["over_majority"]
    rows = [
        ["pair accuracy", decimal(card["pair_accuracy"])],
        ["calibration error (ECE)", decimal(card["calibration"])],
        ["reward over the majority teacher", decimal(over["difference"], sign=True)],
        ["its 95 % interval", interval(over["interval"])],
        ["smallest detectable", smallest(over)],
        ["p", decimal(over["p"])],
        ["verdict", over["verdict"]],
        ["entropy of its shares, of the oracle's (nats)", f"{card['entropy']:.3f}, {card['oracle_entropy']:.3f}"],
        ["collapsed onto one teacher", _collapsed(card)],
        *_learnable(card),
    ]
    return Table("Health card", ["", "held-out prompts"], rows)


def _collapsed(card: Any) -> str:
    if chose_one_teacher(card):
        return "no, it chose one on purpose"
    return "yes" if card["collapsed"] else "no"


def _learnable(card: Any) -> list[list[str]]:
    """What cross-validation and the halves of the training prompts say, if they were asked."""
    rows = []
    if "learnable" in card:
        found = card["learnable"]
        rows += [
            ["trust in what the prompt adds (0: one teacher for all)", f"{card['trust']['trust']:g}"],
            ["gain over one teacher, cross-validated", decimal(found["gain"], sign=True)],
            ["its 95 % interval", interval(found["interval"])],
            ["the oracle's gain on the training prompts", decimal(card["oracle_gap"], sign=True)],
            ["learnable share of it", percent(found["share"])],
        ]
    if floor := card.get("noise_floor"):
        rows += [
            ["noise floor: same choice by routers of two halves", percent(floor["same_choice"])],
            ["the same by chance", percent(floor["by_chance"])],
            ["largest difference of a teacher's mean reward between the halves", decimal(floor["largest_difference"])],
        ]
    return rows


def _used(run: Snapshot, curve: pl.DataFrame) -> dict[str, Look]:
    return {name: look for name, look in teacher_looks(run).items() if name in set(curve["teacher"])}


def _num_routes(run: Snapshot, strategy: str) -> int:
    """One for each prompt, or two if its rule gives the prompt two teachers."""
    routes = run.routes.get(strategy)
    return int(run.metric("allocation")[strategy]["prompts"]) if routes is None else routes.height


def _counts(
    caption: str, by: str, shares: pl.DataFrame, sizes: dict[str, tuple[int, int]], used: dict[str, Look]
) -> Table:
    """A row for each row of `shares`, a column for each teacher; transposed if there are many teachers.

    Args:
        sizes: row -> numbers of its prompts and its routes.
    """
    rows = []
    for (name,), group in shares.group_by("row", maintain_order=True):
        of, (prompts, routes) = dict(group.select("teacher", "share").iter_rows()), sizes[str(name)]
        rows.append([str(name), count(prompts), *(count(of.get(teacher, 0) * routes) for teacher in used)])
    if any(prompts != routes for prompts, routes in sizes.values()):
        caption += " (one that two teachers answer counts for both)"
    columns = [by, "prompts", *used]
    if len(used) <= max(len(rows), 6):
        return Table(caption, columns, rows)
    columns, *turned = [list(line) for line in zip(columns, *rows, strict=True)]
    return Table(caption, ["teacher", *columns[1:]], turned)


def _by_source(run: Snapshot) -> tuple[pl.DataFrame | None, dict[str, tuple[int, int]]]:
    """row (domain · source), teacher, share of persyn's routes; and row -> numbers of its prompts and its routes."""
    if run.prompts is None or REFERENCE not in run.routes:
        return None, {}
    name = pl.concat_str(pl.col("domain").cast(pl.String), pl.col("source"), separator=" · ")
    routes = run.routes[REFERENCE].join(run.prompts.with_columns(row=name), on="prompt_id", how="left", validate="m:1")
    routes = routes.with_columns(pl.col("row").fill_null("of no prompt here")).with_columns(of=pl.len().over("row"))
    shares = routes.group_by("row", "teacher").agg(share=pl.len() / pl.col("of").first()).sort("row", "teacher")
    sizes = routes.group_by("row").agg(pl.col("prompt_id").n_unique(), pl.len())
    return shares, {row: (prompts, number) for row, prompts, number in sizes.iter_rows()}


def _told(shares: pl.DataFrame, by: str) -> str:
    """The largest share of each bar of the chart, in words."""
    top = shares.sort("share", descending=True).unique(by, keep="first", maintain_order=True)
    return "Largest share: " + "; ".join(
        f"{row[by]} {row['teacher']} {row['share']:.0%}" for row in top.iter_rows(named=True)
    )
