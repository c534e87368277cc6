from pathlib import Path

import pytest
import torch
from conftest import prompts_table, responses_table

from benchmarks.tiny import CHATML, build_model
from persyn import learnability
from persyn.chat import encode_completion, with_chat_template
from persyn.learnability import mean_logprobs, score_learnability
from persyn.models import Student, load_causal_lm, load_tokenizer
from persyn.schemas import LEARNABILITY, InputError, check_table

TEXTS = ["Say hello.", "Tell a story about a clock in the hall of a house.", "Q?", "Count to ten."]
RESPONSES = [
    "Hello there, friend.",
    "Tick.",
    "An answer of some length, with commas, and more words.",
    "1 2 3 4",
]


def naive(folder: str, prompt: str, response: str, finished: bool) -> float:
    """Eq. 1 as it is written: one sequence, log_softmax in fp32, a loop over the response tokens."""
    model, tokenizer = load_causal_lm(folder), with_chat_template(load_tokenizer(folder))
    prompt_ids, response_ids = encode_completion(tokenizer, prompt, response, finished)
    with torch.no_grad():
        logprobs = torch.log_softmax(model(torch.tensor([prompt_ids + response_ids])).logits[0].float(), dim=-1)
    steps = [logprobs[len(prompt_ids) + t - 1, token].item() for t, token in enumerate(response_ids)]
    return sum(steps) / len(steps)


@pytest.mark.parametrize("family", ["llama", "gemma3", "qwen2"])
@pytest.mark.parametrize("template", [None, CHATML])
def test_equals_the_naive_loop_in_any_batch_and_chunk(
    family: str, template: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = build_model(tmp_path / "m", family, template)
    prompts = prompts_table(TEXTS)
    finished = responses_table(prompts, "t", RESPONSES, "stop")
    student = Student(model=folder, license="x")
    expected = [naive(folder, prompt, response, True) for prompt, response in zip(TEXTS, RESPONSES, strict=True)]
    assert max(expected) - min(expected) > 0.1, "the rows must differ for this test to mean anything"
    for batch_tokens, chunk in ((1, 1024), (10_000, 1024), (150, 3)):
        monkeypatch.setattr(learnability, "LOGIT_CHUNK", chunk)
        table = score_learnability(prompts, finished, student, batch_tokens=batch_tokens)
        check_table(table, LEARNABILITY, "learnability")
        scores = dict(zip(table["prompt_id"], table["learnability"], strict=True))
        for identity, value in zip(prompts["prompt_id"], expected, strict=True):
            assert scores[identity] == pytest.approx(value, abs=1e-4)


def test_a_cut_response_is_scored_without_the_end_of_turn(base_model: str) -> None:
    prompts = prompts_table(TEXTS[:1])
    student = Student(model=base_model, license="x")
    stop, length = (score_learnability(prompts, responses_table(prompts, "t", RESPONSES[:1], f), student) for f in
                    ("stop", "length"))  # fmt: skip
    assert stop["num_tokens"].item() == length["num_tokens"].item() + 1
    assert length["learnability"].item() == pytest.approx(naive(base_model, TEXTS[0], RESPONSES[0], False), abs=1e-4)


def test_too_long_is_scored_on_its_first_tokens_and_flagged(base_model: str) -> None:
    prompts = prompts_table(TEXTS[:1])
    tokenizer = with_chat_template(load_tokenizer(base_model))
    prompt_ids, response_ids = encode_completion(tokenizer, TEXTS[0], RESPONSES[0], True)
    student = Student(model=base_model, license="x", max_length=len(prompt_ids) + 3)
    row = score_learnability(prompts, responses_table(prompts, "t", RESPONSES[:1]), student).row(0, named=True)
    assert row["truncated"]
    assert row["num_tokens"] == 3
    [expected] = mean_logprobs(load_causal_lm(base_model), [(prompt_ids, response_ids[:3])])
    assert row["learnability"] == pytest.approx(expected, abs=1e-6)


def test_what_cannot_be_scored_is_named(base_model: str) -> None:
    prompts = prompts_table(TEXTS[:1])
    with pytest.raises(InputError, match=r"of t: the prompt alone has \d+ tokens .* student.max_length is 4"):
        score_learnability(
            prompts, responses_table(prompts, "t", ["x"]), Student(model=base_model, license="x", max_length=4)
        )


def test_an_empty_response_is_its_end_of_turn_however_it_ended(base_model: str) -> None:
    prompts, student = prompts_table(TEXTS[:1]), Student(model=base_model, license="x")
    for finish in ("stop", "length"):
        row = score_learnability(prompts, responses_table(prompts, "t", [""], finish), student).row(0, named=True)
        assert row["num_tokens"] == 1
        assert row["learnability"] == pytest.approx(naive(base_model, TEXTS[0], "", True), abs=1e-4)
