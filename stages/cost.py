"""Responses, routes and routed responses -> the ledger."""

import polars as pl

from persyn.cost import Paid, build_ledger
from persyn.files import write_json
from persyn.project.params import read_params
from persyn.quality import judge_ledger
from persyn.responses import asked_of, count_lost
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table
from persyn.store import store_folder
from stages import run


def main(prompts: str, responses: str, routes: str, routed: str, out: str) -> None:
    params, asked = read_params(), read_table(prompts, PROMPTS)
    parallel = pl.concat(read_folder(responses, list(params.teachers), RESPONSES).values())
    chosen = read_folder(routes, list(params.strategies), ROUTES)
    by_strategy = read_folder(routed, list(params.strategies), RESPONSES)
    judge = judge_ledger(asked, [parallel, *by_strategy.values()], store_folder(), params.quality)
    paid_for = Paid(count_lost(asked_of([parallel, *by_strategy.values()], asked), params.teachers, store_folder()))
    more = judge, paid_for, chosen, params.asked_student
    write_json(build_ledger(asked, parallel, by_strategy, None, *more), out)


if __name__ == "__main__":
    run(main)
