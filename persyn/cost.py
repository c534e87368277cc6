"""Cost: the ledger of teacher calls and tokens, spent and cached, and what routing first has saved."""

from collections.abc import Mapping
from typing import Any

import polars as pl


def build_ledger(prompts: pl.DataFrame, responses: pl.DataFrame, routed: Mapping[str, pl.DataFrame]) -> dict[str, Any]:
    """Count every teacher answer once as spent; each further use of it is cached.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of all teachers to the parallel set.
        routed: strategy -> RESPONSES.

    Returns:
        parallel: teacher -> use. routed: strategy -> {teacher -> use, spent, cached}, as if it were the only strategy
        beside the parallel set. total: {spent, cached} over everything. generate_then_select: all teachers on all
        prompts, tokens by their mean lengths on the parallel set. saved: strategy -> how many times fewer calls and
        response tokens than that. gpu_seconds and money: None, since no price was given. A use is
        {calls, prompt_tokens, response_tokens}.
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
    return {**ledger, "gpu_seconds": None, "money": None}


def _use(table: pl.DataFrame) -> dict[str, int]:
    tokens = table.select(pl.col("num_prompt_tokens", "num_response_tokens").sum()).row(0)
    return {"calls": table.height, "prompt_tokens": tokens[0], "response_tokens": tokens[1]}


def _by_teacher(table: pl.DataFrame) -> dict[str, dict[str, int]]:
    groups = table.sort("teacher").group_by("teacher", maintain_order=True)
    return {str(name): _use(rows) for (name,), rows in groups}
