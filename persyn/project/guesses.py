"""Guesses: what a file of prompts holds. Where the prompt stands, whether an answer can be checked, and by what."""

import json
import keyword
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import Any

import polars as pl
from jinja2.meta import find_undeclared_variables

from persyn.errors import InputError
from persyn.prompts.conversations import Asked, NoPrompt, read_asked
from persyn.prompts.sources import ALPACA, TEMPLATE_ERRORS, TEMPLATES, Row, Rows, is_template
from persyn.schemas import Domain
from persyn.verifiers.answers import fault, read_reference
from persyn.verifiers.instructions import is_written_in, read_checks

CONVERT = "docs/howto.md has commands that convert other files (Begin with a file of prompts)"
ROWS = 2_000
"""Rows that are looked at."""
PROMPTS = ("prompt", "messages", "conversations", "turns", "conversation", "question", "problem", "query", "request")
"""Names of columns that ask, the likeliest first."""
TEXTS = (*PROMPTS, "instruction", "user_prompt", "input", "text", "content", "user", "human")
ANSWERS = (
    *("answer", "final_answer", "expected_answer", "ground_truth", "reference", "target", "checks", "solution"),
    *("output", "response", "result"),
)
"""Names of columns that may hold an answer or checks."""
CONTEXTS = ("context", "passage", "document", "input", "choices", "options")
"""Names of columns without which a question may make no sense."""
CHOICES = ("choices", "options")
"""Names of columns that hold the choices of a multiple choice."""
SELF_INSTRUCT = "{{ instruction }}{% if instances[0].input %}\n\n{{ instances[0].input }}{% endif %}"
ANY_INPUT = "{{ instruction }}{% if input is defined and input is not none %}\n\n{{ input }}{% endif %}"
IFEVAL = (
    "[{% for name in instruction_id_list %}{{ {'instruction_id': name, 'kwargs': kwargs[loop.index0]} | tojson }}"
    "{% if not loop.last %}, {% endif %}{% endfor %}]"
)
BOXED = " Put the final answer in \\boxed{}."
NO_NAMES = ("row", "items", "keys", "self", "true", "false", "none")
"""Columns that a template reads by `row['...']` alone, as Python's keywords."""
LONG = 20
"""Characters from which on an answer that stands in its prompt is no coincidence."""


@dataclass(frozen=True)
class Guess:
    """A value for a field of params.yaml, and why."""

    value: str
    why: str


@dataclass(frozen=True)
class Checks:
    """What can check the responses."""

    domain: Domain
    method: str
    reference: str | None
    why: str


class PromptFile:
    """A file of prompts: its first rows."""

    def __init__(self, file: Path) -> None:
        """Read them.

        Raises:
            InputError: it is missing, has another form, or cannot be read.
        """
        if not file.is_file():
            wrong = "is a folder; name a file in it" if file.is_dir() else "does not exist; correct the path"
            raise InputError(f"--prompts is {file}, which {wrong}")
        if file.suffix not in (".jsonl", ".parquet"):
            is_named = file.suffix.lower() in (".jsonl", ".ndjson", ".parquet")
            raise InputError(
                f"--prompts is {file}; it must be a .jsonl file (one JSON object a line) or a .parquet file, by this "
                f"ending: {'rename it' if is_named else CONVERT}"
            )
        self.file, self.rows = file, _first_rows(file)
        if not self.rows:
            raise InputError(f"--prompts is {file}, which has no rows; it needs at least one")
        self.columns = list(dict.fromkeys(column for row in self.rows for column in row))
        if not self.columns:
            raise InputError(f"--prompts is {file}, whose rows are empty objects; each needs a key with its prompt")
        if "row" in self.columns:
            raise InputError(
                f"--prompts is {file}, which has a column row; in templates that name means the whole row: rename the "
                "column, or make columns of its keys"
            )

    @property
    def text(self) -> str:
        """Its rows and columns, in one line."""
        kinds = [f"{column} ({', '.join(self._kinds(column))})" for column in self.columns]
        first = f"the first {len(self.rows):,} rows" if len(self.rows) == ROWS else f"{len(self.rows):,} rows"
        return f"{self.file.name}: {first}; columns {', '.join(kinds)}"

    def _kinds(self, column: str) -> list[str]:
        names = {
            str: "text",
            int: "number",
            float: "number",
            Decimal: "number",
            bool: "yes or no",
            list: "list",
            dict: "object",
        }
        there = [row[column] for row in self.rows if row.get(column) is not None]
        kinds = sorted({names.get(type(value), type(value).__name__) for value in there})
        missing = len(self.rows) - len(there)
        return [*kinds, *([f"missing in {missing} rows"] if missing else [])]

    def prompt(self) -> Guess | None:
        """Where the prompt stands; None if nothing tells."""
        found = {column: column for column in self._called(PROMPTS) if self._asks(column)}
        if not found and self._asks("instruction"):
            has_instances = all(_has_input(row.get("instances")) for row in self.rows)
            if has_instances:
                return Guess(SELF_INSTRUCT, "columns instruction and instances, as Self-Instruct has them")
            is_text = all(isinstance(row.get("input"), str | None) for row in self.rows)
            return Guess(ALPACA if is_text else ANY_INPUT, "column instruction, with input where there is one")
        found = found or self._nested(TEXTS)
        answers = self._called(ANSWERS)
        texts = [column for column in self.columns if self._kinds(column) == ["text"] and column not in answers]
        named = [column for column in self._called(TEXTS) if column in texts]
        texts = [column for column in texts if not self._is_key(column)]
        if not found and (named or len(texts) == 1):
            found = {column: column for column in (named or texts)[:1]}
        for place, given in found.items():
            return Guess(given, f"column {place}: {self.shapes(given)}")
        return None

    def _called(self, names: tuple[str, ...]) -> list[str]:
        """The columns of these names, in capitals or not."""
        return [column for name in names for column in self.columns if column.lower() == name]

    def _is_key(self, column: str) -> bool:
        """Whether a column has one word in every row, as ids and categories do."""
        return all(row[column].isascii() and len(row[column].split()) < 2 for row in self.rows)

    def _asks(self, column: str) -> bool:
        """Whether a column holds prompts: text or a conversation, in all rows."""
        try:
            return all(bool(row.get(column)) and bool(read_asked(row[column])) for row in self.rows)
        except NoPrompt:
            return False

    def shapes(self, given: str) -> str:
        """How many rows of which shape, and of how many turns, a column or template gives."""
        values = self.values(given)
        if is_template(given):
            return f"{len(self.rows)} texts"
        try:
            asked = [read_asked(value) for value in values]
        except NoPrompt as error:
            raise InputError(f"--prompt is {given!r}, which {error}") from error
        counts = Counter(map(_shape, asked))
        return ", ".join(f"{count} {shape}" for shape, count in counts.most_common(4))

    def notes(self, prompt: str) -> list[str]:
        """What may be wrong although it can be read: bytes that are not UTF-8, and what belongs to the prompt."""
        notes = []
        broken = sum(bool(re.search("[\ud800-\udfff]", _json(row))) for row in self.rows)
        if broken:
            notes.append(
                f"{broken} rows are not in UTF-8; prompts that are not are dropped as `not text`: save it anew"
            )
        left = [
            name for name in self._called(CONTEXTS) if name not in prompt and any(row.get(name) for row in self.rows)
        ]
        if left:
            notes.append(f"the prompt leaves out {', '.join(left)}; --prompt may be a template over several columns")
        return notes

    def asks_for_boxes(self, given: str) -> str:
        """The prompt with a request to box the final answer, where it is text and does not have one."""
        if not is_template(given) and any(not isinstance(row.get(given), str) for row in self.rows):
            return given
        if any("boxed" in str(value) for value in self.values(given)[:100]):
            return given
        return (given if is_template(given) else f"{{{{ {_name(given)} }}}}") + BOXED

    def checks(self) -> Checks | None:
        """What can check the responses, from the columns; None if nothing can."""
        if {"instruction_id_list", "kwargs"} <= set(self.columns):
            return self.checks_by(IFEVAL, "columns instruction_id_list and kwargs, as IFEval has them")
        for place, form in self._answers():
            found = self.checks_by(form, f"column {place}")
            if found and not (found.domain == "math" and self._choices):
                return found
        return None

    def unchecked(self) -> str:
        """Why nothing in the columns was found to check the responses, and what may after all."""
        if self._choices:
            return f"column {self._choices} makes it multiple choice, whose answers are not guessed"
        for column in self.columns:
            if all("assert " in _json(row.get(column)) for row in self.rows):
                return f"column {column} has tests: --quality unit_tests --reference {self._tests(column)!r} runs them"
        for place, form in self._answers():
            try:
                texts = [_text(value) for value in self.values(form)]
            except InputError:
                continue
            finals = [_is_final(text) for text in texts]
            if len(finals) / 2 < sum(finals) < len(finals):
                first = finals.index(False)
                return (
                    f"column {place} has a final answer in {sum(finals):,} of {len(finals):,} rows, not in row {first} "
                    f"(from 0): {texts[first][:60]!r}; --quality math_verify --reference {self._as_text(form)!r} "
                    "takes all that it can compare, and names the others"
                )
        return "no column has checks or a final answer in every row"

    def _tests(self, column: str) -> str:
        """The reference that runs the tests of a column, as the project's own, MBPP's or HumanEval's."""
        if isinstance(self.rows[0][column], list):
            return f"{{{{ {_name(column)} | join('\\n') }}}}"
        return f"{{{{ {_name(column)} }}}}\ncheck({{{{ entry_point }}}})" if "entry_point" in self.columns else column

    @property
    def _choices(self) -> str:
        """The column of the choices of a multiple choice, if there is one."""
        return next((name for name in CHOICES if isinstance(self.rows[0].get(name), list | dict)), "")

    def _answers(self) -> Iterator[tuple[str, str]]:
        """Place and form of what may be an answer."""
        candidates = {column: column for column in self._called(ANSWERS)} | self._nested(ANSWERS)
        for place, given in candidates.items():
            has_hashes = all("####" in _text(value) for value in self.values(given))
            for form in _forms(given, has_hashes):
                yield place, form

    def checks_by(self, reference: str, place: str) -> Checks | None:
        """What a column or template can be compared by; None if some row has neither checks nor a final answer."""
        try:
            values = [_text(value) for value in self.values(reference)]
        except InputError:
            return None
        if not all(value.strip() for value in values):
            return None
        if all(map(_is_checks, values)):
            return Checks(
                "instruction", "checkers", reference, f"{place}: every row has checks that IFEval's form knows"
            )
        if all(map(_is_final, values)):
            why = f"{place}: every row has a final answer, such as {values[0]!r}"
            return Checks("math", "math_verify", self._as_text(reference), why)
        return None

    def _as_text(self, given: str) -> str:
        """A column or template, as a template if the column holds numbers."""
        is_number = any(isinstance(row.get(given), int | float | Decimal) for row in self.rows)
        return f"{{{{ {_name(given)} }}}}" if is_number and not is_template(given) else given

    def values(self, given: str) -> list[Any]:
        """What a column or a template gives for each row.

        Raises:
            InputError: there is no such column, or the template is wrong.
        """
        if not is_template(given):
            if given not in self.columns:
                raise InputError(f"there is no column {given!r} in {self.file.name}; it has {', '.join(self.columns)}")
            return [row.get(given) for row in self.rows]
        try:
            template = TEMPLATES.from_string(given)
            return [template.render({"row": row, **row}) for row in self.rows]
        except TEMPLATE_ERRORS as error:
            raise InputError(f"the template {given!r} fails on {self.file.name}: {error}") from error

    def leak(self, prompt: str, reference: str) -> str:
        """Why the prompt gives the answer away; empty if it does not."""
        both = (_columns(prompt) & _columns(reference)) - {"row"}
        if both:
            return f"the prompt and the reference both read {', '.join(sorted(both))}"
        asked = [_json(value) for value in self.values(prompt)]
        for column in _columns(reference) & set(self.columns):
            answers = [_json(row.get(column)).strip('"') for row in self.rows]
            pairs = zip(answers, asked, strict=True)
            count = sum(len(answer) >= LONG and answer in text for answer, text in pairs)
            if count:
                return f"the whole {column} stands in the prompt of {count} rows"
        return ""

    def is_english(self, prompt: str) -> bool:
        """Whether most of the first prompts are English."""
        sample = [value if isinstance(value, str) else _json(value) for value in self.values(prompt)[:20]]
        return 2 * sum(is_written_in(text, "en") for text in sample) > len(sample)

    def _nested(self, names: tuple[str, ...]) -> dict[str, str]:
        """Place -> template of the texts and numbers of these names in columns that hold objects."""
        found = {}
        for column in self.columns:
            for name in names:
                values = [row[column].get(name) if isinstance(row.get(column), dict) else None for row in self.rows]
                if all(isinstance(value, str | int | float) and value != "" for value in values):
                    found[f"{column}.{name}"] = f"{{{{ row[{column!r}][{name!r}] }}}}"
        return found


def _first_rows(file: Path) -> list[Row]:
    if file.suffix == ".parquet":
        try:
            return pl.scan_parquet(file).head(ROWS).collect().to_dicts()
        except (pl.exceptions.PolarsError, OSError) as error:
            raise InputError(f"--prompts is {file}, which cannot be read: {' '.join(str(error).split())}") from error
    try:
        count = sum(1 for _ in islice(Rows(path=file.name).read(file.parent), ROWS))
    except InputError as error:
        raise InputError(f"{error}; a .jsonl file holds one JSON object a line, in UTF-8; {CONVERT}") from error
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        return [json.loads(line.strip().lstrip("\ufeff")) for line in islice(filter(str.strip, lines), count)]


def _shape(asked: Asked) -> str:
    """What a row asks, in the plural."""
    if asked.unfit:
        return f"conversations ({asked.shape}) that cannot be used: {asked.unfit}"
    return "texts" if asked.shape == "text" else f"conversations ({asked.shape}) of {len(asked.messages)} turns"


def _forms(given: str, has_hashes: bool) -> Iterator[str]:
    """A column, or what follows its last ####, and its part of a template if it holds lists."""
    inner = given.removeprefix("{{ ").removesuffix(" }}") if is_template(given) else _name(given)
    if has_hashes:
        yield f"{{{{ ({inner}.split('####') | last).strip() }}}}"
    yield given
    yield f"{{{{ {inner} | tojson }}}}"


def _name(column: str) -> str:
    """A column in a template."""
    is_name = column.isidentifier() and column not in (*keyword.kwlist, *NO_NAMES)
    return column if is_name else f"row[{column!r}]"


def _columns(given: str) -> set[str]:
    return find_undeclared_variables(TEMPLATES.parse(given)) if is_template(given) else {given}


def _has_input(instances: Any) -> bool:
    return (
        isinstance(instances, list) and bool(instances) and isinstance(instances[0], dict) and "input" in instances[0]
    )


def _json(value: Any) -> str:
    """A value of a table, which may hold what JSON has no form of, such as dates."""
    return json.dumps(value, ensure_ascii=False, default=str)


def _text(value: Any) -> str:
    return "" if value is None or isinstance(value, bool | list | dict) else str(value)


def _holds(check: Callable[[str], Any], text: str) -> bool:
    try:
        return bool(check(text))
    except InputError:
        return False


def _is_checks(text: str) -> bool:
    return text.lstrip().startswith("[") and _holds(read_checks, text)


def _is_final(text: str) -> bool:
    """Whether a text has a final answer that is a number or an expression of LaTeX, and no words."""
    if fault(text):
        return False
    [reading] = read_reference(text)
    return reading.number is not None or (not reading.words and not reading.letter and "\\" in text)
