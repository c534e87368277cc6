"""The plan and the ledger as text for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.text import Text

from persyn.inspection.terminal import plain, rows_table

HEADER = ["stage, teacher", "calls", "prompt tokens", "response tokens", "H100-hours", "disk, MB", "money"]


def plan_text(plan: Mapping[str, Any]) -> str:
    """The plan on one screen: a row for each stage and teacher; uncertain numbers are `low - high`."""
    prompts, select = plan["prompts"], plan["generate_then_select"]
    stages = {"responses (parallel set)": plan["responses"]}
    stages |= {f"routed@{name}": uses for name, uses in plan["routed"].items()}
    stages |= {f"routed@{name}, retries": uses for name, uses in plan["retries"].items()}
    if plan["judge"]:
        stages["quality, dataset (the judge's verdicts, at most two a response)"] = plan["judge"]
    # Without totals of teachers that the parallel set alone asks: its rows show them already.
    shown = {**plan["responses"], **plan["judge"]}
    total = {name: use for name, use in plan["total"].items() if use != shown.get(name)}
    rows = []
    for stage, uses in [*stages.items(), ("total, each call paid once", total)]:
        rows.append([stage, *[""] * 6])
        rows += [_row(f"  {name}", use) for name, use in uses.items()] or [["  nothing is left to ask", *[""] * 6]]
    about = (
        f"{prompts['count']:,} prompts ({prompts['from']}), {prompts['parallel']:,} parallel. Stored responses are "
        f"not counted. Money in {plan['currency']}."
    )
    fewer = [f"{name} {_span(ratio, '.1f')}" for name, ratio in select["times_fewer_calls"].items()]
    quality = "".join(f"quality {count:,} by {method}; " for method, count in _not_summed(plan))
    lines = [
        "",
        f"Generate then select: {_span(select['calls'])} calls, {_span(select['response_tokens'])} response tokens. "
        f"Times fewer calls, parallel set included: {', '.join(fewer)}.",
        f"Weights of the teachers: {plan['weights'] / 1e9:,.1f} GB. Not in the sums: {quality}learnability "
        f"{plan['scores']['learnability']:,} by the student.",
        *_notes(plan),
    ]
    return plain(Text(about), rows_table("to pay for", HEADER, rows, HEADER[1:]), *map(Text, lines))


def _not_summed(plan: Mapping[str, Any]) -> list[tuple[str, int]]:
    """Methods of quality and their numbers of scores, but for a judge, whose calls are in the sums."""
    return [(method, count) for method, count in plan["scores"]["quality"].items() if method not in plan["judge"]]


def ledger_text(ledger: Mapping[str, Any]) -> str:
    """The ledger on one screen."""
    names = {"calls": "calls", "prompt_tokens": "prompt tokens", "response_tokens": "response tokens"}
    uses = {
        "spent": ledger["total"]["spent"],
        "cached: used again, not paid": ledger["total"]["cached"],
        "generate then select would take": ledger["generate_then_select"],
    }
    rows = [[title, *(f"{use[name]:,}" for name in names)] for title, use in uses.items()]
    if judge := ledger["judge"]:
        rows.append(["spent on the judge", *(f"{judge[name]:,}" for name in names)])
    for name, again in ledger.get("retries", {}).items():
        cost = "" if again["money"] is None else f", {ledger['money']['currency']} {again['money']:,.2f}"
        title = f"of it on retries of {name} ({again['prompts']:,} prompts{cost})"
        rows.append([title, *(f"{again['spent'][use]:,}" for use in names)])
    rows.append(["times fewer, parallel set included:", "", "", ""])
    rows += [
        [f"  {name}", *(f"{ratio[n]:.1f}" if n in ratio else "" for n in names)]
        for name, ratio in ledger["saved"].items()
    ]
    money, line = ledger["money"], "money: no price given (params.yaml, prices)"
    if money:
        line = (
            f"money: {money['currency']} {money['spent']:,.2f} spent"
            + (f" ({money['judge']:,.2f} of it on the judge)" if money["judge"] else "")
            + f", generate then select would take {money['generate_then_select']:,.2f}"
            + (f"; no price given for {', '.join(money['unpriced'])}" if money["unpriced"] else "")
        )
    return plain(rows_table("ledger", ["", *names.values()], rows, names.values()), Text(line))


def _notes(plan: Mapping[str, Any]) -> list[str]:
    """Lines about what is uncertain, or prevents the run."""
    lines = [f"{line[0].upper()}{line[1:]}." for line in plan.get("told", ())]
    if unseen := [name for name, count in plan["seen"].items() if count < 2]:
        lines.append(f"No responses seen yet of {_names(unseen, plan)}: `persyn plan --probe 8` asks for some first.")
    if plan["above_limit"]:
        lines.append(
            f"Above sampling.max_tokens: responses of {_names(plan['above_limit'], plan)} took more tokens, such as "
            f"those of a thought; the intervals have it, but budget.max_tokens may be exceeded by as much."
        )
    if expected := {name: number for name, number in plan["expected"].items() if number is not None}:
        calls = ", ".join(f"{name} {number:,.1f}" for name, number in expected.items())
        lines.append(
            f"Calls expected for retries, by the share of each teacher's parallel responses that fall short of "
            f"dataset.require: {calls}."
        )
    if unknown := [name for name, number in plan["expected"].items() if number is None]:
        lines.append(
            f"Retries of {', '.join(unknown)}: how many is not known before the parallel set's quality and the routes "
            f"are made; the rows have the most that dataset.retries allows."
        )
    if plan["unsized"]:
        lines.append(f"No H100-hours for {_names(plan['unsized'], plan)}: give its size in prices.sizes.")
    if plan["unpriced"]:
        lines.append(f"No price given for {_names(plan['unpriced'], plan)}.")
    if plan["precomputed"]:
        lines.append(
            f"{len(plan['precomputed'])} teachers have precomputed responses: those that fit are not asked for, "
            f"but are counted above until they are in the store."
        )
    forbid = "forbid training other models on the outputs; take them out, or name them in licenses.allow_forbidden."
    if asked := [name for name in plan["refused"] if name not in plan["precomputed"]]:
        lines.append(f"A run is refused: the terms of {', '.join(asked)} {forbid}")
    if read := [name for name in plan["refused"] if name in plan["precomputed"]]:
        lines.append(f"The stage dataset will refuse precomputed responses: the terms of {', '.join(read)} {forbid}")
    if shows := plan.get("evaluation"):
        least = "none" if shows["difference"] is None else f"one of {shows['difference']:.3f} or more"
        lines.append(
            f"Evaluation: at most {shows['items']:,} items a task. Of differences between two students that differ on "
            f"one item in ten, {least} would show in four runs of five (exact McNemar, p below 0.05)."
        )
    if budget := plan["budget"]:
        lines.append(
            f"budget.max_tokens {budget['max_tokens']:,}: {budget['left']:,} left, the plan needs "
            f"{_span(budget['needed'])}: it {budget['verdict']}."
        )
    return lines


def _row(name: str, use: Mapping[str, Any]) -> list[str]:
    whole = [_span(use[field]) for field in ("calls", "prompt_tokens", "response_tokens")]
    disk = [end / 1e6 for end in use["disk"]]
    return [name, *whole, _span(use["gpu_hours"], ""), _span(disk, ""), _span(use["money"], ",.2f")]


def _names(names: list[str], plan: Mapping[str, Any]) -> str:
    return f"any of {len(names)} teachers" if len(names) == len(plan["seen"]) > 3 else ", ".join(names)


def _span(ends: list[float] | None, form: str = ",") -> str:
    """`low - high`, or one number. An empty form is two digits, or a whole number."""
    if ends is None:
        return "?"
    low, high = (format(end, form or (",.0f" if end >= 10 else ".2g")) for end in ends)
    return low if low == high else f"{low} - {high}"
