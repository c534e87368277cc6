"""What the other stages measured -> the few numbers by which runs are compared."""

from persyn.files import write_json
from persyn.summary import build_summary
from stages import read_json, read_params, run


def main(router: str, allocation: str, evaluation: str, cost: str, out: str) -> None:
    strategies, tasks = list(read_params("strategies")), read_params("evaluation")["tasks"]
    shares, scores = [{s: read_json(f"{folder}/{s}.json") for s in strategies} for folder in (allocation, evaluation)]
    write_json(build_summary(read_json(router), shares, scores, read_json(cost), tasks), out)


if __name__ == "__main__":
    run(main)
