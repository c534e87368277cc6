"""Every prompt + a strategy -> its teacher."""

import numpy as np
import polars as pl

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.router import load_router
from persyn.router.reading import prompt_texts
from persyn.router.settings import Method
from persyn.routes import Pool, allocation, build_routes
from persyn.schemas import PROMPTS, RESPONSES, REWARDS, ROUTES, read_batches, read_folder, read_table, write_table
from stages import run

ROWS = 50_000
"""Prompts whose texts and features are in memory at a time."""


def main(strategy: str, prompts: str, rewards: str, router: str, responses: str, out: str, metrics: str) -> None:
    params = read_params()
    rule = params.named("strategies", strategy)
    teachers = list(params.teachers)

    def predict(asked: pl.DataFrame, method: Method | None) -> np.ndarray:
        """Their texts come from the file, which is in the same order."""
        known = load_router(router, teachers, None if method == params.router.method else method)
        batches = read_batches(prompts, PROMPTS, ROWS)
        return np.concatenate([known.strengths(prompt_texts(part), part["source"].to_list()) for part in batches])

    pool = Pool(
        teachers,
        read_table(rewards, REWARDS),
        predict=predict,
        families={name: teacher.family for name, teacher in params.teachers.items()},
        student_family=params.student.family,
        responses=lambda: read_folder(responses, teachers, RESPONSES),
        with_next=params.dataset.retries > 0,
    )
    without_texts = [part.drop("prompt", "reference") for part in read_batches(prompts, PROMPTS, ROWS)]
    routes = build_routes(pl.concat(without_texts), pool, rule)
    write_table(routes, out, ROUTES)
    write_json(allocation(routes, teachers), metrics)


if __name__ == "__main__":
    run(main)
