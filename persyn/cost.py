"""Cost: the ledger of teacher calls and tokens, spent and cached, and what routing before generating saves."""

from collections.abc import Collection, Mapping
from typing import Annotated, Any

import polars as pl
from pydantic import Field

from persyn.settings import Settings

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


def build_ledger(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    routed: Mapping[str, pl.DataFrame],
    prices: Prices | None = None,
    judge: Mapping[str, int] | None = None,
    lost: Mapping[str, Mapping[str, int]] | None = None,
    batched: pl.DataFrame | None = None,
) -> dict[str, Any]:
    """Count every teacher response once as spent; each further use of it is cached.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of all teachers to the parallel set.
        routed: strategy -> RESPONSES.
        prices: what the teachers' tokens cost.
        judge: the use of the judge (count_verdicts); None if no domain has one.
        lost: teacher -> tokens that were paid for and are in no response (responses.count_lost).
        batched: prompt_id and teacher of the responses with the price of a batch; None if there are none.

    Returns:
        parallel: teacher -> use. routed: strategy -> {teacher -> use, spent, cached}, as if it were the only strategy
        beside the parallel set. total: {spent, cached} over everything. generate_then_select: all teachers on all
        prompts, tokens by their mean lengths on the parallel set. saved: strategy -> how many times fewer calls and
        response tokens than that. judge: as given; it is in no other count, but in money.spent. money: None, or
        where a teacher has a price {currency, spent, generate_then_select, unpriced: teachers without a price, left out
        of the sums}. A use is {calls, prompt_tokens, response_tokens}. lost: as given, if there are any; those
        tokens are in total.spent and money.spent too.
    """
    teachers = responses["teacher"].unique().sort().to_list()
    keys = ["prompt_id", "teacher"]
    parallel = _use(responses)
    everything = pl.concat([responses, *routed.values()])
    spent = everything.unique(keys, keep="first", maintain_order=True)
    means = responses.group_by("teacher").agg(pl.col("num_prompt_tokens", "num_response_tokens").mean())
    select = {
        "calls": len(teachers) * prompts.height,
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
    bought = _by_teacher(spent) | ({JUDGE: judge} if judge is not None else {})
    for name, tokens in (lost or {}).items():
        for kind, count in tokens.items():
            paid[kind] += count
            bought[name] = {**bought[name], kind: bought[name][kind] + count}
    cheaper = {} if batched is None else _by_teacher(spent.join(batched, on=keys, how="semi"))
    money = _money(bought, cheaper, means, prompts.height, prices) if prices and prices.teachers else None
    return {**ledger, "judge": judge, "money": money} | ({"lost": lost} if lost else {})


def _money(
    spent: Mapping[str, Mapping[str, int]],
    batched: Mapping[str, Mapping[str, int]],
    means: pl.DataFrame,
    num_prompts: int,
    prices: Prices,
) -> dict[str, Any]:
    """The money spent, and the money for all teachers on all prompts, over the teachers that have a price.

    Args:
        batched: the part of `spent` that came from batches. All prompts would be asked as these were.
    """
    tokens = "prompt_tokens", "response_tokens"
    paid, factor = dict[str, float](), dict[str, float]()
    for name, use in spent.items():
        full = prices.money(name, *(use[of] for of in tokens))
        if full:
            saved = prices.money(name, *(batched[name][of] for of in tokens)) if name in batched else 0.0
            paid[name] = full - (1 - prices.teachers[name].batch) * (saved or 0.0)
            factor[name] = paid[name] / full
    each = [
        (prices.money(*row) or 0.0) * factor.get(row[0], 1.0)
        for row in means.select("teacher", "num_prompt_tokens", "num_response_tokens").rows()
    ]
    return {
        "currency": prices.currency,
        "spent": sum(paid.values()),
        "generate_then_select": sum(each) * num_prompts,
        "unpriced": sorted(set(spent) - set(prices.teachers)),
    }


def _use(table: pl.DataFrame) -> dict[str, int]:
    tokens = table.select(pl.col("num_prompt_tokens", "num_response_tokens").sum()).row(0)
    return {"calls": table.height, "prompt_tokens": tokens[0], "response_tokens": tokens[1]}


def _by_teacher(table: pl.DataFrame) -> dict[str, dict[str, int]]:
    groups = table.sort("teacher").group_by("teacher", maintain_order=True)
    return {str(name): _use(rows) for (name,), rows in groups}
