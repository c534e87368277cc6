"""Cost: the ledger of teacher calls and tokens, spent and cached, and what routing before generating saves."""

from collections.abc import Collection, Mapping
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple

import polars as pl
from pydantic import Field

from persyn.schemas import alike, row_key
from persyn.settings import Settings

Uses = Mapping[str, Mapping[str, int]]
JUDGE = "judge"
"""The judge's name below speed.teachers and prices.teachers."""


class TokenPrice(Settings):
    """The price of a million tokens."""

    input: Annotated[float, Field(ge=0)]
    """Of a million prompt tokens."""
    output: Annotated[float, Field(ge=0)]
    """Of a million response tokens."""
    batch: Annotated[float, Field(ge=0, le=1)] = 0.5
    """What a batch costs as a share of that, where the teacher is asked in batches (speed.openai.batch)."""


class Prices(Settings):
    """The section `prices`. What has no price has no known cost, which is not 0."""

    currency: str = "USD"
    """The currency of all prices."""
    gpu_hour: Annotated[float, Field(ge=0)] | None = None
    """Of one GPU, for teachers that run on yours."""
    sizes: dict[str, Annotated[float, Field(gt=0, le=1e6)]] = Field(default_factory=dict)
    """Teacher -> billions of parameters, where neither its weights nor its name tell."""
    teachers: dict[str, TokenPrice] = Field(default_factory=dict)
    """Teacher (or `judge`) -> the price of its tokens."""

    def money(self, teacher: str, prompt_tokens: float, response_tokens: float) -> float | None:
        """The price of these tokens of a teacher; None where it has no price."""
        price = self.teachers.get(teacher)
        return None if price is None else (price.input * prompt_tokens + price.output * response_tokens) / 1e6

    def in_batches(self, teachers: Collection[str]) -> "Prices":
        """The prices where these teachers are asked in batches."""
        cheaper = {
            name: price.changed(input=price.input * price.batch, output=price.output * price.batch)
            for name, price in self.teachers.items()
            if name in teachers
        }
        return self.changed(teachers={**self.teachers, **cheaper})


class Paid(NamedTuple):
    """What the store tells of how responses were paid for."""

    lost: Mapping[str, Mapping[str, int]] = MappingProxyType({})
    """Teacher -> tokens that were paid for and are in no response (responses.count_lost)."""
    batched: pl.DataFrame | None = None
    """prompt_id and teacher of the responses with the price of a batch; None if there are none."""


def build_ledger(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    routed: Mapping[str, pl.DataFrame],
    prices: Prices | None = None,
    judge: Mapping[str, int] | None = None,
    paid_for: Paid | None = None,
    routes: Mapping[str, pl.DataFrame] | None = None,
    student: str = "",
) -> dict[str, Any]:
    """Count every teacher response (every sample of it) once as spent; each further use of it is cached.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of all teachers to the parallel set.
        routed: strategy -> RESPONSES.
        prices: what the teachers' tokens cost.
        judge: the use of the judge (count_verdicts); None if no domain has one.
        paid_for: what the store tells of that; None: nothing.
        routes: strategy -> ROUTES, by which retries are told from the rest; None tells none.
        student: the teacher that is the student itself, if one is: its responses to the parallel set are paid for, and
            generate-then-select needs none.

    Returns:
        parallel: teacher -> use. routed: strategy -> {teacher -> use, spent, cached}, as if it were the only strategy
        beside the parallel set. total: {spent, cached} over everything. generate_then_select: all teachers on all
        prompts, tokens by their mean lengths on the parallel set. saved: strategy -> how many times fewer calls and
        response tokens than that. judge: as given; it is in no other count, but in money.spent. money: None, or
        where a teacher has a price {currency, spent, judge: its part of it, strategies: strategy -> for the parallel
        set and what it adds, generate_then_select, unpriced: teachers without a price, left out of the sums}. A use is
        {calls, prompt_tokens, response_tokens}. lost: as given, if there are any; those tokens are in total.spent and
        money.spent too. retries: as _retries, if there are any; they are in all other counts.
    """
    keys, (lost, batched) = ["prompt_id", "teacher"], paid_for or Paid()
    parallel = _use(responses)
    responses, *tables = alike([responses, *routed.values()])
    routed = dict(zip(routed, tables, strict=True))
    everything = pl.concat([responses, *tables])
    spent = everything.unique(row_key(everything), keep="first", maintain_order=True)
    means = _means(responses.filter(pl.col("teacher") != student))
    select = {
        "calls": round(means["calls"].sum() * prompts.height),
        "prompt_tokens": round(means["num_prompt_tokens"].sum() * prompts.height),
        "response_tokens": round(means["num_response_tokens"].sum() * prompts.height),
    }
    ledger: dict[str, Any] = {"parallel": _by_teacher(responses), "routed": {}, "saved": {}}
    for strategy, table in routed.items():
        new = table.join(responses, on=keys, how="anti")
        cached = table.join(responses, on=keys, how="semi")
        ledger["routed"][strategy] = {"teachers": _by_teacher(table), "spent": _use(new), "cached": _use(cached)}
        needed = {name: parallel[name] + _use(new)[name] for name in parallel}
        ledger["saved"][strategy] = {
            name: round(select[name] / needed[name], 4) for name in ("calls", "response_tokens") if needed[name]
        }
    used, paid = _use(everything), _use(spent)
    ledger["total"] = {"spent": paid, "cached": {name: used[name] - paid[name] for name in used}}
    ledger["generate_then_select"] = select
    judged: Uses = {JUDGE: judge} if judge is not None else {}
    bought = {**_by_teacher(spent), **judged}
    for name, more in lost.items():
        bought[name] = {kind: count + more.get(kind, 0) for kind, count in bought[name].items()}
        for kind, count in more.items():
            paid[kind] += count
    money = None
    if prices and prices.teachers:
        batched = spent[:0] if batched is None else spent.join(batched, on=keys, how="semi")
        alone = {name: pl.concat([responses, table]).unique(row_key(table)) for name, table in routed.items()}
        money = {
            "currency": prices.currency,
            "spent": _money(bought, batched, prices),
            "judge": _money(judged, batched[:0], prices),
            "strategies": {
                name: _money(_by_teacher(table), table.join(batched, on=keys, how="semi"), prices)
                for name, table in alone.items()
            },
            "generate_then_select": _money_for_all(means, prompts.height, spent, batched, prices),
            "unpriced": sorted({*spent["teacher"], *judged} - set(prices.teachers)),
        }
    retries = _retries(responses, routed, routes or {}, prices or Prices(), batched)
    return {**ledger, "judge": judge, "money": money, **({"lost": lost} if lost else {}), **retries}


def _means(responses: pl.DataFrame) -> pl.DataFrame:
    """teacher and the means over its prompts of num_prompt_tokens, num_response_tokens and calls."""
    tokens = pl.col("num_prompt_tokens", "num_response_tokens")
    of_prompts = responses.group_by("teacher", "prompt_id").agg(tokens.sum(), calls=pl.len())
    return of_prompts.group_by("teacher").agg(tokens.mean(), pl.col("calls").mean())


def _retries(
    responses: pl.DataFrame,
    routed: Mapping[str, pl.DataFrame],
    routes: Mapping[str, pl.DataFrame],
    prices: Prices,
    batched: pl.DataFrame | None,
) -> dict[str, Any]:
    """{retries: strategy -> {prompts, teachers: {teacher -> use}, spent, cached, money: of spent, None without prices}}
    of the responses of other teachers than the prompt's chosen ones; empty if there are none.
    """
    keys, found = ["prompt_id", "teacher"], dict[str, Any]()
    for strategy in routed.keys() & routes.keys():
        again = routed[strategy].join(routes[strategy], on=keys, how="anti")
        if again.height:
            new = again.join(responses, on=keys, how="anti")
            cheaper = new[:0] if batched is None else new.join(batched, on=keys, how="semi")
            found[strategy] = {
                "prompts": again["prompt_id"].n_unique(),
                "teachers": _by_teacher(again),
                "spent": _use(new),
                "cached": _use(again.join(responses, on=keys, how="semi")),
                "money": _money(_by_teacher(new), cheaper, prices) if prices.teachers else None,
            }
    return {"retries": {name: found[name] for name in routed if name in found}} if found else {}


def _money(uses: Uses, batched: pl.DataFrame, prices: Prices) -> float:
    """The money for these uses, over the teachers that have a price.

    Args:
        batched: RESPONSES, the part of them that came from batches.
    """

    def full(table: Uses, name: str) -> float:
        return prices.money(name, *(table[name][tokens] for tokens in ("prompt_tokens", "response_tokens"))) or 0.0

    cheaper = _by_teacher(batched)
    saved = sum((1 - prices.teachers[name].batch) * full(cheaper, name) for name in cheaper if name in prices.teachers)
    return sum(full(uses, name) for name in uses) - saved


def _money_for_all(
    means: pl.DataFrame, num_prompts: int, spent: pl.DataFrame, batched: pl.DataFrame, prices: Prices
) -> float:
    """The money for all teachers on all prompts, each asked in batches as far as it was.

    Args:
        means: teacher and the mean tokens of its prompts and responses.
        spent: RESPONSES, those that were paid for.
        batched: of them, those that came from batches.
    """
    total = 0.0
    for name, prompt_tokens, response_tokens in means.select(
        "teacher", "num_prompt_tokens", "num_response_tokens"
    ).iter_rows():
        own, cheaper = (table.filter(teacher=name) for table in (spent, batched))
        full = _money(_by_teacher(own), batched[:0], prices)
        share = _money(_by_teacher(own), cheaper, prices) / full if full else 1.0
        total += num_prompts * share * (prices.money(name, prompt_tokens, response_tokens) or 0.0)
    return total


def _use(table: pl.DataFrame) -> dict[str, int]:
    tokens = table.select(pl.col("num_prompt_tokens", "num_response_tokens").sum()).row(0)
    return {"calls": table.height, "prompt_tokens": tokens[0], "response_tokens": tokens[1]}


def _by_teacher(table: pl.DataFrame) -> dict[str, dict[str, int]]:
    groups = table.sort("teacher").group_by("teacher", maintain_order=True)
    return {str(name): _use(rows) for (name,), rows in groups}
