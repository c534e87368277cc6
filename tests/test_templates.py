"""Every chat template that TRL ships for text: which tokens are the response, and what stands before it."""

from pathlib import Path
from typing import Any

import pytest
from trl.chat_template_utils import get_training_chat_template

from persyn.chat import encode_parts, encode_prompt, with_chat_template
from persyn.errors import InputError
from tests.support.templates import CASES, FOR_IMAGES, MODES, OURS, SHIPPED, check, page, templates, tokenizer_for

BLANKS = ("base", "chatml", "llama2", "mistral", "zephyr", "phi3", "gemma", "gemma3", "always_thinks", "llama3")


def test_the_response_is_exact_under_every_template_and_the_page_says_so() -> None:
    """Only Gemma's first template refuses anything: it has no system message."""
    text = page()
    refused = set()
    for name in templates():
        for title, case in CASES.items():
            for thinking in MODES:
                said = check(name, case, thinking)
                if said != "exact":
                    assert "System role not supported" in said, f"{name}, {title}: {said}"
                    refused.add((name, title))
    assert refused == {("gemma", "system"), ("gemma_training", "system")}
    assert f"exact / refused / wrong = {len(templates()) * len(CASES) * len(MODES) - 4:,} / 4 / 0" in text
    assert Path("docs/templates.md").read_text() == text, "run `python -m tests.support.templates`"


@pytest.mark.parametrize("kind", ["llama", "gemma", "metaspace"])
def test_the_response_is_exact_where_blanks_are_letters(kind: str) -> None:
    for name in BLANKS:
        for title, case in CASES.items():
            said = check(name, case, "none", kind)
            assert said == "exact" or (name, title) == ("gemma", "system"), f"{name}, {title}: {said}"


@pytest.mark.parametrize("name", sorted(name for name in templates() if f"{name}_training" in templates()))
def test_the_response_is_what_trl_trains_on(name: str) -> None:
    """TRL's own masks, by its patched templates, hold the answer and what ends it; before it at most an empty thought,
    after it what a template adds to the end of a text.
    """
    tokenizer, case = tokenizer_for(name), CASES["plain"]
    prompt, _, answer = encode_parts(tokenizer, case.messages, case.answer, finished=True)
    messages = [*case.messages, {"role": "assistant", "content": case.answer}]
    masked = _masked(tokenizer, name, messages)
    where = [at for at in range(len(masked)) if masked[at : at + len(answer)] == answer]
    assert where, f"{tokenizer.decode(masked)!r} has no {tokenizer.decode(answer)!r}"
    before, after = tokenizer.decode(masked[: where[0]]), tokenizer.decode(masked[where[0] + len(answer) :])
    assert before.strip() in tokenizer.decode(prompt)
    assert case.answer not in before + after


def _masked(tokenizer: Any, name: str, messages: list[dict[str, str]]) -> list[int]:
    """The tokens that TRL would train on."""
    original = tokenizer_for(name)
    original.chat_template = templates()[name]
    patched = get_training_chat_template(original) or templates()[name]
    tokenizer = with_chat_template(_with(tokenizer_for(name), patched))
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, enable_thinking=False
    )
    return [id for id, kept in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if kept]


def _with(tokenizer: Any, template: str) -> Any:
    tokenizer.chat_template = template
    return tokenizer


def test_templates_for_images_are_refused_in_one_line() -> None:
    for name in FOR_IMAGES:
        tokenizer = _with(tokenizer_for("chatml"), (SHIPPED / f"{name}.jinja").read_text())
        with pytest.raises(InputError, match=r"leaves out the text|refuses a conversation"):
            encode_parts(tokenizer, "Hi", "Yes", finished=True)
        with pytest.raises(InputError, match="leaves out the text"):  # of a teacher's prompt too
            encode_prompt(tokenizer, "Hi")
    assert set(OURS) < set(templates())
