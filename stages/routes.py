"""Every prompt + a strategy -> its teacher."""

import numpy as np
import polars as pl

from persyn.files import write_json
from persyn.project.params import read_params
from persyn.router import load_router, route_strengths
from persyn.router.settings import Method
from persyn.routes import Pool, allocation, build_routes
from persyn.schemas import PROMPTS, RESPONSES, REWARDS, ROUTES, read_batches, read_folder, read_table, write_table
from stages import run


def main(strategy: str, prompts: str, rewards: str, router: str, responses: str, out: str, metrics: str) -> None:
    params = read_params()
    rule = params.named("strategies", strategy)
    teachers = list(params.pool)

    def predict(asked: pl.DataFrame, method: Method | None) -> np.ndarray:
        known = load_router(router, teachers, None if method == params.router.method else method)
        return route_strengths(known, read_batches(prompts, PROMPTS))  # in the order of `asked`

    pool = Pool(
        teachers,
        read_table(rewards, REWARDS),
        predict,
        {name: teacher.family for name, teacher in params.pool.items()},
        params.student.family,
        lambda: read_folder(responses, teachers, RESPONSES, params.teachers),
        with_next=params.dataset.retries > 0,
    )
    asked = pl.concat(part.drop("prompt", "reference") for part in read_batches(prompts, PROMPTS))
    routes = build_routes(asked, pool, rule)
    write_table(routes, out, ROUTES)
    write_json(allocation(routes, teachers), metrics)


if __name__ == "__main__":
    run(main)
