import shutil
from pathlib import Path

import polars as pl
import pytest
import torch

from persyn.chat import with_chat_template
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.generation.terms import Licenses
from persyn.learnability import LearnabilitySettings, score_learnability
from persyn.models import LoraSettings, Student, load_causal_lm, load_tokenizer
from persyn.student import SftSettings, encode_dataset, train_student
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
