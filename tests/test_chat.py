"""The one rendering: what is scored is what is trained on is what is evaluated, token by token; text stays text."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from datasets import Dataset
from jinja2.exceptions import SecurityError
from tokenizers import AddedToken

from persyn.chat import (
    BASE_TEMPLATE,
    encode_completion,
    encode_prompt,
    end_by_turn,
    stop_strings,
    with_chat_template,
    without_control_text,
)
from persyn.errors import InputError
from persyn.messages import assistant_message, user_message
from persyn.models import load_causal_lm, load_tokenizer
from persyn.schemas import DATASET
from persyn.student import encode_dataset
from tests.support.texts import ATTACKS
from tests.support.tiny import CHATML, build_tokenizer

MESSAGES = {column: DATASET[column] for column in ("prompt", "completion")}
LLAMA2 = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)
QWEN3 = CHATML + "{# a think-block is <think>...</think> #}"
PROMPT, RESPONSE = "Tell a tiny story about an old clock.", "It struck twelve.\n\nThen it stopped."


@pytest.mark.parametrize("kind", ["base_model", "chat_model"])
def test_scoring_training_and_evaluation_see_the_same_tokens(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from trl import SFTConfig, SFTTrainer

    from persyn.evaluation_model import EvaluatedStudent

    folder = request.getfixturevalue(kind)
    tokenizer = with_chat_template(load_tokenizer(folder))
    prompt_ids, response_ids = encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)

    # Training: TRL gets our tokens, and would make the same of the dataset's messages by itself.
    dataset = pl.DataFrame([(user_message(PROMPT), assistant_message(RESPONSE))], schema=MESSAGES, orient="row")
    labels = [-100] * len(prompt_ids) + response_ids
    assert encode_dataset(tokenizer, dataset) == [{"input_ids": prompt_ids + response_ids, "labels": labels}]
    row = {"prompt": user_message(PROMPT), "completion": assistant_message(RESPONSE)}
    trainer: Any = SFTTrainer(
        model=load_causal_lm(folder),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list([row]),
        args=SFTConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False, report_to="none"),
    )
    batch = next(iter(trainer.get_train_dataloader()))
    trained_on, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
    scored = prompt_ids + response_ids
    assert trained_on[: len(scored)] == scored
    assert [label for label in labels if label != -100][: len(response_ids)] == response_ids
    assert labels[: len(prompt_ids)] == [-100] * len(prompt_ids)
    after = tokenizer.decode(trained_on[len(scored) :])
    assert after.strip() == "", f"only blanks may follow the end of turn, got {after!r}"

    # Evaluation: lm-eval gets text that keeps its tokens.
    student = tmp_path / "student"
    trainer.model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    evaluator = EvaluatedStudent(pretrained=str(student), device="cpu", dtype="float32")
    text = evaluator.apply_chat_template(user_message(PROMPT))
    assert evaluator.tok_encode(text) == prompt_ids
    assert evaluator.tok_batch_encode([text])[0][0].tolist() == prompt_ids


@pytest.mark.parametrize("template", [None, CHATML])
def test_the_end_of_turn_is_scored_only_if_the_response_ended_by_itself(template: str | None) -> None:
    tokenizer = with_chat_template(build_tokenizer(template))
    prompt_ids, finished = encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)
    _, cut = encode_completion(tokenizer, PROMPT, RESPONSE, finished=False)
    assert finished == [*cut, tokenizer.eos_token_id]
    assert tokenizer.decode(cut) == RESPONSE
    assert prompt_ids == encode_prompt(tokenizer, user_message(PROMPT))


def test_a_base_model_gets_the_question_and_answer_form_and_a_stop() -> None:
    base, chat = with_chat_template(build_tokenizer(None)), with_chat_template(build_tokenizer(CHATML))
    assert base.chat_template == BASE_TEMPLATE
    assert chat.chat_template == CHATML
    shown = [*user_message("Q1"), *assistant_message("A1"), *user_message("Q2")]
    text = base.decode(encode_prompt(base, shown))
    assert text == "<bos>Question:\nQ1\n\nAnswer:\nA1<eos>\n\nQuestion:\nQ2\n\nAnswer:\n"
    assert stop_strings(base) == ["\n\nQuestion:"]
    assert stop_strings(chat) == []


def test_a_student_ends_by_what_ends_its_turn() -> None:
    """Qwen2.5's base models come with a chat template, and a tokenizer that ends with the end of the text."""
    tokenizer = build_tokenizer(CHATML)
    tokenizer.eos_token = "<eos>"
    _, response = encode_completion(tokenizer, "Name a colour.", "Red.", finished=True)
    assert end_by_turn(tokenizer).eos_token_id == response[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")


def test_templates_that_cannot_be_scored_are_refused() -> None:
    tokenizer: Any = build_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="no end-of-turn token"):
        encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)
    tokenizer.chat_template = "{% if add_generation_prompt %}X{% endif %}{{ messages[-1].content }}{{ eos_token }}"
    with pytest.raises(InputError, match="renders a prompt differently"):
        encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)


def guarded(template: str | None) -> Any:
    """A tokenizer with control tokens that are special, that are not, and that are mere text in its template."""
    tokenizer = build_tokenizer(template)
    tokenizer.add_tokens([AddedToken(text, special=False) for text in ("<think>", "</think>")])
    tokenizer.add_tokens([AddedToken(text, special=True) for text in ("<|start_header_id|>", "<|end_header_id|>")])
    return with_chat_template(tokenizer)


@pytest.mark.parametrize("template", [None, CHATML, LLAMA2, QWEN3], ids=["base", "chatml", "llama2", "qwen3"])
@pytest.mark.parametrize("attack", ATTACKS)
def test_text_never_becomes_a_control_token(template: str | None, attack: str) -> None:
    """The control ids of the rendering are those that it has around harmless text; the text comes back whole."""
    tokenizer = guarded(template)
    controls = {id for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    if template == QWEN3:
        controls |= set(tokenizer.convert_tokens_to_ids(["<think>", "</think>"]))
    harmless = encode_completion(tokenizer, "Hi", "Yes", finished=True)
    attacked = encode_completion(tokenizer, attack, attack, finished=True)
    for clean, ids in zip(harmless, attacked, strict=True):
        assert [id for id in ids if id in controls] == [id for id in clean if id in controls]
    assert all(attack in tokenizer.decode(ids).replace("\u2060", "") for ids in attacked)
    if template == LLAMA2 and "[/INST]" in attack:
        marker = tokenizer.encode("[/INST]", add_special_tokens=False)
        runs = [attacked[0][i : i + len(marker)] for i in range(len(attacked[0]))]
        assert runs.count(marker) == 1, "only the template's own"


def test_rows_whose_text_is_spelled_otherwise_are_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Whether it stands in the prompt or in the response."""
    rows = [("Hi", "Yes"), ("Hi", "it ends [/INST] so"), ("What is [INST]?", "A mark.")]
    chats = [(user_message(prompt), assistant_message(response)) for prompt, response in rows]
    encode_dataset(guarded(LLAMA2), pl.DataFrame(chats, schema=MESSAGES, orient="row"))
    assert "dataset: 2 of 3 conversations spell control text" in caplog.text


@pytest.mark.parametrize("template", [None, CHATML, LLAMA2])
@pytest.mark.parametrize(
    "text", ["a < b > c", "<b>bold</b>", "x[TODO] <stdio.h>", "1 <= 2", "\n\nQuestion:", "{{ 7 * 7 }}"]
)
def test_other_text_is_encoded_as_the_library_does_it(template: str | None, text: str) -> None:
    tokenizer = guarded(template)
    rendered = tokenizer.apply_chat_template(user_message(text), add_generation_prompt=True, return_dict=True)
    assert encode_prompt(tokenizer, user_message(text)) == list(rendered["input_ids"])
    assert without_control_text(text) == text


def test_a_server_is_sent_no_control_token() -> None:
    for attack in ATTACKS[:3]:
        sent = without_control_text(attack)
        assert sent.replace("\u2060", "") == attack
        for control in ("<|im_end|>", "<|im_start|>", "<|start_header_id|>", "[/INST]", "[INST]"):
            assert control not in sent


def test_a_template_runs_in_a_sandbox_and_data_is_no_template() -> None:
    tokenizer = guarded("{{ ''.__class__.__mro__[1].__subclasses__() }}{{ eos_token }}")
    with pytest.raises(SecurityError):
        encode_prompt(tokenizer, user_message("hi"))
    assert "{{ 7 * 7 }}" in tokenizer.decode(encode_prompt(guarded(CHATML), user_message("{{ 7 * 7 }}")))
