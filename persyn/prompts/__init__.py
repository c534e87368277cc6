"""Prompts: raw sources -> one normalised, de-duplicated, decontaminated table with its parallel set marked.

Nothing is dropped silently: build_prompts counts every dropped row, by reason.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field

from persyn.errors import InputError
from persyn.prompts.sources import Rows, normalise, prompt_id
from persyn.schemas import DOMAINS, PROMPTS
from persyn.settings import Seed, Settings

NOT_TEXT = re.compile("[\x00\ud800-\udfff]")


Domain = Literal["instruction", "math", "code"]


class Source(Rows):
    """Rows of prompts. `path` is below the raw folder."""

    domain: Domain = "instruction"
    """Decides which quality method scores the responses. The parallel set is spread over the domains."""
    license: str = ""
    """Licence of the prompts, copied to every row of the dataset."""
    prompt: str = "prompt"
    """Column or template of the prompt text."""
    reference: str | None = None
    """Column or template of the reference; if given, every row must have one."""
    label: Annotated[str, Field(min_length=1)] | None = None
    """What the tables call it, such as the part of a file that `where` leaves; null: its `path` or `hub`."""

    @property
    def title(self) -> str:
        return self.label or self.name


class PromptSettings(Settings):
    """The section `prompts`: where prompts come from, and which of them are parallel (every teacher responds)."""

    sources: Annotated[list[Source], Field(min_length=1)]
    """Where prompts are read from."""
    decontaminate: list[Source] = Field(default_factory=list)
    """Evaluation sets. A prompt that equals one of their prompts, or shares `ngram` consecutive words, is dropped."""
    ngram: Annotated[int, Field(ge=1)] = 13
    """Number of consecutive words that must not be shared."""
    max_characters: Annotated[int, Field(ge=1)] = 20_000
    """A longer prompt is dropped."""
    num_parallel: Annotated[int, Field(ge=1)] | None
    """How many prompts are parallel, spread over the domains by their size; null is all of them."""
    seed: Seed = 0
    """Seed of the choice of parallel prompts."""


def build_prompts(raw: Path, settings: PromptSettings) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Read, clean and mark the prompts.

    Args:
        raw: folder that local sources are relative to.

    Returns:
        PROMPTS and the counts {read, kept, parallel, dropped: {reason: count}, domains: {domain: count}}.

    Raises:
        InputError: a source is unreadable, a column or a reference is missing, nothing is left,
            or there are fewer prompts than `num_parallel`.
    """
    ngram = settings.ngram
    evaluation = [row for source in settings.decontaminate for row in _read(raw, source)]
    seen_by_evaluation = [normalise(row["prompt"] or "") for row in evaluation]
    exact, runs = set(seen_by_evaluation), {run for text in seen_by_evaluation for run in _ngrams(text, ngram)}
    kept: dict[str, dict[str, Any]] = {}
    dropped: Counter[str] = Counter()
    num_read = 0
    for source in settings.sources:
        for row in _read(raw, source):
            num_read += 1
            prompt = normalise(row["prompt"] or "")
            identity = prompt_id(prompt)
            if not prompt:
                dropped["empty"] += 1
            elif NOT_TEXT.search(prompt + (row["reference"] or "")):
                dropped["not text"] += 1
            elif len(prompt) > settings.max_characters:
                dropped["too long"] += 1
            elif identity in kept:
                dropped["duplicate"] += 1
            elif prompt in exact or not runs.isdisjoint(_ngrams(prompt, ngram)):
                dropped["contaminated"] += 1
            else:
                origin = {"domain": source.domain, "source": source.title, "license": source.license}
                kept[identity] = {"prompt_id": identity, "prompt": prompt, "reference": row["reference"], **origin}
    assert num_read == len(kept) + dropped.total(), "every row is kept or counted"
    if not kept:
        raise InputError(f"no prompt is left of {num_read} read ({dict(dropped)}); give sources with usable prompts")
    num_parallel = len(kept) if settings.num_parallel is None else settings.num_parallel
    table = _mark_parallel(pl.DataFrame(list(kept.values())), num_parallel, settings.seed)
    domains = dict(sorted(Counter(table["domain"].to_list()).items()))
    counts = {"read": num_read, "kept": table.height, "parallel": num_parallel}
    return table, {**counts, "dropped": dict(sorted(dropped.items())), "domains": domains}


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


def _read(raw: Path, source: Source) -> list[dict[str, str | None]]:
    """The rows of one source: prompt and reference."""
    if source.reference is None:
        return [{**row, "reference": None} for row in source.read(raw, prompt=source.prompt).values()]
    rows = source.read(raw, prompt=source.prompt, reference=source.reference)
    without = [number for number, row in rows.items() if not (row["reference"] or "").strip()]
    if without:
        raise InputError(
            f"source {source.name}: {len(without)} rows have no {source.reference!r}, first at rows {without[:5]} "
            f"(from 0); fill them, or leave `reference` out and use a quality method that needs none"
        )
    return list(rows.values())


def _ngrams(prompt: str, size: int) -> set[tuple[str, ...]]:
    words = re.findall(r"\w+", prompt.lower())
    return {tuple(words[start : start + size]) for start in range(len(words) - size + 1)}


def _mark_parallel(table: pl.DataFrame, num_parallel: int, seed: int) -> pl.DataFrame:
    """Mark `num_parallel` rows, in proportion to the domains, chosen by a hash of the content and the seed."""
    if not 0 < num_parallel <= table.height:
        raise InputError(f"prompts.num_parallel is {num_parallel}; it must be 1 to {table.height}, the prompts kept")
    lots = [hashlib.sha256(f"{seed}:{identity}".encode()).hexdigest() for identity in table["prompt_id"]]
    # Sorted by rank over domain size, every prefix has the domains in proportion to their sizes.
    rank = (pl.col("lot").rank("ordinal").over("domain") - 0.5) / pl.len().over("domain")
    order = table.with_columns(lot=pl.Series(lots)).with_columns(share=rank).sort("share", "lot")
    parallel = pl.Series(range(table.height)) < num_parallel
    marked = order.with_columns(parallel=parallel, domain=pl.col("domain").cast(DOMAINS))
    return marked.cast({"reference": pl.String}).select(PROMPTS.names())
