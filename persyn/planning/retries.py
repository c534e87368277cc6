"""Retries: what asking the next teachers will take, for the prompts whose responses fall short of what the dataset
requires.

Legend: the chance of a response is that it falls short, or is unfit to train on: 0 or 1 where it is scored, else the
share of its teacher's scored responses of the domain that do. It is (low, expected, high); (0, nan, 1) where the
teacher has none.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from persyn.dataset import DatasetSettings
from persyn.defects import Policies, falls_short
from persyn.planning.intervals import LEVEL, Use, add, between, either
from persyn.planning.usage import Forecast
from persyn.quality import QualitySettings
from persyn.schemas import alike, row_key

PAIR = ["prompt_id", "teacher"]
ANY = "any teacher"
Chance = tuple[float, float, float]


@dataclass(frozen=True)
class Checks:
    """How responses are scored, what is required of them, and how they fared so far."""

    quality: QualitySettings
    dataset: DatasetSettings = field(default_factory=DatasetSettings)
    scored: Mapping[str, pl.DataFrame] = field(default_factory=dict)
    """Teacher -> QUALITY of the parallel set, as fit_scores has it; without those that are not made yet."""
    tried: Sequence[pl.DataFrame] = ()
    """As tried_pairs, of the strategies that have been run with the same dataset.require."""


def fit_scores(quality: pl.DataFrame, defects: pl.DataFrame, policies: Policies) -> pl.DataFrame:
    """QUALITY, null where a response is unfit to train on: it falls short, however good it is.

    Args:
        defects: DEFECTS of at least these.
    """
    dropped = pl.any_horizontal(pl.lit(False), *policies.kinds("drop"))
    quality, unfit = alike([quality, defects.filter(dropped)])
    key = row_key(quality)
    rows = quality.join(unfit.select(*key, unfit=pl.lit(value=True)), on=key, how="left", maintain_order="left")
    return rows.with_columns(quality=pl.when(pl.col("unfit").is_null()).then("quality")).drop("unfit")


@dataclass(frozen=True)
class Retried:
    """The retries of one strategy."""

    uses: dict[str, Use]
    """By teacher, or of `any teacher` if the order of the teachers is not known yet."""
    expected: float | None
    """Calls; None if unknown: the uses then reach up to the most that is possible."""


class Chances:
    """How likely responses are to fall short, by the scores so far."""

    def __init__(self, prompts: pl.DataFrame, checks: Checks) -> None:
        keys = [*PAIR, "domain"]
        scored = [table.group_by(PAIR).agg(pl.col("quality").max()) for table in checks.scored.values()]
        rows = pl.concat(scored or [pl.DataFrame(schema={**dict.fromkeys(PAIR, pl.String), "quality": pl.Float64})])
        rows = rows.join(prompts.select("prompt_id", pl.col("domain").cast(pl.String)), on="prompt_id", how="inner")
        rows = rows.select(*keys, short=falls_short(checks.dataset.require))
        self._exact = {(prompt, teacher): short for prompt, teacher, _, short in rows.iter_rows()}
        self._exact |= {(prompt, teacher): short for table in checks.tried for prompt, teacher, short in table.rows()}
        self._shares: dict[tuple[str, str], Chance] = {}
        for teacher, domain, short, count in rows.group_by("teacher", "domain").agg(pl.sum("short"), n=pl.len()).rows():
            ends = stats.binomtest(short, count).proportion_ci(LEVEL, method="wilson")
            self._shares[teacher, domain] = (float(ends.low), short / count, float(ends.high))

    def __call__(self, prompt_id: str, teacher: str, domain: str) -> Chance:
        """That of a teacher's response to a prompt."""
        exact = self._exact.get((prompt_id, teacher))
        if exact is not None:
            return (float(exact),) * 3
        return self._shares.get((teacher, domain), (0.0, math.nan, 1.0))


Again = Callable[[pl.DataFrame | None, list[str], pl.DataFrame], Retried]


def retry_of(prompts: pl.DataFrame, sized: pl.DataFrame, checks: Checks, forecasts: Mapping[str, Forecast]) -> Again:
    """What the retries of a strategy will take, as a function of

    routes: ROUTES with `next`; if they have none, or are None, any of the other teachers may be asked;
    allowed: the teachers that the strategy may ask;
    have: prompt_id and teacher of the responses that exist, or will.

    Args:
        prompts: PROMPTS, or declared_prompts.
        sized: prompt_id and size of the prompts.
    """
    if not checks.dataset.retries:
        return lambda routes, allowed, have: Retried({}, 0.0)
    required, chances = required_prompts(prompts, sized, checks), Chances(prompts, checks)
    limit = checks.dataset.retries

    def again(routes: pl.DataFrame | None, allowed: list[str], have: pl.DataFrame) -> Retried:
        if routes is None or "next" not in routes.columns:
            return Retried(_most(required, allowed, have, limit, forecasts), None)
        return _planned(list(_asked(required, routes, chances, limit)), have, forecasts)

    return again


def tried_pairs(routes: pl.DataFrame, routed: pl.DataFrame, dataset: pl.DataFrame) -> pl.DataFrame:
    """prompt_id, teacher and short of the responses of a run that are known to fall short, or not: what is in the
    dataset does not; all others of a prompt do, unless a chosen teacher's is there, which may have been better.

    Args:
        routes, routed, dataset: ROUTES, RESPONSES and DATASET of one strategy.
    """
    kept = dataset.select(*PAIR, kept=pl.lit(value=True))
    first = kept.join(routes, on=PAIR, how="semi")
    rows = routed.select(PAIR).unique().join(kept, on=PAIR, how="left").sort(PAIR)
    rows = rows.filter(pl.col("kept").is_not_null() | ~pl.col("prompt_id").is_in(first["prompt_id"].implode()))
    return rows.select(*PAIR, short=pl.col("kept").is_null())


def required_prompts(prompts: pl.DataFrame, sized: pl.DataFrame, checks: Checks) -> pl.DataFrame:
    """prompt_id, domain and size of the prompts of which a quality is required."""
    required = prompts.filter(pl.col("domain").cast(pl.String).is_in(list(checks.dataset.require)))
    return required.select("prompt_id", "domain").join(sized, on="prompt_id", how="left", validate="1:1")


def required_pairs(
    prompts: pl.DataFrame,
    sized: pl.DataFrame,
    parallel: pl.DataFrame,
    strategies: Mapping[str, Any],
    routes: Mapping[str, pl.DataFrame],
    checks: Checks,
) -> list[pl.DataFrame]:
    """prompt_id, teacher (null: unknown) and size of the responses to other than parallel prompts that are scored since
    their quality is required: that of every chosen teacher, and of every retry that there may be.
    """
    rest = required_prompts(prompts, sized, checks).drop("domain").join(parallel, on="prompt_id", how="anti")
    unknown = rest.select("prompt_id", pl.lit(None, pl.String).alias("teacher"), "size")
    known = [routes[name].select(PAIR).join(rest, on="prompt_id", how="inner") for name in strategies if name in routes]
    more = len(strategies) * (1 + checks.dataset.retries) - len(known)
    return [*([pl.concat(known).unique(maintain_order=True)] if known else []), *[unknown] * more]


def once(strategies: Sequence[Mapping[str, Use]]) -> Use:
    """What the retries of several strategies take together: a response that several need is paid for once, so at least
    what one of them takes, and at most their sum.
    """
    each = [add(list(uses.values())) for uses in strategies]
    return between(max(each, key=lambda use: use.calls[0]), add(each))


def _planned(
    found: list[tuple[str, str, float, float, float, float]], have: pl.DataFrame, forecasts: Mapping[str, Forecast]
) -> Retried:
    """What these retries will take, without those whose response exists."""
    schema = {**dict.fromkeys(PAIR, pl.String), **dict.fromkeys(("size", "low", "expected", "high"), pl.Float64)}
    table = pl.DataFrame(found, schema=schema, orient="row").join(have, on=PAIR, how="anti")
    uses, expected = dict[str, Use](), 0.0
    for (name,), rows in table.group_by("teacher", maintain_order=True):
        forecast = forecasts[str(name)]
        low, high = _numbers(rows["low"].to_numpy(), -1), _numbers(rows["high"].to_numpy(), 1)
        expected += float(rows["expected"].to_numpy().sum()) * forecast.teacher.samples
        if high:
            most = forecast.use(np.full(high, rows["size"].mean()))
            uses[str(name)] = between(forecast.use(np.full(low, rows["size"].mean())) if low else _none_of(most), most)
    return Retried(uses, None if math.isnan(expected) else expected)


def _asked(
    required: pl.DataFrame, routes: pl.DataFrame, chance: Chances, limit: int
) -> Iterator[tuple[str, str, float, float, float, float]]:
    """prompt_id, teacher, size and the chance that it is asked, for each next teacher that may be: that all before it
    fall short."""
    chosen = routes.group_by("prompt_id").agg("teacher", pl.col("next").first())
    rows = required.join(chosen, on="prompt_id", how="inner", validate="1:1").sort("prompt_id")
    for prompt_id, domain, size, teachers, others in rows.iter_rows():
        short = np.ones(3)
        for name in teachers:
            short = short * chance(prompt_id, name, domain)
        for name in others[:limit]:
            if not short[2]:
                break
            yield (prompt_id, name, size, *short)
            short = short * chance(prompt_id, name, domain)


def _numbers(chances: np.ndarray, side: int) -> int:
    """How many of events with these chances happen, at the low (-1) or the high (1) end of an interval."""
    spread = stats.norm.ppf((1 + LEVEL) / 2) * math.sqrt((chances * (1 - chances)).sum())
    end = chances.sum() + side * spread
    return int(np.clip(round(end, 9) // 1 if side < 0 else -(round(-end, 9) // 1), 0, len(chances)))


def _most(
    required: pl.DataFrame, allowed: list[str], have: pl.DataFrame, limit: int, forecasts: Mapping[str, Forecast]
) -> dict[str, Use]:
    """From nothing to a call of the costliest teachers for every retry that there may be."""
    done = have.filter(pl.col("teacher").is_in(allowed)).group_by("prompt_id").agg(done=pl.len().cast(pl.Int64))
    left = len(allowed) - pl.col("done").fill_null(0)
    rows = required.join(done, on="prompt_id", how="left", validate="1:1")
    number = pl.min_horizontal(left, pl.lit(min(limit, len(allowed) - 1))).alias("number")
    sizes = np.repeat(rows["size"].to_numpy(), rows.select(number)["number"].to_numpy())
    if not len(sizes):
        return {}
    most = either([forecasts[name].use(sizes) for name in allowed])
    return {ANY: between(_none_of(most), most)}


def _none_of(most: Use) -> Use:
    """The use of no call, in what is known of `most`."""
    return replace(Use(), gpu_hours=most.gpu_hours and (0, 0), money=most.money and (0, 0))
