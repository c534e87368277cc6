"""Quality and learnability of every teacher -> rewards."""

import polars as pl

from persyn.rewards import build_rewards
from persyn.schemas import LEARNABILITY, QUALITY, REWARDS, read_folder, write_table
from stages import read_params, run


def main(quality: str, learnability: str, out: str) -> None:
    teachers = list(read_params("teachers"))
    scored = pl.concat(read_folder(quality, teachers, QUALITY).values())
    learned = pl.concat(read_folder(learnability, teachers, LEARNABILITY).values())
    write_table(build_rewards(scored, learned, teachers, **read_params("rewards", build_rewards)), out, REWARDS)


if __name__ == "__main__":
    run(main)
