"""Routed: the responses of the chosen teachers. Those on the parallel set exist already; the rest is generated."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from persyn.generation import BackendSpeed, Teacher
from persyn.generation.terms import Licenses
from persyn.responses import check_asking, generate_responses
from persyn.schemas import RESPONSES, alike, fill_table


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
        routes: ROUTES.
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
    keys = ["prompt_id", "teacher"]
    wanted = routes.select(keys).join(prompts, on="prompt_id", how="left", validate="m:1")
    tables = [fill_table(responses, RESPONSES).join(wanted.select(keys), on=keys, how="semi")]
    to_generate = wanted.join(responses, on=keys, how="anti").sort(keys)
    shares = {str(name): share for (name,), share in to_generate.group_by("teacher", maintain_order=True)}
    check_asking(shares, teachers, licenses, folder)
    for teacher, share in shares.items():
        tables.append(generate_responses(share, teacher, teachers[teacher], folder, speed[teacher], **limits))
    routed = pl.concat(table.select(*RESPONSES.names(), pl.col("^sample$")) for table in alike(tables))
    found = routed.select(keys).n_unique()
    assert found == routes.height, f"{found} responses for {routes.height} routes"
    return routed
