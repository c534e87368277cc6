"""Routed: the responses of the chosen teachers. Those on the parallel set exist already; the rest is generated. Where
they fall short of what the dataset requires, the next teachers are asked.
"""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from persyn.defects import Policies, drop_reason, falls_short, find_defects
from persyn.generation import BackendSpeed, Teacher
from persyn.generation.budget import Overspent
from persyn.generation.terms import Licenses
from persyn.responses import check_asking, generate_responses, with_responses
from persyn.schemas import RESPONSES, ROUTES, alike, fill_table, row_key

logger = logging.getLogger(__name__)
KEYS = ["prompt_id", "teacher"]


def build_routed(
    prompts: pl.DataFrame,
    routes: pl.DataFrame,
    responses: pl.DataFrame,
    teachers: Mapping[str, Teacher],
    licenses: Licenses,
    folder: Path,
    speed: Mapping[str, BackendSpeed],
    **limits: Any,
) -> pl.DataFrame:
    """Collect a response for each route, from its teacher: all samples, if it gives several.

    Args:
        prompts: PROMPTS.
        routes: ROUTES, or its first two columns.
        responses: RESPONSES of all teachers to the parallel set, reused here.
        teachers: name -> Teacher.
        licenses: checked only for teachers that still have prompts to respond to.
        folder: the response store.
        speed: teacher -> the speed knobs of its backend.
        limits: the keyword arguments of generate_responses.

    Returns:
        RESPONSES, one row for each route and sample.

    Raises:
        InputError: as check_asking and generate_responses.
    """
    wanted = routes.select(KEYS).join(prompts, on="prompt_id", how="left", validate="m:1")
    tables = [fill_table(responses, RESPONSES).join(wanted.select(KEYS), on=KEYS, how="semi")]
    to_generate = wanted.join(responses, on=KEYS, how="anti").sort(KEYS)
    shares = {str(name): share for (name,), share in to_generate.group_by("teacher", maintain_order=True)}
    check_asking(shares, teachers, licenses, folder)
    for teacher, share in shares.items():
        tables.append(generate_responses(share, teacher, teachers[teacher], folder, speed[teacher], **limits))
    routed = pl.concat(table.select(*RESPONSES.names(), pl.col("^sample$")) for table in alike(tables))
    found = routed.select(KEYS).n_unique()
    assert found == routes.height, f"{found} responses for {routes.height} routes"
    return routed


@dataclass(frozen=True)
class Retries:
    """When and how a prompt is given to another teacher."""

    limit: int
    """More teachers a prompt, at most."""
    require: Mapping[Any, float]
    """Domain -> least quality."""
    policies: Policies
    """Which defects make a response unfit to train on."""
    score: Callable[[pl.DataFrame], pl.DataFrame]
    """RESPONSES -> QUALITY."""

    def passing(self, prompts: pl.DataFrame, responses: pl.DataFrame) -> pl.DataFrame:
        """prompt_id of the prompts with a response that is fit and has the quality that its domain requires."""
        key = row_key(responses)
        rows = responses.join(find_defects(prompts, responses), on=key, how="left", validate="1:1")
        fit = rows.with_columns(dropped=drop_reason(self.policies)).filter(pl.col("dropped").is_null())
        if fit.is_empty():
            return prompts[:0].select("prompt_id")
        scored = fit.join(self.score(fit.select(responses.columns)), on=key, how="left", validate="1:1")
        scored = scored.join(prompts.select("prompt_id", "domain"), on="prompt_id", how="left", validate="m:1")
        return scored.filter(~falls_short(self.require)).select("prompt_id").unique()


def retry_failed(
    prompts: pl.DataFrame,
    routes: pl.DataFrame,
    routed: pl.DataFrame,
    ask: Callable[[pl.DataFrame], pl.DataFrame],
    have: Callable[[pl.DataFrame], pl.DataFrame],
    retries: Retries,
) -> pl.DataFrame:
    """Ask the next teachers for the prompts none of whose responses passes, round by round.

    Once the budget is spent, only responses that exist are still taken; the prompts that are left are counted.

    Args:
        prompts: PROMPTS.
        routes: ROUTES with `next`.
        routed: RESPONSES of `routes`.
        ask: prompt_id and teacher -> RESPONSES; raises Overspent where the budget does not reach.
        have: prompt_id and teacher -> the rows whose responses exist already.

    Returns:
        RESPONSES: `routed` and every further attempt.
    """
    required = prompts.filter(pl.col("domain").cast(pl.String).is_in(list(retries.require)))
    asked = fill_table(routed, RESPONSES).join(required, on="prompt_id", how="semi")
    left = routes.unique("prompt_id").join(required, on="prompt_id", how="semi").select("prompt_id", "next")
    tables, total, overspent, unreached = [routed], left.height, False, 0
    for turn in range(retries.limit):
        try:
            left = left.join(retries.passing(required, asked), on="prompt_id", how="anti")  # those that fall short
        except Overspent as error:
            logger.warning("no further verdict is paid for: %s", error)
            unreached += left.height
            break
        teacher = pl.col("next").list.get(turn, null_on_oob=True)
        pairs = left.select("prompt_id", teacher=teacher).filter(pl.col("teacher").is_not_null()).sort(KEYS)
        if left.is_empty():
            break
        logger.info(
            "%d of %d prompts fall short of dataset.require; %d are given to another teacher, round %d of %d",
            *(left.height, total, pairs.height, turn + 1, retries.limit),
        )
        if pairs.is_empty():
            break
        try:
            asked = ask(have(pairs) if overspent else pairs)
        except Overspent as error:
            logger.warning("no further teacher is paid for: %s", error)
            overspent = True
            asked = ask(have(pairs))
        tables.append(asked)
        unreached += pairs.join(asked, on=KEYS, how="anti").height
        left = left.join(asked, on="prompt_id", how="semi")  # another try of the others would be out of turn
    if unreached:
        logger.warning("%d of %d prompts are left without a further try: the budget is spent", unreached, total)
    return pl.concat(table.select(*RESPONSES.names(), pl.col("^sample$")) for table in alike(tables))


def existing_pairs(
    prompts: pl.DataFrame, pairs: pl.DataFrame, responses: pl.DataFrame, teachers: Mapping[str, Teacher], folder: Path
) -> pl.DataFrame:
    """The rows of `pairs` (prompt_id, teacher) for which build_routed pays nothing; arguments as there."""
    tables = [pairs.join(responses, on=KEYS, how="semi")]
    rest = pairs.join(responses, on=KEYS, how="anti").join(prompts, on="prompt_id", how="left", validate="m:1")
    for (name,), share in rest.group_by("teacher", maintain_order=True):
        stored = with_responses(share, str(name), teachers[str(name)], folder)
        tables.append(stored.select(pairs.columns))
    return pl.concat(tables)


def asked_routes(routes: pl.DataFrame, routed: pl.DataFrame) -> pl.DataFrame:
    """ROUTES of all teachers that were asked: the chosen ones, then those that were asked after them, which have no
    strength or margin.

    Args:
        routed: RESPONSES of `routes`, and of further attempts.
    """
    chosen = routes.select(ROUTES.names())
    if "next" not in routes.columns:
        return chosen
    later = routes.unique("prompt_id", maintain_order=True).select("prompt_id", teacher="next").explode("teacher")
    others = later.join(routed, on=KEYS, how="semi", maintain_order="left")
    empty = [pl.lit(None, ROUTES[name]).alias(name) for name in ROUTES.names()[2:]]
    return pl.concat([chosen, others.with_columns(empty)])
