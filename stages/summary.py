"""Results of the other stages -> a few numbers for comparing runs."""

from persyn.files import read_json, write_json
from persyn.project.params import read_params
from persyn.settings import UNTUNED
from persyn.summary import build_summary
from stages import run


def main(router: str, allocation: str, evaluation: str, beside: str, cost: str, out: str) -> None:
    params = read_params()
    names = list(params.strategies)
    shares, scores = [{s: read_json(f"{folder}/{s}.json") for s in names} for folder in (allocation, evaluation)]
    tasks, untuned = params.evaluation.tasks, read_json(beside)[UNTUNED]
    write_json(build_summary(read_json(router), shares, scores, read_json(cost), tasks, untuned), out)


if __name__ == "__main__":
    run(main)
