"""Routed responses -> the student's dataset and its card."""

from functools import partial
from pathlib import Path

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
    teachers, settings, rows = params.teachers, params.dataset, params.quality.at_once
    speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
    scoring = store_folder(), params.quality, speed, params.budget, teachers
    wrote = read_columns(routed, "teacher")["teacher"].unique().sort()
    check_terms({teacher: teachers[teacher] for teacher in wrote}, params.licenses)
    score = lambda asked, written: score_quality(asked, written, *scoring)  # noqa: E731
    building = Building(params.defects, teachers, settings, score)
    raw = Path("data/raw")  # in no argument: dataset.mix names the files below it
    mixes = partial(choose_mixes, mixes=settings.mix, seed=settings.seed, prompts=params.prompts, raw=raw)
    files = (routes, ROUTES), (routed, RESPONSES)
    with parts_folder(out) as folder:
        parts = partial(read_parts, prompts, *files, rows=rows)
        counts, origins = sink_dataset(parts, building, mixes if settings.mix else None, folder, out)
    write_json(counts, metrics)
    write_text(build_card(name, origins, counts, teachers, read_json(cleaning)), readme)


if __name__ == "__main__":
    run(main)
