"""Sample: prompts with everything that the pipeline did to them, packed for the report's built-in browser.

It is columns of JSON, gzip, base64: `browser.js` inflates it. None of it is in the page as html.
"""

import base64
import bisect
import functools
import gzip
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.messages import as_text
from persyn.project.snapshot import Snapshot
from persyn.routed import asked_routes
from persyn.schemas import DEFECTS, FINISH_REASONS, LEARNABILITY, QUALITY, RESPONSES, REWARDS, ROUTES, fill_table

LENGTHS = [*range(20, 100, 5), *range(100, 500, 25), *range(500, 2000, 100), *range(2000, 40_000, 1000)]
"""Lengths, in characters, at which responses may be cut."""
LEAST_PROMPT = 200
"""Prompts and references are cut at twice the length of responses, and never shorter than this."""
PARALLEL_SHARE = 0.2
"""Least share of parallel prompts (they have every teacher's response) in the sample, if there are enough."""
MAX_CHARACTERS = 24_000_000
"""Limit on all texts: texts that compress well would otherwise make a page that is slow to open."""
KEYS = ["prompt_id", "teacher"]
KINDS = DEFECTS.names()[2:]
TEXTS = {"prompt": "prompts", "reference": "prompts", "response": "responses"}
LABELS = {"domain": "domains", "source": "sources", "license": "licenses"}


@dataclass(frozen=True)
class Sample:
    """The prompts that the page shows."""

    payload: str
    """base64 of gzip of JSON: ascii letters, digits, `+`, `/` and `=`."""
    prompts: int
    total_prompts: int
    parallel: int
    total_parallel: int
    cut_prompt: int | None
    """Characters kept of a longer prompt or reference; None if none is cut."""
    cut_response: int | None
    """Characters kept of a longer response; None if none is cut."""


def build_sample(run: Snapshot, *, limit: int = 5000, max_bytes: int = 4_000_000) -> Sample:
    """Draw prompts, join every table to them, and cut their texts until they fit the page.

    A cut text ends in `…`; if even the shortest texts do not fit, fewer prompts are drawn.

    Args:
        run: has at least PROMPTS; a route that is not in its strategy's dataset was dropped.
        limit: prompts at most.
        max_bytes: of the payload at most.
    """
    prompts = run.need("prompts")
    while True:
        drawn = draw_prompts(prompts, limit)
        texts = [as_text(prompt) for prompt in drawn["prompt"].to_list()]
        drawn = drawn.with_columns(prompt=pl.Series(texts, dtype=pl.String))
        ids = drawn.select("prompt_id")
        responses, chosen = _responses(ids, run), _chosen(ids, run)
        others = pl.concat([responses["teacher"], chosen["teacher"]]).unique().sort()
        names = {
            "teachers": list(dict.fromkeys([*(name for name in run.responses if name != run.student), *others])),
            "strategies": list(run.routes),
            "defects": KINDS,
            "finish_reasons": FINISH_REASONS.categories.to_list(),
            **{names: drawn[label].cast(pl.String).unique().sort().to_list() for label, names in LABELS.items()},
        }
        payload, cut = _fit(names, _encode(drawn, responses, chosen, names), max_bytes)
        if payload is not None:
            break
        limit = drawn.height // 2
    return Sample(
        payload=payload,
        prompts=drawn.height,
        total_prompts=prompts.height,
        parallel=drawn.filter("parallel").height,
        total_parallel=prompts.filter("parallel").height,
        cut_prompt=_limits(cut)["prompt"] if cut else None,
        cut_response=cut,
    )


def draw_prompts(prompts: pl.DataFrame, limit: int) -> pl.DataFrame:
    """At most `limit` prompts, sorted by prompt_id. This is a hash, so the first ones are a random sample.

    Parallel prompts have their share of all prompts, but at least a fifth of the sample, if there are enough.
    """
    parallel = prompts.filter("parallel").sort("prompt_id")
    other = prompts.filter(~pl.col("parallel")).sort("prompt_id")
    if prompts.height > limit:
        share = max(parallel.height / prompts.height, PARALLEL_SHARE)
        taken = max(min(round(share * limit), parallel.height), limit - other.height)
        parallel, other = parallel.head(taken), other.head(limit - taken)
    return pl.concat([parallel, other]).sort("prompt_id")


def _responses(ids: pl.DataFrame, run: Snapshot) -> pl.DataFrame:
    """RESPONSES to these prompts with quality, learnability, reward and defects (a bit per kind, null if unknown).

    A response to a parallel prompt is in tables of its teacher and of every strategy that chose it; it is kept once.
    """
    bits = pl.sum_horizontal(pl.col(kind).cast(pl.Int64) * 2**bit for bit, kind in enumerate(KINDS))
    scores = [
        _of(ids, [table for name, table in run.quality.items() if name != run.student], QUALITY),
        _of(ids, run.learnability.values(), LEARNABILITY).select(*KEYS, "learnability"),
        _of(ids, [] if run.rewards is None else [run.rewards], REWARDS).select(*KEYS, "reward"),
        _of(ids, [] if run.defects is None else [run.defects], DEFECTS).select(*KEYS, defects=bits),
    ]
    parallel = [table for name, table in run.responses.items() if name != run.student]
    responses = _of(ids, [*parallel, *run.routed.values()], RESPONSES).unique(KEYS, keep="first", maintain_order=True)
    for table in scores:
        responses = responses.join(table, on=KEYS, how="left", validate="1:1")
    return responses


def _chosen(ids: pl.DataFrame, run: Snapshot) -> pl.DataFrame:
    """ROUTES of these prompts (with the teachers that were asked after the chosen ones), `strategy` and `kept` (null
    where there is no data set).
    """
    dataset, nothing = run.dataset, pl.DataFrame(schema=RESPONSES)
    tables = [pl.DataFrame(schema={**ROUTES, "kept": pl.Boolean, "strategy": pl.String})]
    for strategy, table in run.routes.items():
        asked = asked_routes(table, run.routed.get(strategy, nothing))
        mine = _of(ids, [asked], ROUTES).with_columns(kept=pl.lit(None, dtype=pl.Boolean))
        if strategy in dataset:
            kept = dataset[strategy].select(*KEYS, kept=pl.lit(True))
            mine = mine.drop("kept").join(kept, on=KEYS, how="left", validate="1:1")
            mine = mine.with_columns(pl.col("kept").fill_null(False))
        tables.append(mine.with_columns(strategy=pl.lit(strategy)))
    return pl.concat(tables)


def _of(ids: pl.DataFrame, tables: Iterable[pl.DataFrame], schema: pl.Schema) -> pl.DataFrame:
    """The rows of all tables for these prompts."""
    mine = (fill_table(table, schema).join(ids, on="prompt_id", how="semi") for table in tables)
    return pl.concat([pl.DataFrame(schema=schema), *mine])


def _encode(
    drawn: pl.DataFrame, responses: pl.DataFrame, chosen: pl.DataFrame, names: Mapping[str, list[str]]
) -> dict[str, pl.DataFrame]:
    """The tables prompts, responses and routes of the payload.

    Names become positions in `names`. Rows of responses and routes are in the order of the prompts, and each prompt has
    the number of its own, so that similar texts are close together, which helps gzip.
    """

    def position(column: str, known: str) -> pl.Expr:
        return pl.col(column).cast(pl.String).cast(pl.Enum(names[known])).to_physical().alias(column)

    responses = responses.with_columns(
        position("teacher", "teachers"),
        position("finish_reason", "finish_reasons"),
        tokens="num_response_tokens",
        thought=pl.col("reasoning").str.len_chars(),  # its text stays out of the page
    ).sort(KEYS)
    chosen = chosen.with_columns(position("teacher", "teachers"), position("strategy", "strategies"))
    chosen = chosen.sort(
        "prompt_id", "strategy", "strength", "teacher", descending=[False, False, True, False], nulls_last=True
    )
    for table, name in ((responses, "responses"), (chosen, "routes")):
        drawn = drawn.join(table["prompt_id"].value_counts(name=name), on="prompt_id", how="left", validate="1:1")
    rounded = pl.col(pl.Float64).round_sig_figs(4)
    return {
        "prompts": drawn.sort("prompt_id").with_columns(
            *(position(label, known) for label, known in LABELS.items()),
            pl.col("parallel").cast(pl.Int8),
            pl.col("responses", "routes").fill_null(0),
        ),
        "responses": responses.drop("prompt_id", "reasoning", "num_prompt_tokens", "num_response_tokens").with_columns(
            rounded
        ),
        "routes": chosen.drop("prompt_id").with_columns(rounded, pl.col("kept").cast(pl.Int8)),
    }


def _fit(
    names: Mapping[str, list[str]], tables: Mapping[str, pl.DataFrame], max_bytes: int
) -> tuple[str | None, int | None]:
    """The payload with the longest texts that fit, and the length at which responses are cut (None: not cut).

    The payload is None if even the shortest do not fit.
    """
    texts = [tables[table][column] for column, table in TEXTS.items()]
    counts = {column.name: column.str.len_chars().fill_null(0) for column in texts}
    longest = max([1, *(int(count.max() or 0) for count in counts.values())])  # type: ignore[arg-type]

    def characters(length: int) -> int:
        limits = _limits(length)
        return sum(int(count.clip(upper_bound=limits[column]).sum()) for column, count in counts.items())

    lengths = [*(length for length in LENGTHS if length < longest), longest]
    lengths = [length for length in lengths if characters(length) <= MAX_CHARACTERS]
    with tqdm(total=len(lengths).bit_length(), desc="sample", unit="attempt", delay=5) as bar:

        @functools.cache
        def pack(length: int) -> str:
            bar.update()
            return _pack(names, tables, length)

        fitting = bisect.bisect_right(lengths, max_bytes, key=lambda length: len(pack(length)))
        if not fitting and tables["prompts"].height:
            return None, None
        length = lengths[max(fitting, 1) - 1]
        return pack(length), None if length == longest else length


def _pack(names: Mapping[str, list[str]], tables: Mapping[str, pl.DataFrame], length: int) -> str:
    """The payload with texts of this length."""
    limits = _limits(length)
    columns: dict[str, Any] = {**names, "cut": limits}
    for name, table in tables.items():
        texts = (_cut(column, limits[column]) for column in table.columns if column in limits)
        columns[name] = table.with_columns(texts).to_dict(as_series=False)
    text = json.dumps(columns, ensure_ascii=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), compresslevel=6, mtime=0)).decode()


def _cut(column: str, length: int) -> pl.Expr:
    """Texts cut to `length` characters, with `…` at the end of cut ones: their length, one more, marks them."""
    text = pl.col(column)
    cut = pl.when(text.str.len_chars() > length).then(pl.concat_str(text.str.head(length), pl.lit("…"))).otherwise(text)
    return cut.alias(column)


def _limits(length: int) -> dict[str, int]:
    """The maximum length of every kind of text if that of responses is `length`."""
    return dict.fromkeys(["prompt", "reference"], max(2 * length, LEAST_PROMPT)) | {"response": length}
