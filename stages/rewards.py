"""Prompts, quality and learnability of every teacher -> rewards."""

import polars as pl

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.rewards import build_rewards
from persyn.schemas import (
    DEFECTS,
    LEARNABILITY,
    PARALLEL,
    PROMPTS,
    QUALITY,
    REWARDS,
    read_folder,
    read_table,
    write_table,
)
from stages import run


def main(prompts: str, quality: str, learnability: str, defects: str, out: str, metrics: str) -> None:
    params = read_params()
    teachers = list(params.teachers)
    scored = pl.concat(read_folder(quality, teachers, QUALITY).values())
    learned = pl.concat(read_folder(learnability, teachers, LEARNABILITY).values())
    how = params.dataset.over(params.defects), params.rewards, params.anchored, read_table(prompts, PROMPTS, PARALLEL)
    rewards, counts = build_rewards(scored, learned, read_table(defects, DEFECTS), teachers, *how)
    write_table(rewards, out, REWARDS)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)
