"""Routes -> the responses of the chosen teachers."""

from typing import Any

import polars as pl

from persyn.project.params import read_params
from persyn.routed import build_routed
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table, write_table
from persyn.store import store_folder
from stages import run


def main(prompts: str, routes: str, responses: str, out: str) -> None:
    params = read_params()
    teachers = params.teachers
    speed = {name: params.speed_of(name) for name in teachers}
    parallel = pl.concat(read_folder(responses, list(teachers), RESPONSES).values())
    tables = read_table(prompts, PROMPTS), read_table(routes, ROUTES), parallel
    limits: dict[str, Any] = {"budget": params.budget, "max_error_share": params.responses.max_error_share}
    write_table(build_routed(*tables, teachers, params.licenses, store_folder(), speed, **limits), out, RESPONSES)


if __name__ == "__main__":
    run(main)
