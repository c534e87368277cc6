"""A trained student -> its scores and its response to every item."""

from persyn.evaluation import evaluate_student
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.schemas import SAMPLES, write_table
from stages import run


def main(student: str, tasks: str, out: str, samples: str) -> None:
    params = read_params()
    speed = params.speed.evaluation
    scores, responses = evaluate_student(student, tasks, params.evaluation, speed, params.student.thinking)
    write_table(responses, samples, SAMPLES)
    write_json(scores, out)


if __name__ == "__main__":
    run(main, launched="evaluation")
