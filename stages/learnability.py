"""Responses of every teacher + the untuned student -> their learnability, one table a teacher."""

import polars as pl

from persyn.learnability import Method, score_learnability
from persyn.models import Student
from persyn.schemas import LEARNABILITY, PROMPTS, RESPONSES, read_folder, read_table, write_table
from persyn.store import store_folder
from stages import read_params, run


def main(prompts: str, responses: str, out: str) -> None:
    student, teachers = Student(**read_params("student", Student)), list(read_params("teachers"))
    answers = pl.concat(read_folder(responses, teachers, RESPONSES).values())
    speed = read_params("speed.learnability", score_learnability)
    method = Method(**read_params("learnability", Method))
    scores = score_learnability(read_table(prompts, PROMPTS), answers, student, method, store_folder(), **speed)
    for teacher in teachers:
        write_table(scores.filter(teacher=teacher), f"{out}/{teacher}.parquet", LEARNABILITY)


if __name__ == "__main__":
    run(main)
