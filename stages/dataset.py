"""Routed responses -> the student's dataset and its card."""

from persyn import dataset, defects
from persyn.dataset import card
from persyn.files import write_json, write_text
from persyn.generation import Teacher, budget
from persyn.generation.terms import Licenses
from persyn.quality import score_quality
from persyn.schemas import DATASET, PROMPTS, RESPONSES, ROUTES, read_table, write_table
from persyn.store import store_folder
from stages import read_entries, read_json, read_params, read_speed, run


def main(name: str, prompts: str, cleaning: str, routes: str, routed: str, out: str, metrics: str, readme: str) -> None:
    tables = read_table(prompts, PROMPTS), read_table(routed, RESPONSES)
    terms = read_entries("teachers", Teacher), Licenses(**read_params("licenses", Licenses))
    policies, how = defects.Policies(**read_params("defects", defects.Policies)), read_params("quality", score_quality)
    paid = store_folder(), read_speed("judge", "openai"), budget.Budget(**read_params("budget", budget.Budget))
    choice = read_table(routes, ROUTES), lambda rows: score_quality(tables[0], rows, *paid, **how)
    made = dataset.build_dataset(*tables, policies, *terms, *choice, **read_params("dataset", dataset.build_dataset))
    write_table(made[0], out, DATASET)
    write_json(made[1], metrics)
    write_text(card.build_card(name, tables[0], *made, terms[0], read_json(cleaning)), readme)


if __name__ == "__main__":
    run(main)
