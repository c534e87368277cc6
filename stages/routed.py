"""Routes -> what the chosen teachers wrote."""

import polars as pl

from persyn.generation import Teacher
from persyn.generation.budget import Budget
from persyn.generation.terms import Licenses
from persyn.responses import generate_responses
from persyn.routed import build_routed
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table, write_table
from persyn.store import store_folder
from stages import read_entries, read_params, read_speed, run


def main(prompts: str, routes: str, responses: str, out: str) -> None:
    teachers, licenses = read_entries("teachers", Teacher), Licenses(**read_params("licenses", Licenses))
    speed = {name: read_speed(name, teacher.backend) for name, teacher in teachers.items()}
    parallel = pl.concat(read_folder(responses, list(teachers), RESPONSES).values())
    tables = read_table(prompts, PROMPTS), read_table(routes, ROUTES), parallel
    limits = read_params("responses", generate_responses) | {"budget": Budget(**read_params("budget", Budget))}
    write_table(build_routed(*tables, teachers, licenses, store_folder(), speed, **limits), out, RESPONSES)


if __name__ == "__main__":
    run(main)
