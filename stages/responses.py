"""Parallel prompts + one teacher -> its responses."""

from persyn.generation.terms import check_terms
from persyn.project.params import read_params
from persyn.prompts import wanted_prompts
from persyn.responses import generate_responses
from persyn.schemas import PROMPTS, RESPONSES, read_table, write_table
from persyn.store import store_folder
from stages import run


def main(name: str, prompts: str, out: str) -> None:
    params = read_params()
    teacher = params.named("teachers", name)
    check_terms({name: teacher}, params.licenses)
    parallel = wanted_prompts(read_table(prompts, PROMPTS), name, teacher.anchors)
    paying = store_folder(), params.speed_of(name), params.budget
    allowed = params.responses.max_error_share
    responses = generate_responses(parallel, name, teacher, *paying, max_error_share=allowed)
    write_table(responses, out, RESPONSES)


if __name__ == "__main__":
    run(main)
