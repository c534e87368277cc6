"""Every prompt + a strategy -> its teacher."""

from persyn.files import write_json
from persyn.models import Student
from persyn.router import load_router
from persyn.routes import Pool, allocation, build_routes
from persyn.schemas import PROMPTS, RESPONSES, REWARDS, ROUTES, read_folder, read_table, write_table
from stages import read_params, run


def main(strategy: str, prompts: str, rewards: str, router: str, responses: str, out: str, metrics: str) -> None:
    entries, student = read_params("teachers"), Student(**read_params("student", Student))
    teachers, table = list(entries), read_table(rewards, REWARDS)
    families = {name: teacher.get("family") for name, teacher in entries.items()}
    trained, answers = lambda: load_router(router, teachers), lambda: read_folder(responses, teachers, RESPONSES)
    pool = Pool(teachers, table, lambda texts: trained().strengths(texts), families, student.family, answers)
    routes = build_routes(read_table(prompts, PROMPTS), pool, read_params(f"strategies.{strategy}"))
    write_table(routes, out, ROUTES)
    write_json(allocation(routes, teachers), metrics)


if __name__ == "__main__":
    run(main)
