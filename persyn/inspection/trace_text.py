"""The results of search_prompts and trace_prompt as text for the terminal."""

from collections.abc import Mapping
from typing import Any

import polars as pl
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from persyn.inspection.terminal import first_words, number, rows_table, shown
from persyn.messages import as_text


def search_text(found: pl.DataFrame, limit: int) -> RenderableType:
    """The first `limit` results of search_prompts."""
    rows = [
        (row["prompt_id"], row["domain"], "yes" if row["parallel"] else "no", first_words(as_text(row["prompt"])))
        for row in found.head(limit).to_dicts()
    ]
    table = rows_table("prompts", ["prompt_id", "domain", "parallel", "first words"], rows)
    left = found.height - len(rows)
    return Group(table, Text(f"{found.height} found" + (f", {left} not listed: --limit lists more" if left else "")))


def trace_text(found: Mapping[str, Any]) -> RenderableType:
    """The result of trace_prompt."""
    facts = Text("\n").join(
        Text.assemble((f"{name:<10}", "bold"), shown(value))
        for name, value in {
            "domain": found["domain"],
            "source": found["source"],
            "licence": found["license"],
            "reference": found["reference"],
            "parallel": "yes: every teacher responds" if found["parallel"] else "no: only its routed teacher responds",
            "router": found["router"] or "not known",
        }.items()
    )
    parts: list[RenderableType] = [*_panel(as_text(found["prompt"]), f"prompt {found['prompt_id']}"), facts, Text("")]
    for row in found["responses"]:
        said = ", best" if row["best"] else ", the student itself" if row["teacher"] == found["student"] else ""
        parts += _panel(row["response"], row["teacher"] + said, _scores(row))
    if found["pairs"]:
        rows = [(row["winner"], row["loser"], row["margin"]) for row in found["pairs"]]
        parts.append(rows_table("pairs", ["winner", "loser", "margin"], rows, ["margin"]))
    parts += _strategies(found)
    if found["missing"]:
        parts.append(Text(f"Not made yet: {', '.join(found['missing'])}; `dvc repro` makes them.", style="yellow"))
    return Group(*parts)


def _strategies(found: Mapping[str, Any]) -> list[RenderableType]:
    rows, others, seen = [], [], {(row["teacher"], row["response"]) for row in found["responses"]}
    for strategy, routes in found["strategies"].items():
        for route in routes:
            verdict = {None: "not made", True: "kept", False: f"left out: {route['reason'] or 'no response'}"}
            response = route["teacher"], route["response"]
            written = None if response[1] is None else f"{route['finish_reason']}, {route['num_response_tokens']}"
            cells = route["strength"], route["margin"], written, verdict[route["kept"]]
            rows.append((strategy, route["teacher"], *cells))
            if route["response"] is not None and response not in seen:
                seen.add(response)
                others += _panel(route["response"], f"{route['teacher']}, as routed")
    columns = ["strategy", "teacher", "strength", "margin", "finish, tokens", "dataset"]
    return [*others, rows_table("routes", columns, rows, columns[2:4])] if rows else others


def _scores(row: Mapping[str, Any]) -> str:
    scores = [f"{name} {number(row[name])}" for name in ("quality", "learnability", "reward") if row[name] is not None]
    tokens = f"{row['num_prompt_tokens']} + {row['num_response_tokens']} tokens"
    thought = [f"thought ({len(row['reasoning']):,} characters)"] if row.get("reasoning") else []
    defects = [f"defects: {', '.join(row['defects'])}"] * bool(row["defects"])
    return ", ".join(
        [row["finish_reason"], tokens, *thought, *scores, *["truncated"] * bool(row["truncated"]), *defects]
    )


def _panel(text: str, title: str, facts: str = "") -> list[RenderableType]:
    """A text in a frame. Facts about it are outside the frame, where the text cannot imitate them."""
    about = Text.assemble(shown(title, "bold"), shown(f": {facts}" if facts else ""))
    return [about, Panel(shown(text))]
