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
from persyn.student import SftSettings, check_lengths, encode_dataset, split_rows, train_student
from persyn.training.lora import LoraSettings
from persyn.training.trainer import stopping_step
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


def test_later_settings_change_no_hash_until_they_are_set() -> None:
    """A killed training from before is gone on with, and `dvc repro` of an unchanged run trains nothing anew."""
    then = {"learning_rate": 1e-5, "epochs": 2, "batch_size": 32, "warmup": 0.1, "packing": False, "lora": None}
    assert SftSettings().model_dump() == then | {"seed": 0}
    assert LoraSettings().model_dump() == {"r": 16, "alpha": 32, "dropout": 0.0}
    changed = SftSettings(weight_decay=0.1, lora=LoraSettings(use_dora=True))
    assert changed.model_dump()["weight_decay"] == 0.1
    assert changed.model_dump()["lora"] == {"r": 16, "alpha": 32, "dropout": 0.0, "use_dora": True}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dtype": "bfloat16"}, "dtype is bfloat16, in which small updates"),
        ({"load_in_4bit": True}, "load_in_4bit is true, but 4-bit weights cannot be trained"),
        ({"keep_adapter": True}, "keep_adapter is true, but without lora"),
        ({"warmup": 0.3, "warmup_steps": 5}, "warmup_steps is 5, but warmup is 0.3"),
        ({"early_stopping_patience": 2}, "early_stopping_patience needs a validation loss"),
        ({"optim": "adamw"}, "optim is 'adamw'; it must be one of adamw_torch_fused, "),
        ({"lora": {"target_modules": []}}, "lora.target_modules"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refusal:
        SftSettings.parse(settings, "sft")
    assert "\n" not in str(refusal.value)


def test_every_knob_reaches_the_trainer(base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Any] = []

    def look(trainer: Any, padding: Any) -> None:
        found.append(trainer.args)
        raise InterruptedError

    monkeypatch.setattr("persyn.training.trainer.train", look)
    knobs = {"optim": "adafactor", "lr_scheduler_type": "linear", "weight_decay": 0.1, "max_grad_norm": 0.5}
    measured = {"validation": 0.25, "eval_steps": 0.2, "early_stopping_patience": 3}
    settings = SftSettings(warmup_steps=7, **knobs, **measured)  # type: ignore[arg-type]
    with pytest.raises(InterruptedError):
        train_student(DATASET, Student(model=base_model, license="x"), tmp_path / "out", settings)
    assert {name: getattr(found[0], name) for name in knobs} == knobs
    assert (found[0].warmup_steps, found[0].eval_steps, found[0].save_steps) == (7, 0.2, 0.2)


def test_all_rows_of_a_prompt_are_held_out_or_none(caplog: pytest.LogCaptureFixture) -> None:
    twice = pl.concat([DATASET, DATASET])
    rows = twice["prompt_id"].to_list()
    with caplog.at_level("INFO", "persyn.student"):
        trained, held_out = split_rows(rows, twice, 0.25)
    assert not {*trained} & {*held_out}
    assert (len(trained), len(held_out)) == (12, 4)
    assert "4 of 16 rows (2 of 8 prompts) are held out to measure the validation loss" in caplog.text
    assert {*split_rows(rows[::-1], twice.reverse(), 0.25)[1]} == {*held_out}
    assert split_rows(rows, twice, 0) == (rows, [])
    with pytest.raises(InputError, match=r"sft.validation 0.01 of 8 prompts holds out 0; one prompt at least"):
        split_rows(rows, twice, 0.01)


UNLIKE = responses_table(PROMPTS, "t", [f"It was {'twelve ' * i}then." for i in range(8)])
UNEVEN, _ = build_dataset(PROMPTS, UNLIKE, Policies(), stub_teachers("t"), Licenses(), DatasetSettings())


@pytest.mark.parametrize("shape", [{}, {"packing": True}, {"lora": LoraSettings(r=2)}])
def test_the_validation_loss_is_that_of_the_definition(shape: dict[str, Any], base_model: str, tmp_path: Path) -> None:
    """Over all response tokens of the held-out rows, however they are batched; rows of many lengths."""
    student = Student(model=base_model, license="x", max_length=256)
    settings = SETTINGS.changed(epochs=2, validation=0.4, eval_steps=0.5, **shape)
    curves = [train_student(UNEVEN, student, tmp_path / "out", settings, size) for size in (1, 2)]
    assert curves[0].columns == ["step", "loss", "eval_loss"]
    assert curves[0]["eval_loss"].drop_nulls().to_list() == pytest.approx(curves[1]["eval_loss"].drop_nulls().to_list())
    tokenizer, model = (load(str(tmp_path / "out")) for load in (load_tokenizer, load_causal_lm))
    _, held_out = split_rows(encode_dataset(tokenizer, UNEVEN), UNEVEN, 0.4)
    assert len(held_out) == 3
    nats, tokens = 0.0, 0
    for row in held_out:
        logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1].detach()
        labels = torch.tensor(row["labels"][1:])
        nats += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert curves[1]["eval_loss"][-1] == pytest.approx(nats / tokens, rel=1e-4)


def test_training_stops_early_and_keeps_the_best(
    base_model: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """At a rate at which it gets worse soon: the best is the model of a training that ends there."""
    student = Student(model=base_model, license="x", max_length=256)
    rough = {"learning_rate": 0.1, "epochs": 8, "batch_size": 2, "lr_scheduler_type": "constant_with_warmup"}
    settings = SftSettings(warmup=0.0, validation=0.25, **rough)  # type: ignore[arg-type]
    whole = train_student(UNEVEN, student, tmp_path / "whole", settings)
    with caplog.at_level("INFO", "persyn.student"):
        curve = train_student(UNEVEN, student, tmp_path / "out", settings.changed(early_stopping_patience=2))
    assert curve.equals(whole.head(curve.height))
    assert curve.height < whole.height == 24
    measured = curve.drop_nulls()
    best = measured.sort("eval_loss")["step"][0]
    assert best == measured["step"][-3], "two measurements in a row were no better"
    assert f"trained until step {curve.height} of 24; the model of step {best}" in caplog.text
    kept, last = (load_causal_lm(str(tmp_path / name)).state_dict() for name in ("out", "whole"))
    assert any(not torch.equal(kept[name], last[name]) for name in kept)
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    _, held_out = split_rows(encode_dataset(tokenizer, UNEVEN), UNEVEN, 0.25)
    model = load_causal_lm(str(tmp_path / "out"))
    losses = [
        model(torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])).loss.item() for row in held_out
    ]
    sizes = [sum(label != -100 for label in row["labels"]) for row in held_out]
    total = sum(loss * size for loss, size in zip(losses, sizes, strict=True)) / sum(sizes)
    assert total == pytest.approx(measured["eval_loss"].min(), rel=1e-4)


def test_patience_counts_measurements_without_a_new_minimum() -> None:
    def log(*losses: float) -> list[dict[str, Any]]:
        return [{"step": step} | measured for step, loss in enumerate(losses) for measured in ({}, {"x": loss})]

    assert stopping_step(log(3, 2, 1, 2, 2), "x", 2) == 4
    assert stopping_step(log(3, 2, 2, 1, 2), "x", 2) is None
    assert stopping_step(log(3, 3, 1), "x", 1) == 1
    assert stopping_step(log(3, float("nan"), 1), "x", 2) is None
    assert stopping_step([], "x", 1) is None
