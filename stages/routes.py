"""Every prompt + a strategy -> its teacher."""

from persyn.router import load_router, predict_strengths
from persyn.routes import allocation, build_routes
from persyn.schemas import PROMPTS, ROUTES, read_table, write_json, write_table
from stages import read_params, run


def main(strategy: str, prompts: str, router: str, out: str, metrics: str) -> None:
    teachers = list(read_params("teachers"))
    routes = build_routes(
        read_table(prompts, PROMPTS),
        teachers,
        lambda texts: predict_strengths(*load_router(router, teachers), texts),
        read_params(f"strategies.{strategy}"),
    )
    write_table(routes, out, ROUTES)
    write_json(allocation(routes, teachers), metrics)


if __name__ == "__main__":
    run(main)
