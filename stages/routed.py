"""Routes -> what the chosen teachers wrote."""

import polars as pl

from persyn.generation import Teacher
from persyn.routed import build_routed
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table, write_table
from persyn.store import Store, store_folder
from stages import read_params, run


def main(prompts: str, routes: str, responses: str, out: str) -> None:
    teachers = {name: Teacher(**read_params(f"teachers.{name}", Teacher)) for name in read_params("teachers")}
    parallel = pl.concat(read_folder(responses, list(teachers), RESPONSES).values())
    tables = read_table(prompts, PROMPTS), read_table(routes, ROUTES), parallel
    write_table(build_routed(*tables, teachers, Store(store_folder()), read_params("speed")), out, RESPONSES)


if __name__ == "__main__":
    run(main)
