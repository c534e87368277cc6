"""Parallel prompts + one teacher -> its responses."""

import logging

from persyn.project.params import read_params
from persyn.prompts import wanted_prompts
from persyn.responses import check_asking, generate_responses
from persyn.schemas import PARALLEL, PROMPTS, RESPONSES, read_table, write_table
from persyn.store import store_folder
from stages import run

logger = logging.getLogger("persyn.stages.responses")


def main(name: str, prompts: str, out: str) -> None:
    params = read_params()
    teacher = params.named("teachers", name)
    for line in params.told if teacher.is_student else ():
        logger.warning(line)
    parallel = wanted_prompts(read_table(prompts, PROMPTS, PARALLEL), name, teacher.anchors)
    check_asking({name: [parallel]}, {name: teacher}, params.licenses, store_folder())
    paying = store_folder(), params.speed_of(name), params.budget
    allowed = params.responses.max_error_share
    responses = generate_responses(parallel, name, teacher, *paying, max_error_share=allowed)
    write_table(responses, out, RESPONSES)


if __name__ == "__main__":
    run(main)
