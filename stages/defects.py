"""Responses of every teacher to the parallel set -> their defects, and the counts by teacher."""

import polars as pl

from persyn.defects import count_defects, find_defects
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.schemas import DEFECTS, PARALLEL, PROMPTS, RESPONSES, read_folder, read_table, write_table
from stages import run


def main(prompts: str, responses: str, out: str, metrics: str) -> None:
    params = read_params()
    written = pl.concat(read_folder(responses, list(params.teachers), RESPONSES).values())
    defects = find_defects(read_table(prompts, PROMPTS, PARALLEL), written)
    write_table(defects, out, DEFECTS)
    write_json(count_defects(defects, written), metrics)


if __name__ == "__main__":
    run(main)
