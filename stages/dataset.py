"""Routed responses -> the student's dataset and its card."""

from pathlib import Path

from persyn.dataset import build_dataset
from persyn.dataset.card import build_card
from persyn.dataset.mix import add_mixes
from persyn.files import read_json, write_json, write_text
from persyn.project.params import JUDGE, read_params
from persyn.quality import QualitySpeed, score_quality
from persyn.schemas import DATASET, PROMPTS, RESPONSES, ROUTES, read_table, write_table
from persyn.store import store_folder
from stages import run


def main(name: str, prompts: str, cleaning: str, routes: str, routed: str, out: str, metrics: str, readme: str) -> None:
    params = read_params()
    asked, teachers = read_table(prompts, PROMPTS), params.teachers
    speed = QualitySpeed(params.speed_of(JUDGE), params.speed.reward_model)
    scoring = store_folder(), params.quality, speed, params.budget, teachers
    dataset, counts = build_dataset(
        asked,
        read_table(routed, RESPONSES),
        params.dataset.over(params.defects),
        teachers,
        params.licenses,
        params.dataset,
        read_table(routes, ROUTES),
        lambda responses: score_quality(asked, responses, *scoring),
    )
    raw = Path("data/raw")  # in no argument: dataset.mix names the files below it
    dataset, mixed = add_mixes(dataset, params.dataset.mix, params.dataset.seed, params.prompts, raw)
    counts |= {"mix": mixed} if mixed else {}
    write_table(dataset, out, DATASET)
    write_json(counts, metrics)
    write_text(build_card(name, asked, dataset, counts, teachers, read_json(cleaning)), readme)


if __name__ == "__main__":
    run(main)
