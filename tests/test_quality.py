import json
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForSequenceClassification
from trl import RewardConfig, RewardTrainer

import persyn.quality.reward_model
from persyn.chat import with_chat_template
from persyn.errors import InputError
from persyn.messages import as_messages, assistant_message, user_message
from persyn.models import load_tokenizer, model_identity
from persyn.quality import QualitySettings, score_quality
from persyn.quality.reward_model import Reading, RewardModelSettings, _scores
from persyn.schemas import QUALITY, check_table
from persyn.store import Store, response_key, slug
from persyn.verifiers import is_right_answer, share_of_checks
from tests.support.tables import prompts_table, responses_table
from tests.support.tiny import build_tokenizer


def checks(*names: tuple[str, dict[str, object]]) -> str:
    return json.dumps([{"instruction_id": name, "kwargs": kwargs} for name, kwargs in names])


SHORT = ("length_constraints:number_words", {"relation": "less than", "num_words": 4})
NO_COMMA: tuple[str, dict[str, object]] = ("punctuation:no_comma", {})


@pytest.mark.parametrize(("response", "share"), [("two words", 1.0), ("a, b", 0.5), ("a, b, c, d, e", 0.0), ("", 0.0)])
def test_checkers_give_the_share_that_holds(response: str, share: float) -> None:
    assert share_of_checks("p", response, checks(SHORT, NO_COMMA)) == share


def test_sentences_are_counted_without_a_download(tmp_path: Path) -> None:
    reference = checks(("length_constraints:number_sentences", {"relation": "less than", "num_sentences": 3}))
    assert share_of_checks("p", "Dr. Smith came. He left.", reference) == 1.0
    assert share_of_checks("p", "He came. He sat. He left.", reference) == 0.0


@pytest.mark.parametrize(
    ("response", "reference", "right"),
    [
        ("The answer is \\boxed{42}.", "42", 1.0),
        ("so 6 * 7 = 42", "42", 1.0),
        ("\\boxed{\\frac{1}{2}}", "0.5", 1.0),
        ("It is 41.", "42", 0.0),
        ("no idea", "42", 0.0),
        ("", "42", 0.0),
    ],
)
def test_math_verify(response: str, reference: str, right: float) -> None:
    assert is_right_answer("p", response, reference) == right


def test_each_domain_has_its_method(tmp_path: Path) -> None:
    prompts = prompts_table(["sum"], "math", ["3"]).vstack(prompts_table(["say"], "instruction", [checks(NO_COMMA)]))
    responses = responses_table(prompts, "t", ["3", "a, b"])
    settings = QualitySettings(methods={"math": "math_verify", "instruction": "checkers"})
    table = score_quality(prompts, responses, tmp_path, settings)
    check_table(table, QUALITY, "quality")
    assert dict(table.select("prompt_id", "quality").rows()) == dict(zip(prompts["prompt_id"], [1.0, 0.0], strict=True))


@pytest.mark.parametrize(
    ("domain", "reference", "methods", "message"),
    [
        ("math", None, {"math": "math_verify"}, "has no reference, which math_verify needs"),
        ("math", "3", {"math": "verify"}, r"^quality\.methods\.math is 'verify'; .*checkers, math_verify"),
        ("math", "3", {}, r"^quality\.methods\.math is missing; it must be one of checkers"),
        ("math", "3", {"math": "reward_model"}, r"^quality\.reward_model is null, .*model: "),
        ("instruction", "no json", {"instruction": "checkers"}, "is not a json list"),
        ("instruction", checks(("x:y", {})), {"instruction": "checkers"}, r"unknown instruction \['x:y'\]"),
    ],
)
def test_bad_input_is_named(
    domain: str, reference: str | None, methods: dict[str, str], message: str, tmp_path: Path
) -> None:
    prompts = prompts_table(["p"], domain, [reference])

    def score() -> None:
        settings = QualitySettings.parse({"methods": methods}, "quality")
        score_quality(prompts, responses_table(prompts, "t", ["x"]), tmp_path, settings)

    with pytest.raises(InputError, match=message):
        score()


def by_reward_model(folder: Path) -> QualitySettings:
    return QualitySettings(methods={"instruction": "reward_model"}, reward_model=RewardModelSettings(model=str(folder)))


def reading(folder: Path, **knobs: Any) -> QualitySettings:
    model = RewardModelSettings(model=str(folder), **knobs)
    return QualitySettings(methods={"instruction": "reward_model"}, reward_model=model)


def build_reward_model(folder: Path) -> Any:
    tokenizer = build_tokenizer(None)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    sizes |= {"num_attention_heads": 2, "num_labels": 1, "pad_token_id": 0, "vocab_size": len(tokenizer)}
    model = LlamaForSequenceClassification(LlamaConfig(**sizes)).eval()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


def test_a_reward_model_scores_the_rendered_conversation_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_reward_model(tmp_path / "model")
    prompts = prompts_table(["one", "a longer second prompt"])
    responses = responses_table(prompts, "t", ["first", "second"])
    settings = by_reward_model(tmp_path / "model")
    table = score_quality(prompts, responses, tmp_path, settings)
    ids = build_tokenizer(None)("<bos>Question:\none\n\nAnswer:\nfirst<eos>", return_tensors="pt")
    with torch.no_grad():
        expected = model(ids["input_ids"]).logits.item()
    assert table.filter(prompt_id=prompts["prompt_id"][0])["quality"].item() == pytest.approx(expected, abs=1e-6)
    monkeypatch.setattr(
        persyn.quality.reward_model, "_reward_model", lambda *_: pytest.fail("a stored score is not made again")
    )
    assert score_quality(prompts, responses, tmp_path, settings).equals(table)


def test_a_long_response_is_scored_by_both_of_its_ends_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, tokenizer = build_reward_model(tmp_path / "model"), build_tokenizer(None)
    prompts = prompts_table(["one", "two"])
    responses = responses_table(prompts, "t", ["short", "abcdefghij " * 20 + "the end"])
    counts: dict[str, Any] = {}
    settings = reading(tmp_path / "model", max_length=60)
    for _ in range(2):  # the second time from the store
        caplog.clear()
        counts.clear()
        table = score_quality(prompts, responses, tmp_path, settings, counts=counts)
        assert counts == {"reward_model": {"responses": 2, "cut": 1}}
        assert "1 of 2 responses (50.0%) are longer than quality.reward_model.max_length 60" in caplog.text
    before, text, after = "<bos>Question:\ntwo\n\nAnswer:\n", responses["response"][1], "<eos>"
    ids = tokenizer(before + text + after)["input_ids"]
    start, end = len(tokenizer(before)["input_ids"]), len(ids) - len(tokenizer(after)["input_ids"])
    kept = 60 - start - (len(ids) - end)
    read = torch.tensor([ids[: start + (kept + 1) // 2] + ids[end - kept // 2 :]])
    assert read.shape[1] == 60 < len(ids)
    with torch.no_grad():
        assert table.filter(prompt_id=prompts["prompt_id"][1])["quality"].item() == pytest.approx(
            model(read).logits.item(), abs=1e-6
        )
    with pytest.raises(InputError, match=r"1 of 2 responses \(50\.0%\) are longer .*; raise it, or set .*cut_middle"):
        score_quality(prompts, responses, tmp_path, reading(tmp_path / "model", max_length=60, too_long="fail"))
    with pytest.raises(InputError, match=r"a prompt has \d+ tokens .*max_length is 5, which leaves no room"):
        score_quality(prompts, responses, tmp_path, reading(tmp_path / "model", max_length=5))


def test_scores_of_earlier_versions_serve_only_responses_that_were_not_cut(tmp_path: Path) -> None:
    build_reward_model(tmp_path / "model")
    prompts = prompts_table(["one", "two"])
    responses = responses_table(prompts, "t", ["short", "abcdefghij " * 20])
    name = model_identity(str(tmp_path / "model"), None)
    asked = [
        [*as_messages(prompt), *assistant_message(response)]
        for prompt, response in zip(prompts["prompt"].to_list(), responses["response"], strict=True)
    ]
    keys = [response_key(model=name, messages=messages, max_length=60) for messages in asked]
    Store(tmp_path / slug(name)).put({key: {"quality": 42.0} for key in keys})
    table = score_quality(prompts, responses, tmp_path, reading(tmp_path / "model", max_length=60))
    scores = dict(table.select("prompt_id", "quality").rows())
    assert scores[prompts["prompt_id"][0]] == 42.0
    assert scores[prompts["prompt_id"][1]] != 42.0


def test_a_model_of_the_reward_trainer_scores_alike_alone_and_in_company(base_model: str, tmp_path: Path) -> None:
    rows = [
        {"prompt": user_message(f"Say {word}."), "chosen": assistant_message(word), "rejected": assistant_message("no")}
        for word in ("one", "two", "three", "four")
    ]
    trainer = RewardTrainer(
        model=AutoModelForSequenceClassification.from_pretrained(base_model, num_labels=1, dtype=torch.float32),
        processing_class=with_chat_template(load_tokenizer(base_model)),
        train_dataset=Dataset.from_list(rows),
        args=RewardConfig(output_dir=str(tmp_path / "run"), max_steps=2, use_cpu=True, bf16=False, report_to="none"),
    )
    trainer.train()
    trainer.save_model(str(tmp_path / "model"))
    prompts = prompts_table(["Say one.", "Say something long enough to differ from the others, please.", "Go."])
    responses = responses_table(prompts, "t", ["one", "something", "no"])
    settings = by_reward_model(tmp_path / "model")
    together = score_quality(prompts, responses, tmp_path / "a", settings)
    alone = [score_quality(prompts, responses[n : n + 1], tmp_path / f"b{n}", settings) for n in (2, 0, 1)]
    assert pl.concat(alone).sort("prompt_id").equals(together)
    assert together["quality"].n_unique() == 3


def test_conversations_in_one_pass_score_as_they_do_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    model = build_reward_model(tmp_path / "model")
    for weight in model.parameters():
        weight.data *= 10  # so that a token tells on what follows it
    sizes = torch.randint(1, 40, (12,), generator=torch.Generator().manual_seed(0)).tolist()
    readings = [Reading(str(n), torch.randint(5, 300, (size,)).tolist(), size) for n, size in enumerate(sizes)]
    alone = {reading.key: score for part in _scores(model, readings) for reading, score in part}
    for batch_tokens in (30, 100, 10_000):
        passes = list(_scores(model, readings, batch_tokens))
        assert len(passes) < len(readings)
        assert {of.key: score for part in passes for of, score in part} == pytest.approx(alone, abs=1e-5)
    model.base_model.forward = partial(_unmasked, model.base_model.forward)
    assert {of.key: score for part in _scores(model, readings, 100) for of, score in part} == pytest.approx(
        alone, abs=1e-4
    )
    assert "apart in company: they are read alone" in caplog.text


def _unmasked(forward: Any, input_ids: Any = None, use_cache: Any = None, **ignored: Any) -> Any:
    return forward(input_ids, use_cache=use_cache)


def test_an_error_and_a_score_that_is_no_number_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    build_reward_model(tmp_path / "model")
    prompts = prompts_table(["one", "two", "three"])
    failed = responses_table(prompts[:1], "t", [""], "error")
    responses = failed.vstack(responses_table(prompts[1:], "t", ["second", "third"]))
    scores = iter([float("nan"), 0.5])
    monkeypatch.setattr(persyn.quality.reward_model, "_read_alone", lambda *_: next(scores))
    table = score_quality(prompts, responses, tmp_path, by_reward_model(tmp_path / "model"))
    assert table["quality"].to_list() == [0.5]
    assert "1 scores are not finite and left out" in caplog.text
