"""Prompts: raw sources -> one normalised, de-duplicated, decontaminated table with its parallel set marked.

Nothing is dropped silently: build_prompts counts every dropped row, by reason.
"""

import hashlib
import logging
import re
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Annotated, Any, Self

import polars as pl
from pydantic import Field, model_validator
from tqdm import tqdm

from persyn.errors import InputError
from persyn.prompts.conversations import Asked, prompt_id
from persyn.prompts.decontamination import EvaluationSets, Examples, Met, NearDuplicates
from persyn.prompts.kept import Kept
from persyn.prompts.sources import FIRST_OF, Rows
from persyn.schemas import Domain
from persyn.settings import Misfit, Seed, Settings

logger = logging.getLogger(__name__)
NOT_TEXT = re.compile("[\x00\ud800-\udfff]")
Near = Annotated[float, Field(gt=0, le=1)]


class Source(Rows):
    """Rows of prompts. `path` is below the raw folder."""

    domain: Domain = "instruction"
    """Decides which quality method scores the responses. The parallel set is spread over the domains."""
    license: str = ""
    """Licence of the prompts, copied to every row of the dataset."""
    prompt: str = "prompt"
    """Column or template of the prompt. A column may hold text or a conversation: a list of {role, content}, of {from,
    value}, or of the user's texts; the assistant's turns at its end are no part of the prompt. If this is not set and
    there is no column `prompt`, it is the column `messages`, or else `conversations`, or else `instruction`, with a
    column `input` after a blank line (Alpaca)."""
    reference: str | None = None
    """Column or template of the reference; if given, every row must have one."""
    answer_as_reference: bool = False
    """Whether the assistant's turns at the end of a conversation, or Alpaca's column `output`, are the reference.
    Every prompt must have one then."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """What the tables call it, such as the part of a file that `where` leaves; null: its `path` or `hub`."""

    @model_validator(mode="after")
    def _one_reference(self) -> Self:
        if self.answer_as_reference and self.reference is not None:
            raise Misfit("answer_as_reference", f"is true, and reference is {self.reference!r}; it needs one of them")
        return self

    @property
    def title(self) -> str:
        return self.label or self.name


class PromptSettings(Settings):
    """The section `prompts`: where prompts come from, and which of them are parallel (every teacher responds)."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where prompts are read from."""
    decontaminate: list[Source] = Field(default_factory=list)
    """Evaluation sets. A prompt that repeats one of their items is dropped, whatever its case, blanks, punctuation and
    what stands around it. Of a conversation every turn is compared, but not the system message."""
    ngram: Annotated[int, Field(ge=1)] = 13
    """Number of consecutive words that must not be shared with an evaluation item. An item with fewer must not be
    repeated as a whole; with fewer than 5 only a prompt that says nothing else repeats it. In scripts without blanks
    two characters (Chinese, Japanese) or four (Thai, Lao, Tibetan, Burmese, Khmer) count as a word."""
    decontaminate_near: Near | None = 0.6
    """Similarity to an evaluation item from which on a prompt is dropped too: the share of their runs of three words
    that both have. Texts of fewer than `ngram` words are similar only if their words are equal. null: no such check."""
    near_duplicates: Near | None = None
    """Similarity, as above, to an earlier prompt from which on a prompt is dropped; null drops exact duplicates only.
    Prompts made from a template can be similar and yet all be wanted."""
    max_characters: Annotated[int, Field(ge=1)] = 20_000
    """A longer prompt is dropped; of a conversation all turns count."""
    num_parallel: Annotated[int, Field(ge=1)] | None
    """How many prompts are parallel, spread over the domains by their size; null is all of them."""
    seed: Seed = 0
    """Seed of the choice of parallel prompts."""


def build_prompts(raw: Path, settings: PromptSettings) -> tuple[pl.DataFrame, dict[str, Any]]:
    """sink_prompts, with the prompts in memory."""
    with tempfile.TemporaryDirectory() as folder:
        prompts, counts = sink_prompts(raw, settings, Path(folder))
        return prompts.collect(), counts


def sink_prompts(raw: Path, settings: PromptSettings, folder: Path) -> tuple[pl.LazyFrame, dict[str, Any]]:
    """Read, clean and mark the prompts. Their texts go to files, so that millions need little memory (but not with
    `near_duplicates`, which compares every prompt with all earlier ones).

    Args:
        raw: folder that local sources are relative to.
        folder: an empty one for the files, on which the result depends.

    Returns:
        PROMPTS in the order of prompt_id and the counts {read, shapes: {shape: count}, kept, parallel, dropped:
        {reason: count}, domains: {domain: count}, met: {reason: {prompt_id: example}}}, where `met` has the first
        prompts of each reason that were dropped for what they met, as in Examples.

    Raises:
        InputError: a source is unreadable, a column or a reference is missing, nothing is left,
            or there are fewer prompts than `num_parallel`.
    """
    meets, examples, kept = _compared(raw, settings), Examples(), Kept(folder)
    shapes, dropped, roles = Counter[str](), Counter[str](), Counter[str | None]()
    for source in settings.sources:
        for asked, reference in tqdm(_read(raw, source), desc=source.title, unit="row", delay=5):
            shapes[asked.shape] += 1
            identity = prompt_id(asked.messages)
            reason = unfit(asked, reference, settings.max_characters)
            if reason:
                roles[asked.role] += 1
            elif identity in kept:
                reason = "duplicate"
            elif met := meets(asked, source):
                reason = met.reason
                examples.note(identity, met)
            if reason:
                dropped[reason] += 1
                continue
            origin = {"domain": source.domain, "source": source.title, "license": source.license}
            kept.add({"prompt_id": identity, "prompt": asked.messages, "reference": reference, **origin})
    num_read, num_kept = shapes.total(), kept.domains.total()
    assert num_read == num_kept + dropped.total(), "every row is kept or counted"
    logger.info("%d rows read = %s", num_read, " + ".join(f"{n} {shape}" for shape, n in sorted(shapes.items())))
    del roles[None]
    if roles:
        names = ", ".join(f"{str(role)[:40]!r} {count}" for role, count in roles.most_common(5))
        logger.warning("conversations dropped for a role that is not known: %s", names)
    if not num_kept:
        why = ", ".join(f"{reason} {count}" for reason, count in sorted(dropped.items())) or "none"
        raise InputError(f"no prompt is left of {num_read} read (dropped: {why}); give sources with usable prompts")
    num_parallel = num_kept if settings.num_parallel is None else settings.num_parallel
    table = kept.table(num_parallel, settings.seed)
    counts = {"read": num_read, "shapes": dict(sorted(shapes.items())), "kept": num_kept, "parallel": num_parallel}
    domains = dict(sorted(kept.domains.items()))
    return table, {**counts, "dropped": dict(sorted(dropped.items())), "domains": domains, "met": examples.found}


def anchor_prompts(parallel: pl.DataFrame, count: int) -> pl.DataFrame:
    """The `count` parallel prompts for a teacher with anchors: the same ones for every such teacher.

    Raises:
        InputError: there are fewer.
    """
    if not 0 < count <= parallel.height:
        raise InputError(f"anchors is {count}; it must be 1 to {parallel.height}, the parallel prompts there are")
    lots = [hashlib.sha256(f"anchor:{identity}".encode()).hexdigest() for identity in parallel["prompt_id"]]
    return parallel.with_columns(lot=pl.Series(lots)).sort("lot").drop("lot")[:count]


def wanted_prompts(
    prompts: pl.DataFrame, name: str, anchors: int | None, routes: Iterable[pl.DataFrame] = ()
) -> pl.DataFrame:
    """The prompts of the teacher `name`: the parallel set (or its anchors), and those that are routed to it.

    Args:
        prompts: PROMPTS.
        routes: ROUTES of any number of strategies.
    """
    parallel = prompts.filter(pl.col("parallel"))
    parallel = parallel if anchors is None else anchor_prompts(parallel, anchors)
    routed = [table.filter(pl.col("teacher") == name).select("prompt_id") for table in routes]
    wanted = pl.concat([parallel.select("prompt_id"), *routed]).unique()
    return prompts.join(wanted, on="prompt_id", how="semi", maintain_order="left")


def _read(raw: Path, source: Source) -> Iterator[tuple[Asked, str | None]]:
    """What the rows of one source ask, and their references."""
    fields: dict[str, Any] = {"prompt": source.prompt if "prompt" in source.model_fields_set else FIRST_OF}
    if source.reference is not None:
        fields["reference"] = source.reference
    needed, missing, first = source.answer_as_reference or source.reference is not None, 0, list[int]()
    for number, row in source.read(raw, asked=["prompt"], **fields):
        asked: Asked = row["prompt"]
        reference = asked.answer if source.answer_as_reference else row.get("reference")
        lacks = not reference and not asked.unfit if source.answer_as_reference else not (reference or "").strip()
        if needed and lacks:
            missing += 1
            first = [*first, number][:5]
        yield asked, reference
    if missing:
        what = "answer" if source.answer_as_reference else repr(source.reference)
        field = "answer_as_reference" if source.answer_as_reference else "reference"
        raise InputError(
            f"source {source.name}: {missing} rows have no {what}, first at rows {first} "
            f"(from 0); fill them, or leave `{field}` out and use a quality method that needs none"
        )


def unfit(asked: Asked, reference: str | None, max_characters: int) -> str:
    """Why a prompt cannot be used; empty if it can."""
    texts = [turn["content"] for turn in asked.messages]
    if asked.unfit or not all(texts):
        return asked.unfit or "empty"
    if any(NOT_TEXT.search(text) for text in [*texts, reference or ""]):
        return "not text"
    return "too long" if sum(map(len, texts)) > max_characters else ""


def evaluation_sets(raw: Path, settings: PromptSettings) -> EvaluationSets:
    """The items of settings.decontaminate."""
    sets = EvaluationSets(settings.ngram, settings.decontaminate_near)
    for source in settings.decontaminate:
        for asked, _ in _read(raw, source):
            sets.add(source.title, asked.messages)
    return sets


def _compared(raw: Path, settings: PromptSettings) -> Callable[[Asked, Source], Met | None]:
    """What a prompt is dropped for: an evaluation item, or a prompt that was asked about before."""
    sets = evaluation_sets(raw, settings)
    earlier = NearDuplicates(settings.near_duplicates, settings.ngram)
    return lambda asked, source: sets.met(asked.messages) or earlier.met(asked.messages, source.title)
