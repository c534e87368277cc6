"""Dataset -> the trained student and its loss curve."""

from persyn.files import write_text
from persyn.project.params import read_params
from persyn.schemas import DATASET, read_table
from persyn.student import train_student
from persyn.training.monitors import Live
from stages import run


def main(dataset: str, out: str, curve: str, live: str) -> None:
    params = read_params()
    speed = params.speed.student
    knobs = speed.device_batch_size, Live(live, speed.report_to)
    losses = train_student(read_table(dataset, DATASET), params.student, out, params.sft, *knobs)
    write_text(losses.write_csv(), curve)


if __name__ == "__main__":
    run(main, launched="student")
