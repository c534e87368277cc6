"""Known: the prompts and routes that a plan can use before anything has run."""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl

from persyn.errors import InputError
from persyn.prompts import Source
from persyn.routes import Mix, Persyn, Pool, Random, Rule, Strong, build_routes
from persyn.schemas import PROMPTS, REWARDS

Strategies = Mapping[str, Rule]


def declared_prompts(sources: Sequence[Source], num_parallel: int | None) -> pl.DataFrame:
    """Prompts that are null, as many as the `limit`s of prompts.sources, for use where the sources are missing.

    Raises:
        InputError: a source has no limit.
    """
    limits: list[tuple[str, int]] = []
    for source in sources:
        if source.limit is None:
            raise InputError(
                f"source {source.name} is not here and has no limit, so its number of prompts is unknown; set its "
                f"limit in prompts.sources, or run `dvc repro prompts` first"
            )
        limits.append((source.domain, source.limit))
    domains = [domain for domain, limit in limits for _ in range(limit)]
    num_parallel = len(domains) if num_parallel is None else num_parallel
    if not 0 < num_parallel <= len(domains):
        raise InputError(f"prompts.num_parallel is {num_parallel}; it must be 1 to {len(domains)}, the limits' sum")
    numbers = pl.int_range(len(domains), eager=True)
    table = pl.DataFrame({"prompt_id": numbers.cast(pl.String), "domain": domains, "parallel": numbers < num_parallel})
    return table.with_columns(prompt=pl.lit(None, PROMPTS["prompt"]))


def known_routes(
    prompts: pl.DataFrame, teachers: list[str], strategies: Strategies, made: Mapping[str, pl.DataFrame]
) -> dict[str, pl.DataFrame]:
    """Routes known before anything runs: those of rules that name their teachers, else those already made.

    Args:
        prompts: PROMPTS, or declared_prompts.
        made: strategy -> ROUTES of an earlier run; those of other prompts or teachers are ignored.

    Raises:
        InputError: a strategy is wrong.
    """
    here = not prompts["prompt"].null_count()
    pool = Pool(teachers, REWARDS.to_frame(), lambda asked, method: np.zeros((asked.height, len(teachers))), {})
    known = {}
    for name, strategy in strategies.items():
        if isinstance(strategy, Persyn):  # only checks names: its router is not called
            build_routes(prompts[:1], pool, Persyn(rule="persyn", exclude=strategy.exclude))
        named = (isinstance(strategy, Strong) and strategy.teacher) or (
            here and (isinstance(strategy, Random) or (isinstance(strategy, Mix) and strategy.strong and strategy.weak))
        )
        if named:
            known[name] = build_routes(prompts, pool, strategy)
        if name in made:
            table = made[name]
            if named:  # what was made may also say who is asked next
                same = table.select("prompt_id", "teacher").sort("prompt_id")
                if same.equals(known[name].select("prompt_id", "teacher").sort("prompt_id")):
                    known[name] = table
            elif set(table["prompt_id"]) == set(prompts["prompt_id"]) and set(table["teacher"]) <= set(teachers):
                known[name] = table
    return known
