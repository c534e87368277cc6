"""Every prompt + a strategy -> its teacher."""

from persyn.models import Student
from persyn.router import load_router
from persyn.routes import Pool, allocation, build_routes
from persyn.schemas import PROMPTS, REWARDS, ROUTES, read_table, write_json, write_table
from stages import read_params, run


def main(strategy: str, prompts: str, rewards: str, router: str, out: str, metrics: str) -> None:
    teachers, student = read_params("teachers"), Student(**read_params("student", Student))
    pool = Pool(
        list(teachers),
        read_table(rewards, REWARDS),
        lambda texts: load_router(router, list(teachers)).strengths(texts),
        {name: teacher.get("family") for name, teacher in teachers.items()},
        student.family,
    )
    routes = build_routes(read_table(prompts, PROMPTS), pool, read_params(f"strategies.{strategy}"))
    write_table(routes, out, ROUTES)
    write_json(allocation(routes, list(teachers)), metrics)


if __name__ == "__main__":
    run(main)
