"""Routes -> the responses of the chosen teachers, and of the next ones where those fall short of dataset.require."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl

from persyn.project.params import JUDGE, read_params
from persyn.quality import QualitySpeed, score_quality
from persyn.routed import KEYS, Asking, Retries, collect_rounds, retry_failed
from persyn.schemas import (
    RESPONSES,
    ROUTES,
    alike,
    check_folder,
    parts_folder,
    read_batches,
    read_columns,
    read_parts,
    sink_parts,
)
from persyn.store import store_folder
from stages import run


def main(prompts: str, routes: str, responses: str, out: str) -> None:
    params = read_params()
    teachers, folder = params.teachers, store_folder()
    speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
    scoring = folder, params.quality, speed, params.budget, teachers
    check_folder(responses, list(teachers))
    at_once = params.quality.at_once if params.dataset.retries else None
    files = [(Path(responses) / f"{name}.parquet", RESPONSES) for name in teachers]

    def parts() -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
        for asked, *written in read_parts(prompts, *files, rows=at_once):
            yield asked, pl.concat(alike(written))

    def score(asked: pl.DataFrame, written: pl.DataFrame) -> pl.DataFrame:
        return score_quality(asked, written, *scoring)

    each = {name: params.speed_of(name) for name in teachers}
    limits = {"budget": params.budget, "max_error_share": params.responses.max_error_share}
    with parts_folder(out) as scratch:
        asking = Asking(parts, teachers, params.licenses, folder, each, limits, scratch)
        rounds = [asking.ask(read_columns(routes, *KEYS), "routed")]
        if params.dataset.retries:
            how = params.dataset.retries, params.dataset.require, params.dataset.over(params.defects)
            rounds = retry_failed(asking, lambda: read_batches(routes, ROUTES), rounds[0], Retries(*how, score))
        sink_parts(collect_rounds(rounds), out, RESPONSES)


if __name__ == "__main__":
    run(main)
