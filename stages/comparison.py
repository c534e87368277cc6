"""Every strategy's answers -> how it compares with `persyn`."""

from persyn.comparison import compare_strategies
from persyn.schemas import SAMPLES, read_folder, write_json
from stages import read_params, run


def main(evaluation: str, out: str) -> None:
    write_json(compare_strategies(read_folder(evaluation, list(read_params("strategies")), SAMPLES)), out)


if __name__ == "__main__":
    run(main)
