"""The results: the comparison of strategies, the training, the ledger."""

from typing import Any

import polars as pl

from persyn.comparison import told_cuts, without_silent
from persyn.cost import Prices, build_ledger
from persyn.plots import comparison_curve, ledger_curve
from persyn.project.snapshot import Snapshot
from persyn.report import bars, charts
from persyn.report.page import (
    REFERENCE,
    Chart,
    Section,
    Table,
    count,
    decimal,
    interval,
    listed,
    smallest,
    strategy_looks,
)
from persyn.report.svg import Look
from persyn.schemas import alike
from persyn.settings import UNTUNED
from persyn.summary import cut_share

PARTS = {"parallel set": Look(6), "new answers of the chosen teachers": Look(0), "all teachers on all prompts": Look(1)}


def comparison_section(run: Snapshot) -> Section:
    """Every strategy, and what stands beside them, compared with persyn."""
    title = "Was it worth it?"
    evaluation, comparison, beside = run.metric("evaluation"), run.metric("comparison"), run.metric("beside")
    lead = (
        f"{REFERENCE} minus each strategy, item by item. Right of the line {REFERENCE} scores higher; whether that is "
        "better depends on the metric. A difference is called within noise unless p, corrected for the number of "
        "rows compared on a metric (Holm), is below 0.05; identical, if no item has another score. "
        "Metrics and tasks are not corrected for."
    ) + _beside_in_words(list(beside))
    if not evaluation:
        return Section("comparison", title, lead, missing=["evaluation"])
    order = _ordered(run, evaluation)
    evaluation = {**{name: evaluation[name] for name in order}, **beside}
    curve, left_out = without_silent(comparison_curve(comparison, evaluation))
    drawn, gaps = [], curve.filter(pl.col("difference").is_not_null())
    if gaps.height:
        told = "; ".join(
            f"{row['task']} {row['metric']}: minus {row['strategy']} {decimal(row['difference'], sign=True)}, "
            f"{row['verdict']}"
            for row in gaps.iter_rows(named=True)
        )
        caption = "Difference and its 95 % interval. Hollow and blue: within noise, or identical. Filled and "
        caption += "orange: differs. No line: no item differs, or the items are too few to bound the difference."
        drawn = [Chart(charts.forest("forest", told, gaps), caption)]
    rows = [_compared(row, evaluation, comparison) for row in curve.iter_rows(named=True)]
    columns = ["task", "metric", "strategy", "verdict", "score", "items"]
    columns += [f"{REFERENCE} minus it", "smallest detectable", "p (Holm)"]
    caption = "Scores (± standard error) as lm-eval gives them; differences (95 % interval) of means over items, "
    caption += "which are not those of the scores where a metric counts the parts of items (IFEval's inst_level)."
    table = Table(" ".join([caption, *left_out]), columns, rows, words=4)
    missing = [stage for stage in ("beside", "comparison") if run.metric(stage, None) is None]
    return Section("comparison", title, lead, drawn, [table], told_cuts(_cut(evaluation)), missing)


def training_section(run: Snapshot) -> Section:
    """Losses."""
    title = "How the students learnt"
    lead = (
        "Loss on the response tokens of each strategy's own data set. The sets differ, so a lower curve says that its "
        "set is easier to learn, not that its student is better."
    )
    order = {name: look for name, look in strategy_looks(run).items() if name in run.training}
    order = {name: look for name, look in order.items() if run.training[name].height}
    if not order:
        return Section("training", title, lead, missing=["student"])
    steps = {name: run.training[name].select("step", "loss").drop_nulls() for name in order}
    ends = {name: (table["step"].max(), table["loss"][0], table["loss"][-1]) for name, table in steps.items()}
    told = "; ".join(f"{name} from {first:.2f} to {last:.2f}" for name, (_, first, last) in ends.items())
    caption = "Training loss by step."
    if max(table.height for table in steps.values()) > charts.MAX_STEPS:
        caption += f" Of more than {charts.MAX_STEPS} steps, means over equally many are drawn."
    chart = Chart(charts.losses("losses", told, steps, order), caption, order, "line")
    rows = [[name, count(number), decimal(first), decimal(last)] for name, (number, first, last) in ends.items()]  # type: ignore[arg-type]
    columns = ["strategy", "steps", "first", "last"]
    if any("eval_loss" in run.training[name].columns for name in order):
        columns += ["validation, first", "lowest"]
        rows = [row + _validation(run.training[name]) for row, name in zip(rows, order, strict=True)]
    table = Table("Losses, nats a token", columns, rows)
    return Section("training", title, lead, [chart], [table])


def _validation(training: pl.DataFrame) -> list[str]:
    """The first and the lowest loss on the rows that were held out from the training."""
    if "eval_loss" not in training.columns:
        return [decimal(None), decimal(None)]
    losses = training["eval_loss"].drop_nulls()
    return [decimal(losses.first()), decimal(losses.min())]  # type: ignore[arg-type]


def ledger_section(run: Snapshot) -> Section:
    """The ledger."""
    title, cost = "What it cost", run.metric("cost")
    lead = (
        "Teacher answers that the results needed, counted once each. Each strategy stands alone beside the parallel "
        "set; generate-then-select asks every teacher every prompt (tokens: by mean lengths on the parallel set)."
    )
    if not cost:
        return Section("ledger", title, lead, missing=["cost"])
    cost = {**cost, "routed": {name: cost["routed"][name] for name in _ordered(run, cost["routed"])}}
    curve = ledger_curve(cost)
    parallel = {key: sum(use[key] for use in cost["parallel"].values()) for key in ("calls", "response_tokens")}
    whole = cost["generate_then_select"]
    names = list(PARTS)
    rows: list[tuple[str, str, int, int]] = []
    for row in curve.filter(part="spent").iter_rows(named=True):
        rows.append((row["strategy"], names[0], parallel["calls"], parallel["response_tokens"]))
        rows.append((row["strategy"], names[1], row["calls"], row["response_tokens"]))
    rows.append(("generate then select", names[2], whole["calls"], whole["response_tokens"]))
    uses = pl.DataFrame(rows, schema=["row", "part", "calls", "response_tokens"], orient="row")
    told = f"generate-then-select {whole['calls']} calls; " + "; ".join(
        f"{name} {cost['saved'][name]['calls']:.2f} times fewer" for name in cost["routed"]
    )
    caption = "What each strategy must pay for: the parallel set and what its chosen teachers then write."
    chart = Chart(bars.bill("ledger", told, uses, PARTS), caption, PARTS)
    money = money_of(run, cost)
    tables = [_strategies(cost, money), _teachers(cost)]
    return Section("ledger", title, lead, [chart], tables, [_in_words(money), *_retries(cost)])


def _ordered(run: Snapshot, found: Any) -> list[str]:
    """The strategies in `found`, in the order of params.yaml; all of them, if it names none."""
    return [name for name in run.strategies if name in found] or list(found)


def _beside_in_words(names: list[str]) -> str:
    """What of the rows is no strategy."""
    others = [name for name in names if name != UNTUNED]
    found = f" {UNTUNED} is no strategy, but the student before any tuning." if UNTUNED in names else ""
    return found + (f" Finished models, not trained here: {listed(others)}." if others else "")


def _compared(row: dict[str, Any], evaluation: Any, comparison: Any) -> list[str]:
    scored = evaluation[row["strategy"]][row["task"]][row["metric"]]
    found = comparison.get(row["strategy"], {}).get(row["task"], {}).get(row["metric"], {})
    return [
        row["task"],
        row["metric"],
        row["strategy"],
        row["verdict"] or ("the reference" if row["strategy"] == REFERENCE else "—"),
        decimal(row["value"]) + (f" ± {decimal(scored['stderr'])}" if scored.get("stderr") is not None else ""),
        count(scored.get("n")),
        decimal(row["difference"], sign=True) + (f" ({interval(found['interval'])})" if found.get("interval") else ""),
        smallest(found),
        decimal(found.get("p_holm")),
    ]


def _cut(evaluation: Any) -> dict[str, dict[str, float | None]]:
    """What comparison.cut_shares gives, from the scores: task -> strategy -> share of cut responses."""
    shares: dict[str, dict[str, float | None]] = {}
    for strategy, tasks in evaluation.items():
        for task, metrics in tasks.items():
            shares.setdefault(task, {})[strategy] = cut_share(metrics)
    return shares


def _strategies(cost: Any, money: Any) -> Table:
    rows = [
        [name, count(used["spent"]["calls"]), count(used["spent"]["response_tokens"]), count(used["cached"]["calls"])]
        + [f"{cost['saved'][name][of]:.2f} \u00d7" for of in ("calls", "response_tokens")]
        for name, used in cost["routed"].items()
    ]
    spent, cached = cost["total"]["spent"], cost["total"]["cached"]
    together = [count(number) for number in (spent["calls"], spent["response_tokens"], cached["calls"])]
    rows.append(["all together, with the parallel set", *together, "—", "—"])
    columns = ["strategy", "new calls", "new response tokens", "cached calls", "fewer calls", "fewer response tokens"]
    if money:
        columns.append(f"{money['currency']}, with the parallel set")
        for row, paid in zip(rows, [*money["strategies"].values(), money["spent"] - money["judge"]], strict=True):
            row.append(f"{paid:,.2f}")
    return Table(
        "Spent, cached, and how many times fewer than generate-then-select (with the parallel set)", columns, rows
    )


def _teachers(cost: Any) -> Table:
    rows = [
        [name, *(count(use[of]) for of in ("calls", "prompt_tokens", "response_tokens")), _mean(use)]
        for name, use in cost["parallel"].items()
    ]
    columns = ["teacher", "calls", "prompt tokens", "response tokens", "response tokens a call"]
    return Table("The parallel set by teacher", columns, rows, folded=True)


def money_of(run: Snapshot, cost: Any) -> Any:
    """The money of the ledger at the run's prices; None without prices, or while a table that it needs is missing."""
    prices = Prices.parse(run.section("prices"), "prices")
    routed = run.every("routed")
    tables = run.every("responses"), {name: routed[name] for name in cost["routed"] if name in routed}
    if run.prompts is None or set(tables[0]) != set(run.asked) or set(tables[1]) != set(cost["routed"]):
        return None
    parallel = pl.concat(alike([*tables[0].values()]))
    ledger = build_ledger(run.prompts, parallel, tables[1], prices, cost.get("judge"), student=run.student)
    return ledger["money"]


def _retries(cost: Any) -> list[str]:
    """What the retries took, if there were any."""
    parts = [
        f"{name} {used['spent']['calls']:,} calls and {used['spent']['response_tokens']:,} response tokens "
        f"for {used['prompts']:,} prompts"
        for name, used in cost.get("retries", {}).items()
    ]
    return [f"Of it on teachers asked since others fell short of dataset.require: {'; '.join(parts)}."] if parts else []


def _in_words(money: Any) -> str:
    if not money:
        return "No teacher has a price (prices in params.yaml), so there is no sum of money here."
    note = f"At the prices given: {money['spent']:,.2f} {money['currency']} spent"
    note += f", {money['judge']:,.2f} of it on the judge" if money["judge"] else ""
    note += f"; generate-then-select would take {money['generate_then_select']:,.2f}."
    return note + (f" Without a price, and left out: {', '.join(money['unpriced'])}." if money["unpriced"] else "")


def _mean(use: Any) -> str:
    return decimal(use["response_tokens"] / use["calls"] if use["calls"] else None, 1)
