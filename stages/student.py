"""Dataset -> the trained student and its loss curve."""

from persyn.files import write_text
from persyn.models import Student
from persyn.schemas import DATASET, read_table
from persyn.student import train_student
from persyn.training.monitors import Live
from stages import read_params, read_value, run


def main(dataset: str, out: str, curve: str, live: str) -> None:
    student = Student(**read_params("student", Student))
    params, batch = read_params("sft", train_student), read_value("speed.student.device_batch_size")
    watched = Live(live, read_params("speed.student").get("report_to", "dvclive"))
    losses = train_student(read_table(dataset, DATASET), student, out, batch, watched, **params)
    write_text(losses.write_csv(), curve)


if __name__ == "__main__":
    run(main, launched="student")
