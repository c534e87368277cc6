"""A student of teachers that think: what it is scored on, what it is trained on, and what it then answers."""

import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

from persyn.chat import encode_parts, student_tokenizer, with_chat_template
from persyn.errors import InputError
from persyn.evaluation import EvaluationSettings, EvaluationSpeed, evaluate_student
from persyn.learnability import LearnabilitySettings, score_learnability
from persyn.learnability.scoring import score_group
from persyn.models import Student, load_causal_lm, load_tokenizer
from persyn.settings import Thinking
from persyn.student import SftSettings, encode_dataset, train_student
from tests.support.tables import prompts_table, responses_table
from tests.support.templates import CASES, templates, tokenizer_for
from tests.support.tiny import random_student

TASK = """
task: colours
dataset_path: json
dataset_name: null
dataset_kwargs: {data_files: {test: FILE}}
test_split: test
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{answer}}"
generation_kwargs: {until: [], do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ANSWER, THOUGHT = "Red, as always.", "Which one? Red."


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A student whose template writes an empty thought before an answer, and nothing for a prompt."""
    folder = tmp_path_factory.mktemp("models") / "qwen3"
    tokenizer = tokenizer_for("qwen3")
    random_student(folder, tokenizer)
    return str(folder)


def dataset(reasoning: list[str | None]) -> pl.DataFrame:
    """Rows that all give the same answer."""
    prompts = [[{"role": "user", "content": f"Name colour {number}."}] for number in range(len(reasoning))]
    completions = [[{"role": "assistant", "content": ANSWER}]] * len(reasoning)
    return pl.DataFrame({"prompt": prompts, "completion": completions, "reasoning": reasoning})


def naive(model: Any, prompt: list[int], response: list[int]) -> float:
    """Eq. 1 as it is written."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0].float()
    return torch.log_softmax(logits, dim=-1)[range(len(prompt) - 1, len(prompt + response) - 1), response].mean().item()


def test_learnability_equals_the_naive_loop_under_every_template(tmp_path: Path) -> None:
    """In groups that share a prompt, so the tree mask is in it."""
    tokenizer = tokenizer_for("chatml")
    random_student(tmp_path, tokenizer, vocabulary=512)
    model = load_causal_lm(str(tmp_path))
    for name in (name for name in templates() if not name.endswith("_training")):
        tokenizer = student_tokenizer(tokenizer_for(name))
        cases = [CASES[title] for title in ("plain", "blanks", "html", "think-block", "look-alikes")]
        parts = [encode_parts(tokenizer, "A colour?", case.answer, True, case.thought) for case in cases]
        prompt, responses = parts[0][0], [answer for _, _, answer in parts]
        scores = score_group(model, prompt, responses, LearnabilitySettings(), batch_tokens=10_000)
        expected = [naive(model, prompt, response) for response in responses]
        assert scores == pytest.approx(expected, abs=1e-4), name


@pytest.mark.parametrize("thinking", ["none", "keep"])
@pytest.mark.parametrize("of", [None, "answer", "thought", "both"])
def test_the_part_that_is_scored(qwen3: str, tmp_path: Path, thinking: Thinking, of: Any) -> None:
    prompts = prompts_table(["A colour?", "Another?"])
    responses = responses_table(prompts, "t", [ANSWER, ANSWER]).with_columns(reasoning=pl.Series([THOUGHT, None]))
    student, method = Student(model=qwen3, license="x", thinking=thinking), LearnabilitySettings(of=of)
    table = score_learnability(prompts, responses, student, method, tmp_path)
    part = of or ("both" if thinking == "keep" else "answer")
    assert table.height == (1 if part == "thought" else 2), "a row without a thought has no score of one"
    mode: Thinking = thinking if part == "answer" else "keep"
    context, thought, answer = encode_parts(
        with_chat_template(load_tokenizer(qwen3)), "A colour?", ANSWER, True, THOUGHT, mode
    )
    scored = {"answer": (context + thought, answer), "thought": (context, thought), "both": (context, thought + answer)}
    first = table.filter(prompt_id=prompts["prompt_id"][0])
    assert first["learnability"].item() == pytest.approx(naive(load_causal_lm(qwen3), *scored[part]), abs=1e-4)
    assert first["num_tokens"].item() == len(scored[part][1])


def test_what_the_student_learns(qwen3: str, caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = student_tokenizer(load_tokenizer(qwen3))
    [row, plain] = encode_dataset(tokenizer, dataset([THOUGHT, None]))
    learnt = [token for token in row["labels"] if token != -100]
    assert tokenizer.decode(learnt) == f"{ANSWER}<|im_end|>"
    assert tokenizer.decode(row["input_ids"]).endswith(f"<think>\n\n</think>\n\n{ANSWER}<|im_end|>")
    assert [token for token in plain["labels"] if token != -100] == learnt

    keeping = student_tokenizer(load_tokenizer(qwen3), "keep")
    with caplog.at_level(logging.WARNING):
        [row, plain] = encode_dataset(keeping, dataset([THOUGHT, None]), "keep")
    assert "only 1 of 2 rows have a thought" in caplog.text
    learnt = [token for token in row["labels"] if token != -100]
    assert keeping.decode(learnt) == f"<think>\n{THOUGHT}\n</think>\n\n{ANSWER}<|im_end|>"

    broken = dataset([None]).with_columns(completion=pl.concat_list("prompt", "completion"))
    with pytest.raises(InputError, match="has the turns user, assistant"):
        encode_dataset(tokenizer, broken)


@pytest.mark.parametrize("thinking", ["none", "keep"])
def test_a_trained_student_answers_lm_eval_in_the_form_it_learnt(
    qwen3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, thinking: Thinking
) -> None:
    """Trained until it knows its answer by heart; lm-eval then asks it."""
    monkeypatch.setenv("PERSYN_CACHE", str(tmp_path / "cache"))
    rows = dataset([THOUGHT] * 8).with_columns(prompt_id=pl.Series(list("abcdefgh")))
    settings = SftSettings(learning_rate=2e-2, epochs=40, batch_size=8, warmup=0.0)
    student = Student(model=qwen3, license="x", max_length=256, thinking=thinking)
    train_student(rows, student, tmp_path / "student", settings)
    items = tmp_path / "items.jsonl"
    items.write_text("".join(f'{{"prompt": "Name colour {number}.", "answer": "{ANSWER}"}}\n' for number in (1, 2)))
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "colours.yaml").write_text(TASK.replace("FILE", str(items)))
    evaluation = EvaluationSettings(tasks=["colours"], max_tokens=40)
    scores, samples = evaluate_student(tmp_path / "student", tasks, evaluation, speed=EvaluationSpeed(batch_size=2))
    for response in samples["response"].unique():
        assert ANSWER in response, response
        assert ("think>" in response or THOUGHT in response) == (thinking == "keep"), response
    if thinking == "none":
        assert scores["colours"]["exact_match"]["value"] == 1.0
