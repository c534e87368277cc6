"""Foreseen: which prompts and routes a plan can count on before anything has run."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl

from persyn.errors import InputError, check_keys
from persyn.routes import RULES, Pool, build_routes
from persyn.schemas import REWARDS

Strategies = Mapping[str, Mapping[str, Any]]


def declared_prompts(sources: list[Mapping[str, Any]], num_parallel: int | None) -> pl.DataFrame:
    """As many prompts as prompts.sources declares by `limit`, without text, where the sources are not at hand.

    Raises:
        InputError: a source has no limit.
    """
    for source in sources:
        if not source.get("limit"):
            raise InputError(
                f"source {source.get('hub') or source.get('path')} is not here and has no limit, so nobody knows how "
                f"many prompts it holds; set its limit in prompts.sources, or run `dvc repro prompts` first"
            )
    domains = [source.get("domain", "instruction") for source in sources for _ in range(source["limit"])]
    num_parallel = len(domains) if num_parallel is None else num_parallel
    if not 0 < num_parallel <= len(domains):
        raise InputError(f"prompts.num_parallel is {num_parallel}; it must be 1 to {len(domains)}, the limits' sum")
    numbers = pl.int_range(len(domains), eager=True)
    table = pl.DataFrame({"prompt_id": numbers.cast(pl.String), "domain": domains, "parallel": numbers < num_parallel})
    return table.with_columns(prompt=pl.lit(None, pl.String))


def known_routes(
    prompts: pl.DataFrame, teachers: list[str], strategies: Strategies, made: Mapping[str, pl.DataFrame]
) -> dict[str, pl.DataFrame]:
    """The routes that are known before anything runs: of rules that name their teachers, else those already made.

    Args:
        prompts: PROMPTS, or declared_prompts.
        made: strategy -> ROUTES of an earlier run; those of other prompts or teachers are passed over.

    Raises:
        InputError: a strategy is wrong.
    """
    here = not prompts["prompt"].null_count()
    pool = Pool(teachers, REWARDS.to_frame(), lambda texts: np.zeros((len(texts), len(teachers))), {})
    known = {}
    for name, strategy in strategies.items():
        arguments = {key: value for key, value in strategy.items() if key != "rule"}
        rule = strategy.get("rule")
        if rule in RULES:
            check_keys(f"rule {rule}", arguments, RULES[rule])
            if rule == "persyn":  # its router is not asked, but a wrong argument is found
                build_routes(prompts[:1], pool, {"rule": rule, "exclude": arguments.get("exclude", [])})
        named = rule == "mix" and arguments.get("strong") and arguments.get("weak")
        if (
            rule not in RULES
            or (rule == "strong" and arguments.get("teacher"))
            or (here and (rule == "random" or named))
        ):
            known[name] = build_routes(prompts, pool, strategy)
        elif name in made:
            table = made[name]
            if set(table["prompt_id"]) == set(prompts["prompt_id"]) and set(table["teacher"]) <= set(teachers):
                known[name] = table
    return known
