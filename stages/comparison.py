"""The responses of all students and of the models beside them -> how they compare with those of `persyn`."""

from persyn.comparison import compare_strategies, comparison_table
from persyn.files import write_json, write_text
from persyn.project.params import read_params
from persyn.schemas import SAMPLES, read_folder
from stages import run


def main(evaluation: str, beside: str, out: str, table: str) -> None:
    params = read_params()
    samples = read_folder(evaluation, list(params.strategies), SAMPLES)
    samples |= read_folder(beside, list(params.finished), SAMPLES)
    comparison = compare_strategies(samples)
    write_json(comparison, out)
    write_text(comparison_table(samples, comparison) + "\n", table)


if __name__ == "__main__":
    run(main)
