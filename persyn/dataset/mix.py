"""Mix: rows of existing data sets, joined to the routed ones."""

import hashlib
import heapq
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
from pydantic import Field, model_validator

from persyn.errors import InputError
from persyn.messages import assistant_message
from persyn.prompts import PromptSettings, evaluation_sets, unfit
from persyn.prompts.conversations import Asked, prompt_id
from persyn.prompts.decontamination import EvaluationSets
from persyn.prompts.sources import FIRST_OF, Rows
from persyn.schemas import DATASET, Domain
from persyn.settings import Misfit

logger = logging.getLogger(__name__)
RAW = Path("data/raw")
"""The folder that paths are relative to, as those of prompts.sources."""
MIX = "mix:"
"""Begins the `teacher` of mixed rows, which no teacher wrote. The name of a teacher, a file's, has no colon."""
NOT_CHOSEN = "not chosen"


class Mix(Rows):
    """An existing data set of conversations that end with the assistant. `path` is below the raw folder."""

    license: str = ""
    """Licence of its rows, copied to each. It must be given."""
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

    @property
    def title(self) -> str:
        return self.label or self.name

    @property
    def teacher(self) -> str:
        """What stands in the column `teacher` of its rows."""
        return MIX + self.title


def is_mix() -> pl.Expr:
    """Whether a row's teacher says that it is from a mix."""
    return pl.col("teacher").str.starts_with(MIX)


def lot(seed: int, *content: str) -> str:
    """A number drawn by the content alone, as text."""
    return hashlib.sha256("\n".join((str(seed), *content)).encode("utf-8", "backslashreplace")).hexdigest()


def add_mixes(
    dataset: pl.DataFrame, mixes: Sequence[Mix], seed: int, prompts: PromptSettings, raw: Path = RAW
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """DATASET with the rows of the mixes after its own.

    Args:
        dataset: the routed rows. No mixed row has a prompt of one of them, nor of another mixed row.
        prompts: names the evaluation sets that no row may repeat, and how long a prompt may be.

    Returns:
        DATASET, and label -> {read, kept, dropped: {reason: count}, license}; of a mix that has too few rows also
        wanted. Reasons are those of prompts, and `routed` (a prompt of the dataset), `duplicate`, `no answer`, and
        `not chosen`, of rows that the ratio or the count leaves.

    Raises:
        InputError: an entry has no licence, or a data set cannot be read.
    """
    if not mixes:
        return dataset, {}
    for number, mix in enumerate(mixes):
        if not mix.license.strip():
            raise InputError(
                f"dataset.mix.{number} ({mix.title}) has no licence; write the `license` of its data set's page"
            )
    items, taken, counts, parts = evaluation_sets(raw, prompts), dict.fromkeys(dataset["prompt_id"], "routed"), {}, []
    for mix in mixes:
        wanted = mix.count if mix.count is not None else round((mix.ratio or 0) * dataset.height)
        dropped = Counter[str]()
        fit = _fit_rows(mix, raw, items, prompts.max_characters, taken, dropped)
        chosen, read = _choose(fit, wanted, seed, dropped)
        read += dropped.total() - dropped[NOT_CHOSEN]
        taken |= dict.fromkeys((identity for identity, _ in chosen), "duplicate")
        parts.append(_table(mix, chosen))
        counts[mix.title] = {"read": read, "kept": len(chosen), "dropped": dict(sorted(dropped.items()))}
        assert read == len(chosen) + dropped.total(), "every row is kept or counted"
        counts[mix.title] |= {"license": mix.license}
        logger.info("mix %s: %d rows read, %d kept; dropped: %s", mix.title, read, len(chosen), dict(dropped))
        if len(chosen) < wanted:
            counts[mix.title] |= {"wanted": wanted}
            logger.warning("mix %s has %d fit rows, %d are wanted; all are taken", mix.title, len(chosen), wanted)
    return pl.concat([dataset, *parts]), counts


def _fit_rows(
    mix: Mix,
    raw: Path,
    items: EvaluationSets,
    max_characters: int,
    taken: dict[str, str],
    dropped: Counter[str],
) -> Iterator[tuple[str, Asked]]:
    """The rows that may be joined, with their prompt_id; others are counted in `dropped`."""
    shapes = {column: given for column, given in FIRST_OF.items() if column != "prompt"}
    seen = set[str]()
    for _, row in mix.read(raw, asked=["messages"], messages=mix.messages or shapes):
        asked: Asked = row["messages"]
        identity = prompt_id(asked.messages)
        reason = unfit(asked, asked.answer, max_characters) or ("" if asked.answer else "no answer")
        reason = reason or ("duplicate" if identity in seen else taken.get(identity, ""))
        if not reason and (met := items.met(asked.messages)):
            reason = met.reason
        if reason:
            dropped[reason] += 1
            continue
        seen.add(identity)
        yield identity, asked


def _choose(
    rows: Iterator[tuple[str, Asked]], wanted: int, seed: int, dropped: Counter[str]
) -> tuple[list[tuple[str, Asked]], int]:
    """The rows of the lowest lots, in the order of prompt_id, and how many there were. No more are in memory."""
    kept: list[tuple[int, str, Asked]] = []
    read = 0
    for identity, asked in rows:
        read += 1
        drawn = -int(lot(seed, identity, asked.answer or ""), 16)  # the heap's first is the highest lot
        if len(kept) < wanted:
            heapq.heappush(kept, (drawn, identity, asked))
        elif kept:
            heapq.heappushpop(kept, (drawn, identity, asked))
    if read > len(kept):
        dropped[NOT_CHOSEN] = read - len(kept)
    return sorted(((identity, asked) for _, identity, asked in kept), key=lambda row: row[0]), read


def _table(mix: Mix, chosen: Collection[tuple[str, Asked]]) -> pl.DataFrame:
    """DATASET of these rows."""
    same = {
        "teacher": mix.teacher,
        "reasoning": None,
        "finish_reason": "stop",
        "license": mix.license,
        "teacher_license": mix.license,
        "training": "allowed",
    }
    rows = [
        {"prompt_id": identity, "prompt": asked.messages, "completion": assistant_message(asked.answer or ""), **same}
        for identity, asked in chosen
    ]
    return pl.DataFrame(rows, schema=DATASET)
