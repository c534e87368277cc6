"""Routed responses -> the student's dataset."""

from persyn.dataset import build_dataset
from persyn.defects import Policies
from persyn.schemas import DATASET, PROMPTS, RESPONSES, read_table, write_json, write_table
from stages import read_params, run


def main(prompts: str, routed: str, out: str, metrics: str) -> None:
    tables = read_table(prompts, PROMPTS), read_table(routed, RESPONSES)
    policies = Policies(**read_params("defects", Policies))
    dataset, counts = build_dataset(*tables, policies, **read_params("dataset", build_dataset))
    write_table(dataset, out, DATASET)
    write_json(counts, metrics)


if __name__ == "__main__":
    run(main)
