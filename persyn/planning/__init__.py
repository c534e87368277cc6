"""Planning: the calls, tokens and costs of a run, before it runs.

Legend: a pair is a (prompt_id, teacher); it is open while the store has no response.
"""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from persyn.cost import JUDGE, Prices
from persyn.generation import Teacher, pool_of
from persyn.generation.budget import Budget
from persyn.generation.requests import each_sample
from persyn.planning.intervals import Interval, Use, add, between, either, lower
from persyn.planning.judged import judge_use
from persyn.planning.known import Strategies
from persyn.planning.retries import ANY, PAIR, Again, Checks, once, required_pairs, retry_of
from persyn.planning.usage import Forecast, look_into_store, size_of
from persyn.prompts import wanted_prompts
from persyn.routes import Persyn, Rule

Uses = dict[str, Use]  # by teacher


@dataclass(frozen=True)
class Asked:
    """The responses that one strategy needs beside the parallel set. Frames of prompt_id, size (and teacher)."""

    pairs: pl.DataFrame | None
    """Open pairs if its routes are known, else None."""
    must: pl.DataFrame
    """One row for each response that is needed whichever teacher is chosen."""
    may: pl.DataFrame
    """One row for each response that may be needed."""
    allowed: list[str]
    """The teachers that may be chosen."""

    def calls(self, samples: Mapping[str, int]) -> tuple[int, int]:
        """At least and at most.

        Args:
            samples: teacher -> calls for one response.
        """
        if self.pairs is not None:
            return (sum(samples[name] for name in self.pairs["teacher"]),) * 2
        each = [samples[name] for name in self.allowed]
        return self.must.height * min(each), self.may.height * max(each)


def build_plan(
    prompts: pl.DataFrame,
    teachers: Mapping[str, Teacher],
    strategies: Strategies,
    routes: Mapping[str, pl.DataFrame],
    folder: Path,
    prices: Prices,
    budget: Budget,
    checks: Checks,
) -> dict[str, Any]:
    """Count the responses that the store lacks, and estimate their cost.

    Args:
        prompts: PROMPTS, or declared_prompts.
        routes: strategy -> ROUTES; without those of strategies whose routes are not known yet.
        folder: the response store.
        checks: how the responses will be scored, and what is required of them.

    Returns:
        responses: {teacher -> use}; routed, retries: {strategy -> {teacher -> use}}; expected: {strategy -> calls of
        its retries, None where they are unknown}; judge: {judge -> use} of its verdicts, empty without one;
        total; generate_then_select; scores; budget; notes (above_limit: teachers some of whose responses took more than
        max_tokens). A use is the fields of Use, each [low, high] or None, and `seen`, the number of responses it was
        estimated from.
    """
    sizes = [math.nan if prompt is None else size_of(prompt) for prompt in prompts["prompt"].to_list()]
    sized = prompts.select("prompt_id", size=pl.Series(sizes, dtype=pl.Float64))
    parallel = _parallel_pairs(prompts, teachers).join(sized, on="prompt_id", how="left", validate="m:1")
    forecasts, paid = look_into_store(prompts, teachers, folder, prices)
    first = parallel.join(paid, on=PAIR, how="anti")
    have = pl.concat([parallel.select(PAIR), paid]).unique()
    asked = {
        name: _asked(sized, list(pool_of(teachers)), strategy, routes.get(name), have)
        for name, strategy in strategies.items()
    }
    total = _total(sized, first, asked, forecasts, have)
    again = retry_of(prompts, sized, checks, forecasts)
    retried = {name: again(routes.get(name), one.allowed, have) for name, one in asked.items()}
    if checks.dataset.retries:
        together = once([one.uses for one in retried.values()])
        total = {**total, "retries": together, "all": add([total["all"], together])}
    verdicts = {}
    if "judge" in checks.quality.methods.values():
        compared = _compared(sized, parallel, strategies, routes, teachers)
        compared = pl.concat([compared, *required_pairs(prompts, sized, parallel, strategies, routes, checks)])
        verdicts = {JUDGE: judge_use(prompts, parallel, compared, forecasts, folder, prices, checks.quality)}
        total = {**total, **verdicts, "all": add([total["all"], *verdicts.values()])}
    weights = {one.teacher.model: one.weights for one in forecasts.values()}
    return {
        "prompts": {"count": prompts.height, "parallel": int(prompts["parallel"].sum())},
        "seen": {name: len(one.lengths) for name, one in forecasts.items()},
        "above_limit": [name for name, one in forecasts.items() if one.exceeds],
        "responses": _fields(_by_teacher(first, forecasts)),
        "routed": {name: _fields(_uses(one, forecasts)) for name, one in asked.items()},
        "retries": {name: _fields(one.uses) for name, one in retried.items() if checks.dataset.retries},
        "expected": {name: one.expected for name, one in retried.items() if checks.dataset.retries},
        "judge": _fields(verdicts),
        "total": _fields(total),
        "weights": sum(filter(None, weights.values())),
        "generate_then_select": _against(sized, strategies, routes, parallel, forecasts, again),
        "scores": _scores(prompts, parallel, teachers, checks.quality.methods),
        "budget": _verdict(total["all"], folder, budget),
        "currency": prices.currency,
        "unpriced": [
            *(name for name, one in forecasts.items() if one.use(np.ones(1)).money is None),
            *(name for name in verdicts if name not in prices.teachers),
        ],
        "unsized": [name for name, one in forecasts.items() if one.runs_here and one.size is None],
    }


def _parallel_pairs(prompts: pl.DataFrame, teachers: Mapping[str, Teacher]) -> pl.DataFrame:
    """The pairs of the parallel set; a teacher with anchors has only those."""
    wanted = {name: wanted_prompts(prompts, name, teacher.anchors) for name, teacher in teachers.items()}
    return pl.concat(own.select("prompt_id", teacher=pl.lit(name)) for name, own in wanted.items())


def _asked(
    sized: pl.DataFrame,
    teachers: list[str],
    strategy: Rule,
    routes: pl.DataFrame | None,
    have: pl.DataFrame,
) -> Asked:
    """What the strategy needs beyond the given pairs."""
    excluded = strategy.exclude if isinstance(strategy, Persyn) else ()
    allowed = [name for name in teachers if name not in excluded]
    if routes is not None:
        pairs = routes.select(PAIR).join(have, on=PAIR, how="anti")
        return Asked(pairs.join(sized, on="prompt_id", how="left", validate="m:1"), sized[:0], sized[:0], allowed)
    of_allowed = have.filter(pl.col("teacher").is_in(allowed))
    counts = of_allowed.group_by("prompt_id").agg(done=pl.len().cast(pl.Int64))
    open_ = len(allowed) - pl.col("done").fill_null(0)
    left = sized.join(counts, on="prompt_id", how="left", validate="1:1").with_columns(open=open_)
    must, may = left.filter(pl.col("open") == len(allowed)), left.filter(pl.col("open") > 0)
    if isinstance(strategy, Persyn) and strategy.second_below is not None:
        may = pl.concat([may, left.filter(pl.col("open") > 1)])
    return Asked(None, must.select(sized.columns), may.select(sized.columns), allowed)


def _compared(
    sized: pl.DataFrame,
    parallel: pl.DataFrame,
    strategies: Strategies,
    routes: Mapping[str, pl.DataFrame],
    teachers: Mapping[str, Teacher],
) -> pl.DataFrame:
    """prompt_id, teacher (null: unknown) and size of routed responses to other than parallel prompts of which the best
    is sought: a prompt has two teachers, or its teacher several samples.
    """
    rest = sized.join(parallel, on="prompt_id", how="anti")
    known, unknown = [parallel[:0].select(PAIR)], [parallel[:0].select(PAIR)]
    repeated = [name for name, teacher in pool_of(teachers).items() if teacher.samples > 1]
    for name, strategy in strategies.items():
        second = isinstance(strategy, Persyn) and strategy.second_below is not None
        if name in routes:
            several = pl.col("prompt_id").is_duplicated() | pl.col("teacher").is_in(repeated)
            known.append(routes[name].filter(several).select(PAIR))
        elif second or repeated:
            one = rest.select("prompt_id", teacher=pl.lit(None, pl.String))
            unknown += [one, one] if second else [one]
    pairs = pl.concat([pl.concat(known).unique(), *unknown])
    return pairs.join(rest, on="prompt_id", how="inner", validate="m:1", maintain_order="left")


def _by_teacher(pairs: pl.DataFrame, forecasts: Mapping[str, Forecast], loads: Mapping[str, int] | None = None) -> Uses:
    parts = {name: pairs.filter(pl.col("teacher") == name)["size"].to_numpy() for name in forecasts}
    loads = loads or {}
    return {name: forecasts[name].use(part, loads.get(name, 1)) for name, part in parts.items() if len(part)}


def _uses(asked: Asked, forecasts: Mapping[str, Forecast]) -> Uses:
    """The uses of a strategy by teacher, or of `any teacher` if unknown. Every teacher may have to be loaded."""
    if asked.pairs is not None:
        return _by_teacher(asked.pairs, forecasts)
    chosen = [forecasts[name] for name in asked.allowed]
    least = either([one.use(asked.must["size"].to_numpy()) for one in chosen])
    most = either([one.use(asked.may["size"].to_numpy()) for one in chosen])
    use = between(least, most)
    one_call = [one.use(np.ones(1)) for one in chosen]
    if use.gpu_hours and use.calls[1]:
        others = sorted(one.load[1] for one in chosen)[:-1]
        use = replace(use, gpu_hours=(use.gpu_hours[0], use.gpu_hours[1] + sum(others)))
    if any(one.gpu_hours is None for one in one_call):
        use = replace(use, gpu_hours=None)
    if any(one.money is None for one in one_call):
        use = replace(use, money=None)
    return {ANY: use}


def _total(
    sized: pl.DataFrame,
    first: pl.DataFrame,
    asked: Mapping[str, Asked],
    forecasts: Mapping[str, Forecast],
    have: pl.DataFrame,
) -> Uses:
    """By teacher and in total, without retries. A pair that several strategies need is paid for once. A strategy with
    unknown routes may need nothing new (low end), or only pairs that no other needs (high end).
    """
    known = [one.pairs for one in asked.values() if one.pairs is not None]
    together = pl.concat([first, *(pairs.select(first.columns) for pairs in known)]).unique(PAIR)
    loads = Counter(name for pairs in (first, *known) for name in pairs["teacher"].unique())
    uses = _by_teacher(together, forecasts, loads)
    unknown = [one for one in asked.values() if one.pairs is None]
    if unknown:
        most = add([_uses(one, forecasts)[ANY] for one in unknown])
        pool = [name for name, one in forecasts.items() if not one.teacher.is_student]
        pairs = sized.join(pl.DataFrame({"teacher": pool}), how="cross").join(have, on=PAIR, how="anti")
        rest = pairs.join(together, on=PAIR, how="anti")
        most = lower(most, add(list(_by_teacher(rest, forecasts, dict.fromkeys(forecasts, len(unknown))).values())))
        least = [
            _uses(replace(one, must=one.must.join(_of(together, one.allowed), on="prompt_id", how="anti")), forecasts)
            for one in unknown
        ]
        uses[ANY] = between(max((use[ANY] for use in least), key=lambda use: use.calls[0]), most)
    return {**uses, "all": add(list(uses.values()))}


def _of(pairs: pl.DataFrame, teachers: list[str]) -> pl.DataFrame:
    return pairs.filter(pl.col("teacher").is_in(teachers))


def _against(
    sized: pl.DataFrame,
    strategies: Strategies,
    routes: Mapping[str, pl.DataFrame],
    parallel: pl.DataFrame,
    forecasts: Mapping[str, Forecast],
    again: Again,
) -> dict[str, Any]:
    """The use of all teachers on all prompts, and how many times fewer calls each strategy needs with the parallel set;
    the store is ignored.
    """
    pool = {name: one for name, one in forecasts.items() if not one.teacher.is_student}
    use = add([one.use(sized["size"].to_numpy()) for one in pool.values()])
    fewer = {}
    samples = {name: one.teacher.samples for name, one in forecasts.items()}
    first = sum(samples[name] for name in parallel["teacher"])
    for name, strategy in strategies.items():
        asked = _asked(sized, list(pool), strategy, routes.get(name), parallel.select(PAIR))
        retried = add(list(again(routes.get(name), asked.allowed, parallel.select(PAIR)).uses.values())).calls
        calls = [first + one + other for one, other in zip(asked.calls(samples), retried, strict=True)]
        fewer[name] = [use.calls[0] / number for number in reversed(calls)]
    return {**_fields({"all": use})["all"], "times_fewer_calls": fewer}


def _scores(
    prompts: pl.DataFrame, parallel: pl.DataFrame, teachers: Mapping[str, Teacher], methods: Mapping[Any, str]
) -> dict[str, Any]:
    """Numbers of responses scored by each method of quality, and for learnability (which the student's own have not);
    the sums do not include them.
    """
    parallel = pl.concat(each_sample(parallel.filter(teacher=name), one).select(PAIR) for name, one in teachers.items())
    learnt = parallel.filter(pl.col("teacher").is_in(list(pool_of(teachers))))
    domains = parallel.join(prompts.select("prompt_id", "domain"), on="prompt_id", validate="m:1")["domain"]
    counts = Counter(methods.get(domain, "no method") for domain in domains.cast(pl.String))
    return {"quality": dict(sorted(counts.items())), "learnability": learnt.height}


def _verdict(total: Use, folder: Path, budget: Budget) -> dict[str, Any] | None:
    """The plan compared with budget.max_tokens; None if there is no limit."""
    if budget.max_tokens is None:
        return None
    left = budget.max_tokens - budget.spent(folder)
    low, high = (asked + said for asked, said in zip(total.prompt_tokens, total.response_tokens, strict=True))
    verdict = "surely fits" if high <= left else "surely exceeds" if low > left else "may exceed"
    return {"max_tokens": budget.max_tokens, "left": left, "needed": [round(low), round(high)], "verdict": verdict}


def _fields(uses: Uses) -> dict[str, Any]:
    """Uses for json: hours and money to four digits, the rest whole."""

    def plain(field: str, ends: Interval | None) -> list[float] | None:
        if ends is None or field in ("gpu_hours", "money"):
            return ends and [float(f"{end:.4g}") for end in ends]
        return [math.floor(ends[0]), math.ceil(ends[1])]

    return {name: {field: plain(field, ends) for field, ends in asdict(use).items()} for name, use in uses.items()}
