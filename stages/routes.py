"""Every prompt + a strategy -> its teacher."""

import numpy as np
import polars as pl

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.router import load_router
from persyn.router.reading import prompt_texts
from persyn.router.settings import Method
from persyn.routes import Pool, allocation, build_routes
from persyn.schemas import PROMPTS, RESPONSES, REWARDS, ROUTES, read_folder, read_table, write_table
from stages import run


def main(strategy: str, prompts: str, rewards: str, router: str, responses: str, out: str, metrics: str) -> None:
    params = read_params()
    rule = params.named("strategies", strategy)
    teachers = list(params.teachers)

    def predict(asked: pl.DataFrame, method: Method | None) -> np.ndarray:
        known = load_router(router, teachers, None if method == params.router.method else method)
        return known.strengths(prompt_texts(asked), asked["source"].to_list())

    pool = Pool(
        teachers,
        read_table(rewards, REWARDS),
        predict=predict,
        families={name: teacher.family for name, teacher in params.teachers.items()},
        student_family=params.student.family,
        responses=lambda: read_folder(responses, teachers, RESPONSES),
        with_next=params.dataset.retries > 0,
    )
    routes = build_routes(read_table(prompts, PROMPTS), pool, rule)
    write_table(routes, out, ROUTES)
    write_json(allocation(routes, teachers), metrics)


if __name__ == "__main__":
    run(main)
