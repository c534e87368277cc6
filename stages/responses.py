"""Parallel prompts + one teacher -> its responses."""

import polars as pl

from persyn.generation import Teacher, generate_responses
from persyn.schemas import PROMPTS, RESPONSES, read_table, write_table
from persyn.store import Store, store_folder
from stages import read_params, run


def main(teacher: str, prompts: str, out: str) -> None:
    entry = Teacher(**read_params(f"teachers.{teacher}", Teacher))
    parallel = read_table(prompts, PROMPTS).filter(pl.col("parallel"))
    speed = read_params("speed").get(entry.backend, {})
    write_table(generate_responses(parallel, teacher, entry, Store(store_folder()), speed), out, RESPONSES)


if __name__ == "__main__":
    run(main)
