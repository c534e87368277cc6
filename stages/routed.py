"""Routes -> the responses of the chosen teachers, and of the next ones where those fall short of dataset.require."""

import functools
from typing import Any

import polars as pl

from persyn.project.params import JUDGE, read_params
from persyn.quality import QualitySpeed, score_quality
from persyn.routed import Retries, build_routed, existing_pairs, retry_failed
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table, write_table
from persyn.store import store_folder
from stages import run


def main(prompts: str, routes: str, responses: str, out: str) -> None:
    params = read_params()
    teachers, folder = params.teachers, store_folder()
    asked, chosen = read_table(prompts, PROMPTS), read_table(routes, ROUTES)
    parallel = pl.concat(read_folder(responses, list(teachers), RESPONSES).values())
    asking = teachers, params.licenses, folder, {name: params.speed_of(name) for name in teachers}
    limits: dict[str, Any] = {"budget": params.budget, "max_error_share": params.responses.max_error_share}

    def ask(pairs: pl.DataFrame) -> pl.DataFrame:
        return build_routed(asked, pairs, parallel, *asking, **limits)

    routed = ask(chosen)
    if params.dataset.retries:
        speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
        scoring = folder, params.quality, speed, params.budget, teachers
        policies = params.dataset.over(params.defects)
        how = params.dataset.retries, params.dataset.require, policies
        retries = Retries(*how, lambda written: score_quality(asked, written, *scoring))
        have = functools.partial(existing_pairs, asked, responses=parallel, teachers=teachers, folder=folder)
        routed = retry_failed(asked, chosen, routed, ask, have, retries)
    write_table(routed, out, RESPONSES)


if __name__ == "__main__":
    run(main)
