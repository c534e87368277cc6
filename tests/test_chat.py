"""The one rendering: what is scored is what is trained on is what is evaluated, token by token."""

from pathlib import Path
from typing import Any

import pytest
from conftest import CHATML, build_tokenizer
from datasets import Dataset

from persyn.chat import (
    BASE_TEMPLATE,
    assistant_message,
    encode_completion,
    encode_prompt,
    stop_strings,
    user_message,
    with_chat_template,
)
from persyn.models import load_causal_lm, load_tokenizer
from persyn.schemas import InputError

PROMPT, RESPONSE = "Tell a tiny story about an old clock.", "It struck twelve.\n\nThen it stopped."


@pytest.mark.parametrize("kind", ["base_model", "chat_model"])
def test_scoring_training_and_evaluation_see_the_same_tokens(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    from lm_eval.models.huggingface import HFLM
    from trl import SFTConfig, SFTTrainer

    folder = request.getfixturevalue(kind)
    tokenizer = with_chat_template(load_tokenizer(folder))
    prompt_ids, response_ids = encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)

    # Training: TRL tokenises the dataset's messages itself.
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

    # Evaluation: lm-eval renders text and tokenises that.
    student = tmp_path / "student"
    trainer.model.save_pretrained(student)
    tokenizer.save_pretrained(student)
    evaluator = HFLM(pretrained=str(student), device="cpu", dtype="float32")
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


def test_templates_that_cannot_be_scored_are_refused() -> None:
    tokenizer: Any = build_tokenizer("{% for m in messages %}{{ m.content }}{% endfor %}")
    with pytest.raises(InputError, match="no end-of-turn token"):
        encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)
    tokenizer.chat_template = "{% if add_generation_prompt %}X{% endif %}{{ messages[-1].content }}{{ eos_token }}"
    with pytest.raises(InputError, match="renders a prompt differently"):
        encode_completion(tokenizer, PROMPT, RESPONSE, finished=True)
