"""Quality and learnability of every teacher -> rewards."""

import polars as pl

from persyn.defects import Policies
from persyn.files import write_json
from persyn.rewards import build_rewards
from persyn.schemas import DEFECTS, LEARNABILITY, QUALITY, REWARDS, read_folder, read_table, write_table
from stages import read_params, run


def main(quality: str, learnability: str, defects: str, out: str, metrics: str) -> None:
    teachers = read_params("teachers")
    anchored = [name for name, teacher in teachers.items() if teacher.get("anchors") is not None]
    scored = pl.concat(read_folder(quality, list(teachers), QUALITY).values())
    learned = pl.concat(read_folder(learnability, list(teachers), LEARNABILITY).values())
    policies, params = Policies(**read_params("defects", Policies)), read_params("rewards", build_rewards)
    tables = scored, learned, read_table(defects, DEFECTS)
    rewards, counts = build_rewards(*tables, list(teachers), policies, anchored, **params)
    write_table(rewards, out, REWARDS)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)
