"""The reference of params.yaml, from the types and docstrings of the settings: a JSON schema, a page and text."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from persyn.errors import InputError, nearest
from persyn.project.params import params_model
from persyn.settings import describe

SCHEMA = "https://json-schema.org/draft/2020-12/schema"
INTRODUCTION = """# Parameters

Every parameter of `params.yaml`: the values that it takes, its default and its meaning. A parameter without a default
must be given. `persyn params` prints the same, `persyn params rewards` one section, and
`persyn params --check params.yaml` reports all mistakes of a file at once. Editors complete and check with
`params.schema.json`, named in the first line of each params.yaml. This page is generated from the code, in the root of
the project: `persyn params --page > docs/params.md`.
"""


@dataclass(frozen=True)
class Row:
    """A parameter: its name below its section, the values it takes, its default as YAML (None: required), meaning."""

    name: str
    takes: str
    default: str | None
    meaning: str


@dataclass(frozen=True)
class Part:
    """A section of params.yaml, or a mapping in one with a description of its own, such as a teacher or a strategy."""

    name: str
    meaning: str
    rows: list[Row]


def params_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, for editors: all rules but those that depend on several parameters."""
    schema = _tidy(params_model().model_json_schema())
    schema.pop("additionalProperties")  # sections that are not ours may hold YAML anchors
    return {"$schema": SCHEMA, **schema, "title": "PerSyn's params.yaml"}


def schema_text() -> str:
    """The content of params.schema.json."""
    return json.dumps(params_schema(), indent=2, ensure_ascii=False) + "\n"


def build_reference(section: str | None = None) -> list[Part]:
    """Every section of params.yaml, or the named one, with its parameters.

    Raises:
        InputError: there is no such section.
    """
    schema = params_model().model_json_schema()
    named, sections = schema["$defs"], schema["properties"]
    if section is not None and section not in sections:
        raise InputError(f"{section} is no section of params.yaml{nearest(section, sections)}")
    chosen = sections if section is None else {section: sections[section]}
    first: dict[tuple[Row, ...], str] = {}
    parts = []
    for part in (part for name, entry in chosen.items() for part in _parts(name, entry, named)):
        same = first.setdefault(tuple(part.rows), part.name) if part.rows else part.name
        parts.append(part if same == part.name else Part(part.name, f"{part.meaning} As `{same}`.", []))
    return parts


def reference_page() -> str:
    """docs/params.md: a table for each section."""
    texts = [INTRODUCTION]
    for part in build_reference():
        level = "##" if re.fullmatch(r"\w+", part.name) else "###"
        texts.append(f"{level} {part.name.replace('<', '&lt;')}\n\n{_cell(part.meaning)}\n")
        if part.rows:
            lines = ["| parameter | takes | default | meaning |", "|---|---|---|---|"]
            for row in part.rows:
                default = "" if row.default is None else f"`{_cell(row.default)}`"
                lines.append(f"| `{row.name}` | {_cell(row.takes)} | {default} | {_cell(row.meaning)} |")
            texts.append("\n".join(lines) + "\n")
    return "\n".join(texts)


def reference_text(section: str | None = None) -> str:
    """The reference for a terminal."""
    texts = []
    for part in build_reference(section):
        lines = [part.name, f"  {_line(part.meaning)}"]
        for row in part.rows:
            default = "must be given" if row.default is None else f"default {row.default}"
            lines += [f"  {row.name}: {row.takes}; {default}", f"      {_line(row.meaning)}"]
        texts.append("\n".join(lines))
    return "\n\n".join(texts)


def undocumented() -> list[str]:
    """Parameters without documentation; the `rule` of a strategy needs none."""
    parts = build_reference()
    wanting = [part.name for part in parts if not part.meaning]
    return wanting + [f"{part.name}.{row.name}" for part in parts for row in part.rows if not row.meaning]


def _parts(name: str, entry: Mapping[str, Any], named: Mapping[str, Any]) -> Iterator[Part]:
    """A section or mapping, followed by the mappings in it."""
    target = _target(entry, named)
    inner = target.get("additionalProperties")
    meaning = target.get("description", "") if "$ref" in entry else entry.get("description", "")
    if isinstance(inner, Mapping):
        yield Part(name, meaning, [])
        for choice in inner.get("oneOf", [inner]):
            model = _target(choice, named)
            rule = model.get("properties", {}).get("rule", {}).get("const")
            yield from _parts(f"{name}.<name>" + (f" of rule {rule}" if rule else ""), choice, named)
        return
    rows, apart = [], []
    for field, given in target.get("properties", {}).items():
        if "const" in given or given.get("deprecated"):  # earlier names are read, but not taught
            continue
        place = f"{name}.{field}"
        rows.append(
            Row(field, describe(given, named), _default(given, field, target, named), given.get("description", ""))
        )
        apart += _below(place, given, named)
    yield Part(name, meaning, rows)
    for place, model in apart:
        yield from _parts(place, model, named)


def _below(place: str, given: Mapping[str, Any], named: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Mappings with known keys in a parameter: itself, one of its choices, items of a list or of a mapping by name."""
    if "$ref" in given:
        return [(place, {"$ref": given["$ref"]})]
    found = [pair for choice in given.get("anyOf", []) for pair in _below(place, choice, named)]
    if isinstance(given.get("items"), Mapping):
        found += _below(f"{place}.<number>", given["items"], named)
    if isinstance(given.get("additionalProperties"), Mapping):
        found += _below(f"{place}.<name>", given["additionalProperties"], named)
    return found


def _target(entry: Mapping[str, Any], named: Mapping[str, Any]) -> Mapping[str, Any]:
    found: Mapping[str, Any] = named[entry["$ref"].rpartition("/")[2]] if "$ref" in entry else entry
    return found


def _default(given: Mapping[str, Any], field: str, model: Mapping[str, Any], named: Mapping[str, Any]) -> str | None:
    if field in model.get("required", []):
        return None
    if "default" not in given:  # a default_factory: an empty list or mapping
        return "[]" if given.get("type") == "array" else "{}"
    if "$ref" in given and given["default"] is not None:
        return "that of its parameters"
    value = given["default"]
    return value if isinstance(value, str) and value else json.dumps(value)


def _tidy(schema: Any) -> Any:
    """Remove the titles that pydantic makes from names, and put docstrings on one line."""
    if isinstance(schema, list):
        return [_tidy(inner) for inner in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _tidy(inner) for key, inner in schema.items() if key != "title" or not isinstance(inner, str)}
    if isinstance(kept.get("description"), str):
        kept["description"] = _line(kept["description"])
    return kept


def _line(text: str) -> str:
    return " ".join(text.split())


def _cell(text: str) -> str:
    return _line(text).replace("|", "\\|")
