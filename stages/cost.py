"""Responses and routed responses -> the ledger."""

import polars as pl

from persyn.cost import build_ledger
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.schemas import PROMPTS, RESPONSES, read_folder, read_table
from stages import run


def main(prompts: str, responses: str, routed: str, out: str) -> None:
    params = read_params()
    by_teacher = read_folder(responses, list(params.teachers), RESPONSES)
    by_strategy = read_folder(routed, list(params.strategies), RESPONSES)
    write_json(build_ledger(read_table(prompts, PROMPTS), pl.concat(by_teacher.values()), by_strategy), out)


if __name__ == "__main__":
    run(main)
