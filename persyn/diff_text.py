"""What build_diff found, for the terminal."""

import json
from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from persyn.terminal import first_words, number, rows_table, shown

SHORT = 12  # ids to list


def diff_text(found: Mapping[str, Any], limit: int) -> RenderableType:
    """The differences, section by section.

    Args:
        found: as build_diff returns it.
        limit: how many moved prompts to list a strategy.
    """
    header = Text.assemble(
        "A is ", shown(found["a"], "bold"), ", B is ", shown(found["b"], "bold"), "; differences are B minus A"
    )
    parts: list[RenderableType] = [header]
    if found["same"]:
        parts.append(Text("no difference" + (" in what both have" if found["missing"] else "")))
    else:
        parts += _changes("parameters", found["params"])
        parts += _prompts(found["prompts"])
        for strategy, fields in found["allocation"].items():
            parts += _allocation(strategy, fields, limit)
        parts += _scores(found["scores"])
        parts += _changes("router, on held-out prompts", found["router"])
        parts += _evaluation(found["evaluation"])
        parts += _changes("tokens and calls", found["cost"]) + _changes("defects of the parallel set", found["defects"])
    if found["missing"]:
        parts.append(Text("Not compared:", style="yellow"))
        parts += [shown(line) for line in found["missing"]]
    return Group(*parts)


def _changes(title: str, changes: Mapping[str, Mapping[str, Any]] | None) -> list[RenderableType]:
    if not changes:
        return []
    rows = [
        (path, *(_leaf(sides, side) for side in "ab"), _gap(sides.get("a"), sides.get("b")))
        for path, sides in changes.items()
    ]
    numeric = any(row[3] for row in rows)
    columns, rows = ["", "A", "B", "B - A"], rows if numeric else [row[:3] for row in rows]
    return [rows_table(title, columns if numeric else columns[:3], rows, columns[1:] if numeric else [])]


def _leaf(sides: Mapping[str, Any], side: str) -> Any:
    if side not in sides:
        return "not there"
    value = sides[side]
    return (
        value
        if isinstance(value, str)
        else number(value)
        if isinstance(value, float)
        else json.dumps(value, default=str)
    )


def _gap(a: Any, b: Any) -> str:
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in (a, b))
    return number(b - a, "+") if numbers else ""


def _prompts(prompts: Mapping[str, Any] | None) -> list[RenderableType]:
    names = ("added", "removed", "changed")
    if prompts is None or not any(prompts[name] for name in names):
        return []
    counts = ", ".join(f"{len(prompts[name])} {name}" for name in names)
    lines = [Text("\nprompts", style="bold"), Text(f"{prompts['same']} in both, {counts}")]
    for name in names:
        ids = prompts[name]
        more = f", and {len(ids) - SHORT} more" if len(ids) > SHORT else ""
        lines += [shown(f"{name}: {', '.join(ids[:SHORT])}{more}")] * bool(ids)
    return [*lines]


def _allocation(strategy: str, fields: Mapping[str, Any], limit: int) -> list[RenderableType]:
    if "only" in fields:
        return [shown(f"\nstrategy {strategy}: only {fields['only'].upper()} has its routes")]
    moved = fields["moved"]
    if not fields["unlike"]:
        return []
    title = f"allocation of {strategy}: {len(moved)} of {fields['prompts']} prompts moved"
    if not moved:
        return [shown(f"\n{title}, {fields['unlike']} have another strength or margin")]
    parts: list[RenderableType] = [_flow(title, fields["flow"])]
    rows = [(row["prompt_id"], _moved(row)) for row in moved[:limit]]
    parts += [rows_table("moved", ["prompt_id", "teacher and margin, first words"], rows)] * bool(rows)
    if len(moved) > len(rows):
        parts.append(Text(f"{len(moved) - len(rows)} more moved: --limit lists more"))
    return parts


def _moved(row: Mapping[str, Any]) -> str:
    margins = [row["margin_a"], row["margin_b"]]
    known = ["-" if margin is None else number(margin) for margin in margins] if margins != [None, None] else []
    margin = f", margin {' → '.join(known)}" if known else ""
    return f"{row['from']} → {row['to']}{margin}\n{first_words(row['prompt'] or '')}"


def _flow(title: str, flow: list[dict[str, Any]]) -> Table:
    counts = {(row["from"], row["to"]): row["prompts"] for row in flow}
    sources, targets = ({row[end] for row in flow} for end in ("from", "to"))
    names = sorted(sources | targets)
    rows = [
        (name, *(counts.get((name, to), "") for to in names), sum(counts.get((name, to), 0) for to in names))
        for name in names
    ]
    last = ("in B", *(sum(counts.get((name, to), 0) for name in names) for to in names), sum(counts.values()))
    columns = ["A, down; B, across", *names, "in A"]
    return rows_table(title, columns, [*rows, last], columns[1:])


def _scores(scores: Mapping[str, Mapping[str, Any]] | None) -> list[RenderableType]:
    rows, alone = [], []
    for teacher, fields in (scores or {}).items():
        if "only" in fields:
            alone.append(shown(f"teacher {teacher}: only {fields['only'].upper()} has its rewards"))
        elif fields["changed"]:
            for name in ("quality", "learnability", "reward"):
                a, b = fields[name]["a"], fields[name]["b"]
                rows.append((teacher, name, fields["rows"], a, b, _gap(a, b)))
    columns = ["teacher", "mean of", "prompts in both", "A", "B", "B - A"]
    table = [rows_table("scores", columns, rows, columns[2:])] if rows else []
    return [*table, *alone]


def _evaluation(evaluation: Mapping[str, Any]) -> list[RenderableType]:
    rows, alone = [], []
    for strategy, tasks in evaluation.items():
        if "only" in tasks:
            alone.append(shown(f"strategy {strategy}: only {tasks['only'].upper()} was evaluated"))
            continue
        for task, metrics in tasks.items():
            rows += [_evaluated(strategy, task, metric, fields) for metric, fields in metrics.items()]
    if not any(row[3] != row[4] or row[-1] not in ("", "within noise") for row in rows):
        rows = []
    columns = ["strategy", "task", "metric", "A", "B", "B - A [95 %]", "p (Holm)", "items", "verdict"]
    title = "evaluation: B against A, paired by item where both have the samples"
    table = [rows_table(title, columns, rows, columns[3:8])] if rows else []
    return [*table, *alone]


def _evaluated(strategy: str, task: str, metric: str, fields: Mapping[str, Any]) -> tuple[Any, ...]:
    a, b = fields.get("a"), fields.get("b")
    if "difference" not in fields:
        return strategy, task, metric, a, b, _gap(a, b), "", "", "not paired"
    gap = number(fields["difference"], "+")
    if fields["interval"]:
        gap += " [" + ", ".join(number(bound, "+") for bound in fields["interval"]) + "]"
    items = f"{fields['n']}" + (f" of {fields['n'] + fields['unpaired']}" if fields["unpaired"] else "")
    return strategy, task, metric, a, b, gap, number(fields["p_holm"]), items, fields["verdict"]
