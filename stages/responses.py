"""Parallel prompts + one teacher -> its responses."""

from persyn.generation import Teacher
from persyn.generation.budget import Budget
from persyn.generation.terms import Licenses, check_terms
from persyn.prompts import wanted_prompts
from persyn.responses import generate_responses
from persyn.schemas import PROMPTS, RESPONSES, read_table, write_table
from persyn.store import store_folder
from stages import read_params, read_speed, run


def main(name: str, prompts: str, out: str) -> None:
    teacher = Teacher(**read_params(f"teachers.{name}", Teacher))
    check_terms({name: teacher}, Licenses(**read_params("licenses", Licenses)))
    parallel = wanted_prompts(read_table(prompts, PROMPTS), name, teacher.anchors)
    speed, limits = read_speed(name, teacher.backend), read_params("responses", generate_responses)
    limits["budget"] = Budget(**read_params("budget", Budget))
    write_table(generate_responses(parallel, name, teacher, store_folder(), speed, **limits), out, RESPONSES)


if __name__ == "__main__":
    run(main)
