import re

import polars as pl
from huggingface_hub import DatasetCard
from markdown_it import MarkdownIt

from persyn.dataset import DatasetSettings, build_dataset
from persyn.dataset.card import build_card, count_origins
from persyn.defects import Policies
from persyn.generation import Teacher
from persyn.generation.terms import Licenses
from tests.support.tables import prompts_table, responses_table, stub_teachers

PROMPTS = prompts_table(["one", "two"])
CLEANING = {"read": 9, "kept": 2, "dropped": {"contaminated": 4, "duplicate": 3}}


def card_of(prompts: pl.DataFrame, teachers: dict[str, Teacher]) -> DatasetCard:
    """The data card of what teacher t answered, as Hugging Face reads it."""
    responses = responses_table(prompts, "t", [f"secret text {number}" for number in range(prompts.height)])
    dataset, counts = build_dataset(prompts, responses, Policies(), teachers, Licenses(), DatasetSettings())
    return DatasetCard(build_card("persyn", count_origins(prompts, dataset), counts, teachers, CLEANING))


def test_the_card_says_how_the_data_was_made_and_what_binds_its_user() -> None:
    card = card_of(PROMPTS, stub_teachers("t", "conditional", "keep the notice (MIT, 1)"))
    assert [card.data[f"{what}_categories"] for what in ("size", "task")] == [["n<1K"], ["text-generation"]]
    assert (card.data["license"], card.data["license_name"]) == ("other", "see-conditions")
    assert "| t | model-t |  | MIT | conditional | 2 | 100.0% |" in card.text
    assert "| test | Apache-2.0 | 2 |" in card.text
    assert "9 read, 2 kept; dropped: contaminated 4, duplicate 3" in card.text
    assert "Responses: 2 written, 2 kept; dropped: none" in card.text
    condition = "- Responses of t (licence MIT) may train other models on a condition: keep the notice (MIT, 1)."
    assert f"- Prompts under Apache-2.0.\n{condition}\n" in card.text
    assert "secret text" not in card.content
    mit = PROMPTS.with_columns(license=pl.lit("MIT"))
    assert card_of(mit, stub_teachers("t", "allowed")).data["license"] == "mit"
    assert card_of(mit, stub_teachers("t", "conditional")).data["license"] == "other", "the name would say too little"


HOSTILE = "x | y\n\n# Owned\n---\n<script>alert(1)</script> [a](http://e.vil) `b` **c** \\| \u202e \x1b[2J"


def test_no_text_breaks_out_of_the_card() -> None:
    teacher = Teacher(**{**vars(stub_teachers("t", "allowed", HOSTILE)["t"]), "license": HOSTILE, "model": HOSTILE})
    plain = card_of(PROMPTS, stub_teachers("t", "allowed", "terms"))
    card = card_of(PROMPTS.with_columns(source=pl.lit(HOSTILE), license=pl.lit(HOSTILE)), {"t": teacher})
    assert card.data.to_dict() == plain.data.to_dict()
    html, expected = (MarkdownIt("commonmark").enable("table").render(one.text) for one in (card, plain))
    assert re.findall(r"<[/\w]+", html) == re.findall(r"<[/\w]+", expected)
    assert "e.vil" in html
    assert "\x1b" not in html
    assert "\u202e" not in html


def test_a_model_on_this_machine_is_shown_without_its_path() -> None:
    teacher = Teacher(**{**vars(stub_teachers("t")["t"]), "model": "/home/someone/models/mine"})
    assert "someone" not in card_of(PROMPTS, {"t": teacher}).content
