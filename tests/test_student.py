import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from persyn.chat import with_chat_template
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.learnability import LearnabilitySettings, score_learnability
from persyn.models import Student, load_causal_lm, load_tokenizer
from persyn.student import SftSettings, check_lengths, encode_dataset, train_student
from persyn.training.lora import LoraSettings
from tests.support.tables import prompts_table, responses_table, stub_teachers

PROMPTS = prompts_table([f"Say the word number {i}." for i in range(8)])
RESPONSES = responses_table(PROMPTS, "t", ["The clock struck twelve."] * 8)
DATASET, _ = build_dataset(PROMPTS, RESPONSES, Policies(), stub_teachers("t"), Licenses(), DatasetSettings())
SETTINGS = SftSettings(learning_rate=5e-3, epochs=5, batch_size=4, warmup=0.0)


@pytest.mark.parametrize("lora", [None, LoraSettings(r=4, alpha=8)])
def test_training_moves_the_weights_and_the_student_has_learned(
    lora: LoraSettings | None, base_model: str, tmp_path: Path
) -> None:
    student = Student(model=base_model, license="x", max_length=256)
    curve = train_student(DATASET, student, tmp_path / "out", SETTINGS.changed(lora=lora), 2)
    assert curve["loss"][-1] < curve["loss"][0]
    base, trained = (load_causal_lm(model).state_dict() for model in (base_model, str(tmp_path / "out")))
    moved = [name for name in base if not torch.equal(base[name], trained[name])]
    assert len(moved) == len(base) if lora is None else moved
    assert not [path for path in (tmp_path / "out").iterdir() if path.suffix in (".bin", ".pt", ".pkl")]
    tuned = Student(model=str(tmp_path / "out"), license="x")
    before, after = (
        score_learnability(PROMPTS, RESPONSES, model, LearnabilitySettings(), tmp_path)["learnability"].to_list()
        for model in (student, tuned)
    )
    assert sum(after) > sum(before)


def test_a_student_stops_where_it_was_taught_to_end_its_turn(chat_model: str, tmp_path: Path) -> None:
    """Although its base, as Qwen2.5's, comes with a chat template and ends with the end of the text."""
    shutil.copytree(chat_model, tmp_path / "base")
    tokenizer, model = load_tokenizer(chat_model), load_causal_lm(chat_model)
    tokenizer.eos_token = "<eos>"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    tokenizer.save_pretrained(tmp_path / "base")
    model.save_pretrained(tmp_path / "base")
    student = Student(model=str(tmp_path / "base"), license="x")
    train_student(DATASET, student, tmp_path / "out", SETTINGS.changed(epochs=1))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert load_tokenizer(str(tmp_path / "out")).eos_token_id == end
    assert end in load_causal_lm(str(tmp_path / "out")).generation_config.eos_token_id


def test_a_cut_completion_is_learned_without_an_end_of_turn(chat_model: str) -> None:
    tokenizer = with_chat_template(load_tokenizer(chat_model, None, False))
    whole = encode_dataset(tokenizer, DATASET)
    cut = encode_dataset(tokenizer, DATASET.with_columns(finish_reason=pl.lit("length")))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    for with_end, without in zip(whole, cut, strict=True):
        assert with_end["input_ids"] == [*without["input_ids"], end]
        assert with_end["labels"] == [*without["labels"], end]


def test_terms_change_no_token(chat_model: str) -> None:
    tokenizer = with_chat_template(load_tokenizer(chat_model, None, False))
    encoded = encode_dataset(tokenizer, DATASET)
    assert encoded == encode_dataset(tokenizer, DATASET.select("prompt_id", "teacher", "prompt", "completion"))
    other, _ = build_dataset(
        PROMPTS, RESPONSES, Policies(), stub_teachers("t", "conditional", "new"), Licenses(), DatasetSettings()
    )
    assert other["training"].unique().to_list() == ["conditional"]
    assert encoded == encode_dataset(tokenizer, other)


def test_rows_that_training_cuts_or_loses_are_counted_as_trl_does(
    base_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["Say it.", "Say the word. " * 3, "Say it to everybody who listens. " * 20]
    prompts = prompts_table(asked)
    responses = responses_table(
        prompts, "t", ["Yes.", "The clock struck twelve, and nobody in the old house by the sea woke up.", "No."]
    )
    dataset, _ = build_dataset(prompts, responses, Policies(), stub_teachers("t"), Licenses(), DatasetSettings())
    rows = encode_dataset(with_chat_template(load_tokenizer(base_model)), dataset)
    starts = [row["labels"].count(-100) for row in rows]
    lengths = [len(row["labels"]) for row in rows]
    (short, cut, lost), limit = sorted(range(3), key=lambda row: starts[row]), sorted(starts)[1] + 3
    assert lengths[short] <= limit < lengths[cut]
    assert starts[lost] > limit
    trained: list[int] = []

    def count(trainer: Any, padding: Any) -> None:
        trained.append(len(trainer.train_dataset))
        raise InterruptedError

    monkeypatch.setattr("persyn.training.trainer.train", count)
    student = Student(model=base_model, license="x", max_length=limit)
    with caplog.at_level("WARNING", "persyn.student"), pytest.raises(InterruptedError):
        train_student(dataset, student, tmp_path / "out", SETTINGS)
    assert trained == [2], "what TRL keeps"
    assert (
        f"2 of 3 rows (66.7 %) are longer than student.max_length {limit} and lose their end; 1 (33.3 %)" in caplog.text
    )


def test_a_dataset_that_loses_every_response_is_refused_before_training(base_model: str, tmp_path: Path) -> None:
    student = Student(model=base_model, license="x", max_length=3)
    with pytest.raises(
        InputError, match=r"max_length is 3, .* no row .*; the earliest is token \d+: raise student.max"
    ) as r:
        train_student(DATASET, student, tmp_path / "out", SETTINGS)
    assert "\n" not in str(r.value)
    assert not (tmp_path / "out").exists()


def test_rows_that_fit_are_not_mentioned(caplog: pytest.LogCaptureFixture) -> None:
    check_lengths([{"input_ids": [1, 2], "labels": [-100, 2]}], 2)
    check_lengths([], 2)
    assert not caplog.text
