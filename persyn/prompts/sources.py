"""Sources: rows of a file or a hub dataset, read as text or conversations by column or template."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
from jinja2 import StrictUndefined, Template, TemplateError, Undefined, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment
from pydantic import Field, model_validator

from persyn.errors import InputError
from persyn.prompts.conversations import Asked, NoPrompt, asked_alpaca, asked_text, read_asked
from persyn.settings import Commit, Misfit, Settings, shown

ALPACA = "{{ instruction }}{% if input is defined and input and input.strip() %}\n\n{{ input }}{% endif %}"
ALPACA_ANSWER = "{{ output if output is defined else '' }}"
Row = dict[str, Any]
BATCH = 10_000
"""Rows of a parquet file or a hub dataset that are in memory at a time."""
FIRST_OF = {"prompt": "prompt", "messages": "messages", "conversations": "conversations", "instruction": ALPACA}
"""What asks where nothing says so: by the first of these columns that is there, a column or a template."""
BESIDE = {"conversations": {"system"}, ALPACA: {"system", "history"}}
"""What asks -> further columns that are part of the conversation, where they are there."""


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
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Row by row, its number from 0 and the text (or null) of every field. No more than a batch is in memory.

        Args:
            folder: that `path` is relative to.
            numeric: the fields whose column may hold numbers; their text is the shortest that reads back as them.
            asked: the fields whose column may hold a conversation; instead of text they are Asked.
            fields: field -> column or template; or several by column, of which the first that is there counts.

        Raises:
            InputError: the rows are unreadable, a column is missing or holds no text, or a template is wrong or fails.
                A column that no row has is known only after the last row.
        """
        if self.where is not None and not is_template(self.where):
            raise InputError(
                f"source {self.name}: where is {self.where!r}; it must be a template, such as {{{{ level == 'hard' }}}}"
            )
        table = self._open(folder, fields)
        chosen, seen = self._chosen(fields, table.columns), dict[str, None]()
        holds = None if self.where is None else self._text("where", self.where, seen)
        values: dict[str, Callable[[int, Row], Any]] = {
            field: self._asked(field, given, seen)
            if field in asked
            else self._text(field, given, seen, field in numeric)
            for field, given in chosen.items()
        }
        taken = 0
        for number, row in enumerate(table.rows()):
            if not row.keys() <= seen.keys():
                seen |= dict.fromkeys(row)
            if taken != self.limit and (holds is None or _holds(holds(number, row) or "")):
                taken += 1
                yield number, {field: value(number, row) for field, value in values.items()}
        for given in chosen.values():
            if seen and given not in seen and not is_template(given):
                raise InputError(f"source {self.name}: no column {given!r}; it has {', '.join(seen)}")

    def _open(self, folder: Path, fields: Mapping[str, str | Mapping[str, str]]) -> "_Table":
        """The rows, of whose columns only those are read that are used; of a hub dataset, whose others may be large."""
        if self.hub:
            return _open_hub(self, lambda has: self._columns(self._chosen(fields, lambda _: has), has))
        return _open_file(folder, self)

    def _chosen(
        self, fields: Mapping[str, str | Mapping[str, str]], columns_until: Callable[[str], Collection[str]]
    ) -> dict[str, str]:
        """field -> column or template, given the columns there are."""
        chosen = {}
        for field, given in fields.items():
            if isinstance(given, str):
                chosen[field] = given
                continue
            columns = columns_until(next(iter(given)))
            there = [given[column] for column in given if column in columns] or ([] if columns else [*given.values()])
            if not there:
                raise InputError(
                    f"source {self.name}: no column {' or '.join(given)}; it has {', '.join(columns)}; name the column "
                    f"as `{field}`, or write a template"
                )
            chosen[field] = there[0]
        return chosen

    def _columns(self, fields: Mapping[str, str], has: Collection[str]) -> set[str]:
        """The columns that the fields and `where` use, of those in BESIDE the ones that it has, with `row` if a
        template uses the whole row.
        """
        named: set[str] = set()
        for field, given in (*fields.items(), ("where", self.where or "")):
            named |= BESIDE.get(given, set()) & set(has)
            if is_template(given):
                self._template(field, given)
                named |= _names(TEMPLATES.parse(given + (ALPACA_ANSWER if given == ALPACA else "")))
            elif given:
                named.add(given)
        return named

    def _asked(self, field: str, given: str, seen: Collection[str]) -> Callable[[int, Row], Asked]:
        """A function from a row's number and the row to what it asks."""
        text = self._text(field, given, seen) if is_template(given) else None
        answer = self._text(field, ALPACA_ANSWER, seen) if given == ALPACA else None

        def asked(number: int, row: Row) -> Asked:
            try:
                if text is None:
                    return read_asked(row.get(given), *map(row.get, BESIDE.get(given, ())))
                said = text(number, row) or ""
                if answer is None:
                    return asked_text(said)
                return asked_alpaca(said, answer(number, row), row.get("system"), row.get("history"))
            except NoPrompt as error:
                what = f"column {given!r}" if text is None else f"the template of {field}"
                raise InputError(f"source {self.name}: row {number}, {what} {error}") from error

        return asked

    def _text(
        self, field: str, given: str, seen: Collection[str], numeric: bool = False
    ) -> Callable[[int, Row], str | None]:
        """A function from a row's number and the row to the field's text. `seen` are the columns met so far."""
        if is_template(given):
            template = self._template(field, given)

            def rendered(number: int, row: Row) -> str:
                try:
                    return template.render({"row": row, **row})
                except TEMPLATE_ERRORS as error:
                    raise InputError(
                        f"source {self.name}: row {number}, the template of {field} fails: {_line(error)}; the columns "
                        f"are {', '.join(seen)}"
                    ) from error

            return rendered

        def stored(number: int, row: Row) -> str | None:
            value = row.get(given)
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


@dataclass(frozen=True)
class _Table:
    """The rows of a source, read anew at each call of `rows`."""

    rows: Callable[[], Iterator[Row]]
    known: list[str] | None = None
    """The columns that every row has; None where rows may differ."""

    def columns(self, first: str) -> Collection[str]:
        """The columns that there are; once `first` is met, only those that were met up to it."""
        if self.known is not None:
            return self.known
        met: dict[str, None] = {}
        for row in self.rows():
            met |= dict.fromkeys(row)
            if first in met:
                break
        return met


def _open_file(folder: Path, source: Rows) -> _Table:
    readers = {".jsonl": _open_jsonl, ".parquet": _open_parquet}
    file = _file(folder, source)
    if not file.stat().st_size:
        raise InputError(f"source {source.name}: {file} is empty; it needs at least one row")
    if file.suffix not in readers:
        raise InputError(f"source {source.name}: cannot read {file.suffix}; needs {' or '.join(readers)}")
    try:
        return readers[file.suffix](file, source.name)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise InputError(f"source {source.name}: {_line(error)}") from error


def _open_parquet(file: Path, name: str) -> _Table:
    table = pl.scan_parquet(file)
    columns, empty = table.collect_schema().names(), table.select(pl.len()).collect().item() == 0

    def rows() -> Iterator[Row]:
        try:
            for batch in table.collect_batches(chunk_size=BATCH):
                yield from batch.to_dicts()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"source {name}: {_line(error)}") from error

    return _Table(rows, [] if empty else columns)


def _open_jsonl(file: Path, name: str) -> _Table:
    return _Table(partial(_read_jsonl, file))


def _read_jsonl(file: Path) -> Iterator[Row]:
    """One json object per line. Bytes that are not UTF-8 become surrogates, so that their row counts as `not text`.

    Not by polars: its reader silently changes numbers and lone surrogates.
    """
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
            yield row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A json object, refused if a key has two values, of which json keeps the last."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == other for other, _ in pairs) > 1)
        raise ValueError(f"it has the key {twice!r} twice, and only one value can count")
    return found


def _open_hub(source: Rows, used: Callable[[list[str]], set[str]]) -> _Table:
    """A hub dataset; only the columns that are used if it has them all, since others may be many and large."""
    from datasets import load_dataset

    data = load_dataset(source.hub, source.config, split=source.split, revision=_pinned(source))
    columns = used(data.column_names)
    data = data.select_columns(sorted(columns)) if columns <= set(data.column_names) else data
    batches = data.with_format("arrow").iter
    return _Table(lambda: (row for batch in batches(BATCH) for row in batch.to_pylist()), data.column_names)


def _pinned(source: Rows) -> str:
    if not re.fullmatch(r"[0-9a-f]{40}", source.revision or ""):
        raise InputError(f"source {source.hub}: revision is {source.revision!r}; a hub dataset needs its 40-hex commit")
    return str(source.revision)
