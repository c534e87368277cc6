"""Prompts, quality and learnability of every teacher -> rewards."""

import polars as pl

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.rewards import build_rewards, with_student
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
    teachers, policies, found = list(params.pool), params.dataset.over(params.defects), read_table(defects, DEFECTS)
    scored = read_folder(quality, list(params.teachers), QUALITY)
    own = scored.pop(params.asked_student, None)
    asked = with_student(read_table(prompts, PROMPTS, PARALLEL), own, found, policies, params.quality.scales)
    learned = pl.concat(read_folder(learnability, teachers, LEARNABILITY).values())
    how = teachers, policies, params.rewards, params.anchored, asked
    rewards, counts = build_rewards(pl.concat(scored.values()), learned, found, *how)
    write_table(rewards, out, REWARDS)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)
