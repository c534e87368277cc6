"""A trained student -> its scores and its response to every item."""

from persyn.evaluation import evaluate_once
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.schemas import SAMPLES, write_table
from stages import run


def main(student: str, tasks: str, out: str, samples: str) -> None:
    params = read_params()
    how = params.evaluation, params.speed.evaluation, params.student.thinking
    scores, responses = evaluate_once(student, tasks, *how)
    write_table(responses, samples, SAMPLES)
    write_json(scores, out)


if __name__ == "__main__":
    run(main, launched="evaluation")
