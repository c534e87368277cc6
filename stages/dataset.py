"""Routed responses -> the student's dataset and its card."""

from pathlib import Path
from typing import Any

import polars as pl

from persyn.dataset import Building
from persyn.dataset.card import build_card
from persyn.dataset.mix import choose_mixes
from persyn.dataset.parts import sink_dataset
from persyn.files import read_json, write_json, write_text
from persyn.generation.terms import check_terms
from persyn.project.params import JUDGE, read_params
from persyn.quality import QualitySpeed, score_quality
from persyn.schemas import RESPONSES, ROUTES, parts_folder, read_columns, read_parts
from persyn.store import store_folder
from stages import run


def main(name: str, prompts: str, cleaning: str, routes: str, routed: str, out: str, metrics: str, readme: str) -> None:
    params = read_params()
    teachers, settings = params.teachers, params.dataset
    speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
    scoring = store_folder(), params.quality, speed, params.budget, teachers
    raw = Path("data/raw")  # in no argument: dataset.mix names the files below it

    def score(asked: pl.DataFrame, written: pl.DataFrame) -> pl.DataFrame:
        return score_quality(asked, written, *scoring)

    def mixes(routed: pl.Series) -> tuple[list[Any], dict[str, Any]]:
        return choose_mixes(routed, settings.mix, settings.seed, params.prompts, raw)

    wrote = read_columns(routed, "teacher")["teacher"].unique().sort()
    check_terms({teacher: teachers[teacher] for teacher in wrote}, params.licenses)
    building = Building(params.defects, teachers, settings, score)
    files, rows = ((routes, ROUTES), (routed, RESPONSES)), params.quality.at_once
    joined = mixes if settings.mix else None
    with parts_folder(out) as folder:
        counts, origins = sink_dataset(lambda: read_parts(prompts, *files, rows=rows), building, joined, folder, out)
    write_json(counts, metrics)
    write_text(build_card(name, origins, counts, teachers, read_json(cleaning)), readme)


if __name__ == "__main__":
    run(main)
