"""Responses of every teacher + the untuned student -> their learnability, one table a teacher."""

import polars as pl

from persyn.learnability import score_learnability
from persyn.project.params import read_params
from persyn.schemas import LEARNABILITY, PARALLEL, PROMPTS, RESPONSES, read_folder, read_table, write_table
from persyn.store import store_folder
from stages import run


def main(prompts: str, responses: str, out: str) -> None:
    params = read_params()
    written = pl.concat(read_folder(responses, list(params.pool), RESPONSES, params.teachers).values())
    how = params.student, params.learnability, store_folder(), params.speed.learnability
    scores = score_learnability(read_table(prompts, PROMPTS, PARALLEL), written, *how)
    for teacher in params.pool:
        write_table(scores.filter(teacher=teacher), f"{out}/{teacher}.parquet", LEARNABILITY)


if __name__ == "__main__":
    run(main)
