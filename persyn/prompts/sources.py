"""Sources: rows of a file or a hub dataset, read as text or conversations by column or template."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
from jinja2 import StrictUndefined, Template, TemplateError, Undefined, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from persyn.errors import InputError
from persyn.prompts.conversations import Asked, NoPrompt, asked_text, read_asked
from persyn.settings import Commit, Misfit, Settings, shown

ALPACA = "{{ instruction }}{% if input is defined and input and input.strip() %}\n\n{{ input }}{% endif %}"
ALPACA_ANSWER = "{{ output if output is defined else '' }}"
FIRST_OF = {"prompt": "prompt", "messages": "messages", "conversations": "conversations", "instruction": ALPACA}
"""What asks where nothing says so: by the first of these columns that is there, a column or a template."""


def _written(value: Any) -> Any:
    """What a template writes for a value. A null is an empty text, as in a column."""
    if value is None:
        return ""
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError(f"it writes {value}, which is no number; leave the row out by `where`, or write another value")
    if isinstance(value, WRITABLE):
        return value
    kind = type(value).__name__
    if callable(value):
        raise TypeError(
            f"it writes a {kind} and not what that returns; for a column or key of its name, write ['name']"
        )
    raise TypeError(
        f"it writes a {kind} as Python does; write a part of it, or its `| tojson` (a prompt may name the column)"
    )


def _judged(value: Any) -> Any:
    """What the template `where` writes for a value: of a list or an object whether it is empty; a NaN is false."""
    if isinstance(value, list | dict | tuple | float):
        return bool(value) and value == value
    return _written(value)


class _Templates(ImmutableSandboxedEnvironment):
    """Templates in which `order.items` is never the method of a mapping that has a key of that name."""

    def getattr(self, obj: Any, attribute: str) -> Any:
        if isinstance(obj, dict) and attribute in obj and hasattr(obj, attribute):
            raise TypeError(
                f"{attribute} is a key, but also a method of every mapping; write ['{attribute}'] for the key"
            )
        return super().getattr(obj, attribute)


WRITABLE = (str, int, float, Decimal, date, time, timedelta, Undefined)
TEMPLATES = _Templates(undefined=StrictUndefined, finalize=_written)
WHERE = TEMPLATES.overlay(finalize=_judged)
TEMPLATE_ERRORS = (
    *(TemplateError, TypeError, ValueError, ArithmeticError, LookupError, AttributeError),
    *(RecursionError, MemoryError),
)
FALSE = {"", "false", "none", "null", "[]", "{}", "()", '""'}


def _holds(text: str) -> bool:
    """Whether what `where` gives is true: neither nothing, empty, false, none nor any form of zero."""
    text = text.strip().lower()
    try:
        return float(text) != 0
    except ValueError:
        return text not in FALSE


class Rows(Settings):
    """Where rows come from: `path` (jsonl or parquet, below a folder) or `hub` (a dataset id).

    A field of a row is given by a column, or by a Jinja template over the row's columns (recognised by `{{` or `{%`),
    in which `row` is the whole row: `{{ row['a name with blanks'] }}`.
    """

    path: str | None = None
    """A jsonl or parquet file."""
    hub: str | None = None
    """A dataset of the Hugging Face hub, owner/name. One of `path` and `hub` must be given."""
    revision: Commit | None = None
    """40-hex commit of a hub dataset."""
    config: str | None = None
    """Configuration of a hub dataset."""
    split: str = "train"
    """Split of a hub dataset."""
    where: str | None = None
    """Template; rows for which it gives nothing, false, none, null, a zero (0, 0.0) or something empty ([], {}) are
    left out."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Takes only this many rows, the first that `where` leaves."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if bool(self.path) == bool(self.hub):
            given, other = ("hub", "path") if "hub" in self.model_fields_set else ("path", "hub")
            values = f"is {shown(getattr(self, given))}, and {other} is {shown(getattr(self, other))}"
            raise Misfit(given, f"{values}; it needs one of them")
        return self

    @property
    def name(self) -> str:
        return self.path or self.hub or ""

    def origin(self, folder: Path) -> str:
        """The identity of the content: `<hub>@<revision>`, or `<path>@<sha256 of the file>`.

        Raises:
            InputError: the file is missing, or a hub dataset is not pinned.
        """
        if self.hub:
            return f"{self.hub}@{_pinned(self)}"
        with _file(folder, self).open("rb") as file:
            return f"{self.path}@{hashlib.file_digest(file, 'sha256').hexdigest()}"

    def read(
        self,
        folder: Path,
        *,
        numeric: Collection[str] = (),
        asked: Collection[str] = (),
        **fields: str | Mapping[str, str],
    ) -> dict[int, dict[str, Any]]:
        """The text (or null) of every field, by row number from 0.

        Args:
            folder: that `path` is relative to.
            numeric: the fields whose column may hold numbers; their text is the shortest that reads back as them.
            asked: the fields whose column may hold a conversation; instead of text they are Asked.
            fields: field -> column or template; or several by column, of which the first that is there counts.

        Raises:
            InputError: the rows are unreadable, a column is missing or holds no text, or a template is wrong or fails.
        """
        if self.hub:
            rows = _read_hub(self, lambda has: self._columns(self._chosen(fields, has)))
        else:
            rows = _read_file(folder, self)
        chosen = self._chosen(fields, dict.fromkeys(name for row in rows for name in row))
        numbers = list(range(len(rows)))
        if self.where is not None:
            if not is_template(self.where):
                raise InputError(
                    f"source {self.name}: where is {self.where!r}; it must be a template, such as "
                    f"{{{{ level == 'hard' }}}}"
                )
            holds = self._text("where", self.where, rows)
            numbers = [number for number in numbers if _holds(holds(number) or "")]
        texts: dict[str, Callable[[int], Any]] = {
            field: self._asked(field, given, rows)
            if field in asked
            else self._text(field, given, rows, field in numeric)
            for field, given in chosen.items()
        }
        return {number: {field: text(number) for field, text in texts.items()} for number in numbers[: self.limit]}

    def _chosen(self, fields: Mapping[str, str | Mapping[str, str]], columns: Collection[str]) -> dict[str, str]:
        """field -> column or template, given these columns."""
        chosen = {}
        for field, given in fields.items():
            if isinstance(given, str):
                chosen[field] = given
                continue
            there = [given[column] for column in given if column in columns] or ([] if columns else [*given.values()])
            if not there:
                raise InputError(
                    f"source {self.name}: no column {' or '.join(given)}; it has {', '.join(columns)}; name the column "
                    f"as `{field}`, or write a template"
                )
            chosen[field] = there[0]
        return chosen

    def _columns(self, fields: Mapping[str, str]) -> set[str]:
        """The columns that the fields and `where` use, with `row` if a template uses the whole row."""
        named: set[str] = set()
        for field, given in (*fields.items(), ("where", self.where or "")):
            if is_template(given):
                self._template(field, given)
                named |= _names(TEMPLATES.parse(given + (ALPACA_ANSWER if given == ALPACA else "")))
            elif given:
                named.add(given)
        return named

    def _asked(self, field: str, given: str, rows: list[dict[str, Any]]) -> Callable[[int], Asked]:
        """A function from a row's number to what it asks."""
        text = self._text(field, given, rows) if is_template(given) else None
        answer = self._text(field, ALPACA_ANSWER, rows) if given == ALPACA else None
        if text is None:
            self._check_column(given, rows)

        def asked(number: int) -> Asked:
            try:
                if text is None:
                    return read_asked(rows[number].get(given))
                shape = "text" if answer is None else "alpaca"
                return asked_text(text(number) or "", shape, answer and answer(number))
            except NoPrompt as error:
                what = f"column {given!r}" if text is None else f"the template of {field}"
                raise InputError(f"source {self.name}: row {number}, {what} {error}") from error

        return asked

    def _check_column(self, name: str, rows: list[dict[str, Any]]) -> None:
        if rows and not any(name in row for row in rows):
            columns = ", ".join(dict.fromkeys(column for row in rows for column in row))
            raise InputError(f"source {self.name}: no column {name!r}; it has {columns}")

    def _text(
        self, field: str, given: str, rows: list[dict[str, Any]], numeric: bool = False
    ) -> Callable[[int], str | None]:
        """A function from a row's number to the field's text."""
        columns = ", ".join(dict.fromkeys(name for row in rows for name in row))
        if is_template(given):
            template = self._template(field, given)

            def rendered(number: int) -> str:
                try:
                    return template.render({"row": rows[number], **rows[number]})
                except TEMPLATE_ERRORS as error:
                    raise InputError(
                        f"source {self.name}: row {number}, the template of {field} fails: {_line(error)}; the columns "
                        f"are {columns}"
                    ) from error

            return rendered
        self._check_column(given, rows)

        def stored(number: int) -> str | None:
            value = rows[number].get(given)
            if numeric and isinstance(value, int | float) and not isinstance(value, bool):
                return repr(value)
            if numeric and not isinstance(value, str | None):
                raise InputError(
                    f"source {self.name}: row {number}, column {given!r} is {type(value).__name__}; it must hold "
                    f"numbers (or be made one by a template: {{{{ 1 if {given} else 0 }}}})"
                )
            if not isinstance(value, str | None):
                part = f"{given} | tojson" if isinstance(value, list | dict) else given
                raise InputError(
                    f"source {self.name}: row {number}, column {given!r} is {type(value).__name__}; it must hold text "
                    f"(or be made text by a template: {{{{ {part} }}}})"
                )
            return value

        return stored

    def _template(self, field: str, text: str) -> Template:
        try:
            return (WHERE if field == "where" else TEMPLATES).from_string(text)
        except TemplateError as error:
            raise InputError(f"source {self.name}: the template of {field} is wrong: {_line(error)}") from error


def _names(template: nodes.Template) -> set[str]:
    """The names that a template looks up: `a` for `row['a']`, and `row` only if it uses the whole row."""
    parts = [
        part.arg.value
        for part in template.find_all(nodes.Getitem)
        if isinstance(part.node, nodes.Name) and part.node.name == "row" and isinstance(part.arg, nodes.Const)
    ]
    named = find_undeclared_variables(template) - TEMPLATES.globals.keys()
    if len(parts) == sum(name.name == "row" for name in template.find_all(nodes.Name)):
        named -= {"row"}
    return named.union(parts)


def is_template(text: str) -> bool:
    """Whether `text` is a template over the columns, not a column's name."""
    return "{{" in text or "{%" in text


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _file(folder: Path, source: Rows) -> Path:
    file = folder / (source.path or "")
    if not file.is_file():
        raise InputError(f"source {source.name!r}: {file} does not exist; put it there or correct its path")
    return file


def _read_file(folder: Path, source: Rows) -> list[dict[str, Any]]:
    readers: dict[str, Callable[[Path], list[dict[str, Any]]]] = {
        ".jsonl": _read_jsonl,
        ".parquet": lambda file: pl.read_parquet(file).to_dicts(),
    }
    file = _file(folder, source)
    if not file.stat().st_size:
        raise InputError(f"source {source.name}: {file} is empty; it needs at least one row")
    if file.suffix not in readers:
        raise InputError(f"source {source.name}: cannot read {file.suffix}; needs {' or '.join(readers)}")
    try:
        return readers[file.suffix](file)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"source {source.name}: {_line(error)}") from error


def _read_jsonl(file: Path) -> list[dict[str, Any]]:
    """One json object per line. Bytes that are not UTF-8 become surrogates, so that their row counts as `not text`.

    Not by polars: its reader silently changes numbers and lone surrogates.
    """
    rows = []
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(filter(str.strip, lines)):
            try:
                row = json.loads(line.strip().lstrip("\ufeff"), object_pairs_hook=_object)
            except json.JSONDecodeError as error:
                hint = "; save the file as UTF-8" if "\0" in line else ""
                what = f"{error.msg}, column {error.colno}{hint}"
                raise InputError(f"{file}: row {number} is not json: {what}") from error
            except ValueError as error:  # Python reads no numbers of more than 4,300 digits
                reason = _line(error).partition(";")[0]
                raise InputError(f"{file}: row {number} cannot be read: {reason}; correct the row") from error
            except RecursionError as error:
                raise InputError(
                    f"{file}: row {number} cannot be read: its lists or objects are nested too deep; flatten it"
                ) from error
            if not isinstance(row, dict):
                raise InputError(f"{file}: row {number} is {type(row).__name__}; it must be an object, one per line")
            rows.append(row)
    return rows


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object, refused if a key has two values, of which json keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"it has the key {twice!r} twice, and only one value can count")
    return found


def _read_hub(source: Rows, used: Callable[[list[str]], set[str]]) -> list[dict[str, Any]]:
    """A hub dataset; only the columns that are used if it has them all, since others may be many and large."""
    from datasets import load_dataset

    data = load_dataset(source.hub, source.config, split=source.split, revision=_pinned(source))
    columns = used(data.column_names)
    return (data.select_columns(sorted(columns)) if columns <= set(data.column_names) else data).to_list()


def _pinned(source: Rows) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise InputError(f"source {source.hub}: revision is {source.revision!r}; a hub dataset needs its 40-hex commit")
    return str(source.revision)
