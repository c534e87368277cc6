"""Mix: rows of existing data sets, joined to the routed ones."""

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
from pydantic import Field, model_validator

from persyn.errors import InputError
from persyn.generation import Training
from persyn.messages import Message, assistant_message
from persyn.prompts import PromptSettings, evaluation_sets, unfit
from persyn.prompts.conversations import Asked, prompt_id
from persyn.prompts.decontamination import EvaluationSets
from persyn.prompts.sources import FIRST_OF, Rows, is_template
from persyn.schemas import DATASET, Domain
from persyn.settings import Misfit, shown
from persyn.thinking import Thought, split_thought

logger = logging.getLogger(__name__)
MIX = "mix:"
"""Begins the `teacher` of mixed rows, which no teacher wrote. The name of a teacher, a file's, has no colon."""
NOT_CHOSEN = "not chosen"


class MixSource(Rows):
    """An existing data set of conversations that end with the assistant. `path` is below the raw folder."""

    license: Annotated[str, Field(pattern=r"\S", json_schema_extra={"x-needed": "the name of a licence"})]
    """Licence of its rows, copied to each."""
    training: Training = "unknown"
    """Whether its rows may train models: many data sets were written by models whose terms say something about that.
    One whose terms forbid it is refused."""
    terms: str | None = None
    """The condition on that and where it is written, in one line."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """What the tables call it; null: its `path` or `hub`."""
    ratio: Annotated[float, Field(gt=0)] | None = None
    """Rows to take, relative to the routed rows that are kept: 0.2 adds 20 rows to 100. One of `ratio` and `count` must
    be given."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Rows to take."""
    messages: str | None = None
    """Column of the conversation: a list of {role, content} or of {from, value}, whose last turn is the assistant's.
    null: the column `messages`, or else `conversations`, or else `instruction`, `input` and `output` (Alpaca)."""
    domain: Domain = "instruction"
    """What an export calls its rows."""

    @model_validator(mode="after")
    def _one_amount(self) -> Self:
        if (self.ratio is None) == (self.count is None):
            given = "are both given" if self.count is not None else "are both missing"
            raise Misfit("ratio", f"and count {given}; give one of them")
        return self

    @model_validator(mode="after")
    def _a_column(self) -> Self:
        if is_template(self.messages or ""):
            raise Misfit(
                "messages",
                f"is {shown(self.messages)}, a template, which writes no conversation with its answer; it must be a "
                f"column of conversations: make one in the file",
            )
        return self

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def teacher(self) -> str:
        """What stands in the column `teacher` of its rows."""
        return MIX + self.title


@dataclass(frozen=True)
class _Row:
    """A row that may be joined."""

    prompt_id: str
    prompt: list[Message]
    thought: Thought
    """Its answer, apart from a thought in tags before it, or in a field of its own."""


@dataclass(frozen=True)
class Chosen:
    """The rows of a mix that are joined. Only their prompt_id are in memory."""

    mix: MixSource
    raw: Path
    max_characters: int
    prompt_ids: Set[str]

    def tables(self, rows: int = 50_000) -> Iterator[pl.DataFrame]:
        """DATASET of these rows, in tables of so many, in the order of the data set, which is read again."""
        fit = _fit_rows(self.mix, self.raw, self.max_characters, {}, Counter())
        wanted = (row for row in fit if row.prompt_id in self.prompt_ids)
        while part := list(islice(wanted, rows)):
            yield _table(self.mix, part)


def is_mix() -> pl.Expr:
    """Whether a row's teacher says that it is from a mix."""
    return pl.col("teacher").str.starts_with(MIX)


def lot(seed: int, *content: str) -> str:
    """A number drawn by the content alone, as text."""
    return hashlib.sha256("\n".join((str(seed), *content)).encode("utf-8", "backslashreplace")).hexdigest()


def choose_mixes(
    routed: pl.Series, mixes: Sequence[MixSource], seed: int, prompts: PromptSettings, raw: Path
) -> tuple[list[Chosen], dict[str, Any]]:
    """The rows of the mixes that are joined to the routed ones.

    Args:
        routed: prompt_id of the routed rows. No mixed row has a prompt of one of them, nor of another mixed row.
        prompts: names the evaluation sets that no row may repeat, and how long a prompt may be.
        raw: the folder that paths are relative to, as those of prompts.sources.

    Returns:
        The rows of each mix, and label -> {read, kept, dropped: {reason: count}, origin (as Rows.origin), license,
        training, terms}; of a mix that has too few rows also wanted. Reasons are those of prompts, and `routed` (a
        prompt of the dataset), `duplicate`, `no answer`, and `not chosen`, of rows that the ratio or the count leaves.
        Only rows that would be chosen are compared with the evaluation sets, since that takes long.

    Raises:
        InputError: the terms of an entry forbid training, or a data set cannot be read.
    """
    if not mixes:
        return [], {}
    for number, mix in enumerate(mixes):
        _check_terms(number, mix)
    items, taken, counts, parts = evaluation_sets(raw, prompts), dict.fromkeys(routed, "routed"), {}, []
    for mix in mixes:
        wanted = mix.count if mix.count is not None else round((mix.ratio or 0) * routed.len())
        dropped = Counter[str]()
        chosen = _choose(_fit_rows(mix, raw, prompts.max_characters, taken, dropped), wanted, seed, items, dropped)
        taken |= dict.fromkeys(chosen, "duplicate")
        parts.append(Chosen(mix, raw, prompts.max_characters, chosen))
        counts[mix.title] = {
            "read": len(chosen) + dropped.total(),
            "kept": len(chosen),
            "dropped": dict(sorted(dropped.items())),
            "origin": mix.origin(raw),
            **{name: getattr(mix, name) for name in ("license", "training", "terms")},
        }
        logger.info(
            "mix %s: %d rows read, %d kept; dropped: %s",
            *(mix.title, len(chosen) + dropped.total(), len(chosen)),
            ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "none",
        )
        if len(chosen) < wanted:
            counts[mix.title] |= {"wanted": wanted}
            logger.warning("mix %s has %d fit rows, %d are wanted; all are taken", mix.title, len(chosen), wanted)
    return parts, counts


def _check_terms(number: int, mix: MixSource) -> None:
    if mix.training == "forbidden":
        raise InputError(
            f"dataset.mix.{number} ({mix.title}): its terms forbid training on its rows "
            f"({mix.terms or f'licence {mix.license}'}); remove it, or, if you have permission, set its training to "
            f"conditional and name the permission in its terms"
        )
    if mix.training == "unknown":
        logger.warning(
            "mix %s: whether its rows may train models is unknown; read its terms and set `training` of the entry",
            mix.title,
        )


def _fit_rows(
    mix: MixSource, raw: Path, max_characters: int, taken: dict[str, str], dropped: Counter[str]
) -> Iterator[_Row]:
    """The rows that may be joined; others are counted in `dropped`. Of rows with the same prompt it is the first.

    Args:
        taken: prompt_id of rows that are there already -> the reason to drop another one.
    """
    shapes = {column: given for column, given in FIRST_OF.items() if column != "prompt"}
    seen = set[str]()
    for _, read in mix.read(raw, asked=["messages"], messages=mix.messages or shapes):
        asked: Asked = read["messages"]
        thought = split_thought(asked.answer or "", opened=None)
        thought = replace(thought, reasoning=asked.thought or thought.reasoning)
        row = _Row(prompt_id(asked.messages), asked.messages, thought)
        written = f"{asked.answer or ''}{asked.thought or ''}"
        reason = unfit(asked, written, max_characters) or ("" if thought.answer else "no answer")
        reason = reason or ("duplicate" if row.prompt_id in seen else taken.get(row.prompt_id, ""))
        if reason:
            dropped[reason] += 1
            continue
        seen.add(row.prompt_id)
        yield row


def _choose(rows: Iterator[_Row], wanted: int, seed: int, items: EvaluationSets, dropped: Counter[str]) -> set[str]:
    """prompt_id of the rows of the lowest lots that repeat no evaluation item. Others are counted in `dropped`."""
    kept: list[tuple[int, str]] = []
    for row in rows:
        drawn = -int(lot(seed, row.prompt_id), 16)  # the heap's first is the highest lot
        if not wanted or (len(kept) == wanted and drawn < kept[0][0]):
            dropped[NOT_CHOSEN] += 1
        elif met := items.met(row.prompt):
            dropped[met.reason] += 1
        elif len(kept) < wanted:
            heapq.heappush(kept, (drawn, row.prompt_id))
        else:
            heapq.heapreplace(kept, (drawn, row.prompt_id))
            dropped[NOT_CHOSEN] += 1
    return {identity for _, identity in kept}


def _table(mix: MixSource, chosen: Sequence[_Row]) -> pl.DataFrame:
    """DATASET of these rows."""
    same = {
        "teacher": mix.teacher,
        "finish_reason": "stop",
        "license": mix.license,
        "teacher_license": mix.license,
        "training": mix.training,
    }
    rows = [
        {
            "prompt_id": row.prompt_id,
            "prompt": row.prompt,
            "completion": assistant_message(row.thought.answer),
            "reasoning": row.thought.reasoning,
            **same,
        }
        for row in chosen
    ]
    return pl.DataFrame(rows, schema=DATASET)
