"""Every prompt + a strategy -> its teacher."""

import polars as pl

from persyn import schemas
from persyn.defects import unfit_responses
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.router import load_router, route_strengths
from persyn.routes import Pool, allocation, build_routes
from stages import run


def main(
    name: str, prompts: str, rewards: str, router: str, responses: str, defects: str, out: str, metrics: str
) -> None:
    params = read_params()
    rule = params.named("strategies", name)
    teachers, main_method = list(params.pool), params.router.method
    trained = lambda method: load_router(router, teachers, None if method == main_method else method)  # noqa: E731
    parts = lambda: schemas.read_batches(prompts, schemas.PROMPTS)  # noqa: E731
    pool = Pool(
        teachers,
        schemas.read_table(rewards, schemas.REWARDS),
        lambda asked, method: route_strengths(trained(method), parts()),  # in the order of `asked`
        {name: teacher.family for name, teacher in params.pool.items()},
        params.student.family,
        lambda: schemas.read_folder(responses, teachers, schemas.RESPONSES, params.teachers),
        with_next=params.dataset.retries > 0,
        unfit=unfit_responses(schemas.read_table(defects, schemas.DEFECTS), params.dataset.over(params.defects)),
    )
    asked = pl.concat(part.drop("prompt", "reference") for part in parts())
    routes = build_routes(asked, pool, rule)
    schemas.write_table(routes, out, schemas.ROUTES)
    write_json(allocation(routes, teachers), metrics)


if __name__ == "__main__":
    run(main)
