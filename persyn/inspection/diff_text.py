"""The result of build_diff as text for the terminal."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from persyn.inspection.diff import is_changed
from persyn.inspection.terminal import first_words, number, rows_table, shown
from persyn.messages import as_text

SHORT = 12  # ids to list


def diff_text(found: Mapping[str, Any], limit: int) -> RenderableType:
    """The differences, section by section.

    Args:
        found: as build_diff returns it.
        limit: how many moved prompts to list for each strategy.
    """
    header = Text.assemble(
        "A is ", shown(found["a"], "bold"), ", B is ", shown(found["b"], "bold"), "; differences are B minus A"
    )
    parts: list[RenderableType] = [header]
    if found["same"]:
        parts.append(
            Text(
                "no difference in prompts, allocation, scores and evaluation"
                + (" that both have" if found["missing"] else "")
            )
        )
    else:
        parts += _prompts(found["prompts"])
        for strategy, fields in found["allocation"].items():
            parts += _allocation(strategy, fields, limit)
        parts += _scores(found["scores"])
        if found["scale"]:
            parts.append(
                Text(f"A and B compute rewards by different parameters ({', '.join(found['scale'])}): scales differ.")
            )
        parts += _evaluation(found["evaluation"])
    if found["missing"]:
        parts.append(Text("Not compared:", style="yellow"))
        parts += [shown(line) for line in found["missing"]]
    sides = " ".join(name for name in (found["a"], found["b"]) if name != "workspace")
    parts.append(shown(f"\nParameters and metrics: dvc params diff {sides}; dvc metrics diff {sides}"))
    return Group(*parts)


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
        return [shown(f"\nstrategy {strategy}: only {fields['only'].upper()} has it")]
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
    return f"{row['from']} → {row['to']}{margin}\n{first_words(as_text(row['prompt'] or ''))}"


def _flow(title: str, flow: list[dict[str, Any]]) -> RenderableType:
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
            continue
        if fields["unpaired"]:
            alone.append(shown(f"teacher {teacher}: {fields['unpaired']} prompts are scored on one side only"))
        if fields["changed"]:
            for name in ("quality", "learnability", "reward"):
                a, b = fields[name]["a"], fields[name]["b"]
                rows.append((teacher, name, fields["rows"], a, b, _gap(a, b)))
    columns = ["teacher", "mean of", "prompts in both", "A", "B", "B - A"]
    table = [rows_table("scores", columns, rows, columns[2:])] if rows else []
    return [*table, *alone]


def _evaluation(evaluation: Mapping[str, Any]) -> list[RenderableType]:
    parts: list[RenderableType] = []
    for strategy, tasks in evaluation.items():
        if "only" in tasks:
            parts.append(shown(f"strategy {strategy}: only {tasks['only'].upper()} has it"))
            continue
        cells = [(task, metric, fields) for task, metrics in tasks.items() for metric, fields in metrics.items()]
        if any(is_changed(fields) for *_, fields in cells):
            columns = ["task, metric", "A", "B", "B - A [95 %]", "verdict"]
            rows = [(f"{task}\n{metric}", *_evaluated(fields)) for task, metric, fields in cells]
            parts.append(
                rows_table(
                    f"evaluation of {strategy}, paired by item where both have the samples", columns, rows, columns[1:3]
                )
            )
    return parts


def _evaluated(fields: Mapping[str, Any]) -> tuple[Any, ...]:
    a, b = fields.get("a"), fields.get("b")
    if "difference" not in fields:
        sides = "one side only" if a is None or b is None else "not paired:\nno samples"
        return a, b, _gap(a, b), "no item\nin common" if "unpaired" in fields else sides
    gap = number(fields["difference"], "+")
    if fields["interval"]:
        gap += "\n[" + ", ".join(number(bound, "+") for bound in fields["interval"]) + "]"
    items = f"{fields['n']}" + (f" of {fields['n'] + fields['unpaired']}" if fields["unpaired"] else "")
    return a, b, gap, f"{fields['verdict']}\np {number(fields['p_holm'])}, n {items}"
