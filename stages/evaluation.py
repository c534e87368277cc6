"""A trained student -> its scores and its answer to every item."""

from persyn.evaluation import evaluate_student
from persyn.files import write_json
from persyn.schemas import SAMPLES, write_table
from stages import read_params, read_value, run


def main(student: str, tasks: str, out: str, samples: str) -> None:
    params, batch = read_params("evaluation", evaluate_student), read_value("speed.evaluation.batch_size")
    scores, answers = evaluate_student(student, tasks, batch, **params)
    write_table(answers, samples, SAMPLES)
    write_json(scores, out)


if __name__ == "__main__":
    run(main)
