from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch

import persyn.responses
from persyn.errors import InputError
from persyn.generation import Example, Generation, Sampling, Teacher
from persyn.generation.row_sampler import row_sampler
from persyn.generation.transformers import TransformersBackend, TransformersSpeed
from persyn.responses import generate_responses
from persyn.schemas import RESPONSES, check_table
from persyn.store import shelves, verify
from tests.support.tables import prompts_table
from tests.support.tiny import build_model

SPEED = TransformersSpeed()
PROMPTS = [f"Say {'a long word ' * (i % 4)}number {i}." for i in range(9)]


def teacher(model: str, **changes: Any) -> Teacher:
    fields: Mapping[str, Any] = {
        "model": model,
        "license": "Apache-2.0",
        "backend": "transformers",
        "sampling": Sampling(max_tokens=12),
    }
    return Teacher(**{**fields, **changes})


def stored(folder: Path) -> int:
    """How many rows a store holds."""
    return sum(verify(shelf)[0].rows for shelf in shelves(folder))


def texts(table: pl.DataFrame) -> list[str]:
    return table.sort("prompt_id")["response"].to_list()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["base_model", "chat_model"])
def test_an_answer_does_not_depend_on_its_batch(
    kind: str, temperature: float, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    model = request.getfixturevalue(kind)
    who = teacher(model, sampling=Sampling(max_tokens=12, temperature=temperature, seed=1))
    one = generate_responses(prompts_table(PROMPTS), "t", who, tmp_path / "1", TransformersSpeed(batch_size=1))
    many = generate_responses(prompts_table(PROMPTS[::-1]), "t", who, tmp_path / "2", TransformersSpeed(batch_size=4))
    assert texts(one) == texts(many)
    check_table(one, RESPONSES, "responses")
    assert set(one["finish_reason"]) <= {"stop", "length"}
    assert one.filter(pl.col("finish_reason") == "length")["num_response_tokens"].unique().to_list() in ([12], [])


def test_weights_of_another_type_answer_too(base_model: str, tmp_path: Path) -> None:
    knobs = TransformersSpeed(batch_size=4, dtype="bfloat16")
    assert TransformersBackend(teacher(base_model), knobs).model.dtype == torch.bfloat16
    assert generate_responses(prompts_table(PROMPTS), "t", teacher(base_model), tmp_path, knobs).height == len(PROMPTS)
    with pytest.raises(InputError, match=r"^speed.transformers.dtype is 'int8'; it must be one of bfloat16"):
        TransformersSpeed.parse({"dtype": "int8"}, "speed.transformers")


def test_another_seed_draws_other_answers(base_model: str, tmp_path: Path) -> None:
    tables = [
        generate_responses(prompts_table(PROMPTS), "t", teacher(base_model, sampling=sampling), tmp_path, SPEED)
        for sampling in (Sampling(max_tokens=12, temperature=1.0, seed=seed) for seed in (1, 2))
    ]
    assert texts(tables[0]) != texts(tables[1])


def test_the_models_own_penalty_does_not_count(base_model: str, tmp_path: Path) -> None:
    """As with vLLM: params.yaml says how is drawn. (A penalty would change a greedy answer that repeats itself.)"""
    who = teacher(base_model)
    plain = TransformersBackend(who, SPEED)
    penalised = TransformersBackend(who, SPEED)
    penalised.model.generation_config.repetition_penalty = 50.0
    asked = [who.messages(prompt) for prompt in PROMPTS], PROMPTS, Sampling(max_tokens=40)
    answers = [{k: v for batch in backend.generate(*asked) for k, v in batch.items()} for backend in (plain, penalised)]
    assert answers[0] == answers[1]
    assert any(len(set(each.response)) < len(each.response) for each in answers[0].values())


def test_what_the_store_holds_is_never_asked_again(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    class Counting(TransformersBackend):
        def generate(self, conversations: Any, keys: Any, sampling: Sampling) -> Iterator[dict[int, Generation]]:
            asked.append(len(keys))
            return super().generate(conversations, keys, sampling)

    monkeypatch.setattr(persyn.responses, "load_backend", lambda teacher, speed: Counting(teacher, speed))
    first = generate_responses(prompts_table(PROMPTS[:4]), "t", teacher(base_model), tmp_path, SPEED)
    again = generate_responses(prompts_table(PROMPTS), "renamed", teacher(base_model), tmp_path, SPEED)
    generate_responses(prompts_table(PROMPTS), "t", teacher(base_model), tmp_path, TransformersSpeed(batch_size=1))
    generate_responses(prompts_table(PROMPTS[:1]), "t", teacher(base_model, system="Be brief."), tmp_path, SPEED)
    assert asked == [4, 5, 1], "only new prompts, and a changed system prompt, are asked"
    assert set(texts(first)) <= set(texts(again))


def test_rows_finished_before_a_crash_are_kept(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dying(TransformersBackend):
        def generate(self, conversations: Any, keys: Any, sampling: Sampling) -> Iterator[dict[int, Generation]]:
            yield next(super().generate(conversations, keys, sampling))
            raise RuntimeError("killed")

    monkeypatch.setattr(persyn.responses, "load_backend", lambda teacher, speed: Dying(teacher, speed))
    for expected in (3, 6):
        with pytest.raises(RuntimeError, match="killed"):
            generate_responses(
                prompts_table(PROMPTS), "t", teacher(base_model), tmp_path, TransformersSpeed(batch_size=3)
            )
        assert stored(tmp_path) == expected


def test_the_row_sampler_draws_from_the_softmax() -> None:
    """10,000 draws of one token at temperature 2 against the exact probabilities, within 4 standard errors."""
    logits = torch.tensor([2.0, 0.0, -1.0, 1.0])
    keys = [str(number) for number in range(10_000)]
    processed = logits.expand(len(keys), -1)
    for processor in row_sampler(Sampling(max_tokens=1, temperature=2.0), keys):
        processed = processor(None, processed)
    counts = Counter(processed.argmax(dim=1).tolist())
    for token, probability in enumerate((logits / 2.0).softmax(dim=0).tolist()):
        error = (probability * (1 - probability) / len(keys)) ** 0.5
        assert abs(counts[token] / len(keys) - probability) < 4 * error
    assert not row_sampler(Sampling(max_tokens=1), keys), "temperature 0 is plain greedy"


def test_a_larger_max_tokens_asks_only_the_cut_ones_again(base_model: str, tmp_path: Path) -> None:
    prompts = prompts_table([f"Say number {number}." for number in range(40)])  # enough that both kinds are among them

    def ask(max_tokens: int) -> pl.DataFrame:
        who = teacher(base_model, sampling=Sampling(max_tokens=max_tokens, temperature=5.0))
        return generate_responses(prompts, "t", who, tmp_path, SPEED)

    short = ask(100)
    cut = (short["finish_reason"] == "length").sum()
    assert 0 < cut < 40, "the case needs both kinds"
    long = ask(150)
    assert stored(tmp_path) == 40 + cut
    assert all(b.startswith(a) for a, b in zip(texts(short), texts(long), strict=True)), "the same draw goes on"
    assert ask(100).equals(short), "what was asked before is served as it was, whatever came after"
    assert stored(tmp_path) == 40 + cut


def test_an_engine_that_counts_or_draws_otherwise_than_before_is_served_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole answer longer than max_tokens is stored; the engine then gives another one, or counts a token more."""
    answers = iter(
        [Generation("long", "stop", 5, 50), Generation("short", "stop", 5, 8), Generation("x", "stop", 5, 13)]
    )

    class Fickle:
        def generate(self, conversations: Any, keys: Any, sampling: Sampling) -> Iterator[dict[int, Generation]]:
            yield {0: next(answers)}

        def close(self) -> None:
            pass

    monkeypatch.setattr(persyn.responses, "load_backend", lambda teacher, speed: Fickle())

    def ask(prompt: str, max_tokens: int) -> list[str]:
        who = teacher("m", sampling=Sampling(max_tokens=max_tokens))
        return texts(generate_responses(prompts_table([prompt]), "t", who, tmp_path, SPEED))

    assert ask("one", 64) == ["long"]
    assert ask("one", 12) == ["short"]
    assert ask("two", 12) == ["x"]
    assert [ask("one", 64), ask("one", 12), ask("two", 12)] == [["long"], ["short"], ["x"]], "each is paid for once"


def test_new_weights_in_the_same_folder_are_another_teacher(tmp_path: Path) -> None:
    model = build_model(tmp_path / "model")
    generate_responses(prompts_table(PROMPTS), "t", teacher(model), tmp_path / "store", SPEED)
    build_model(tmp_path / "model", family="qwen2")
    generate_responses(prompts_table(PROMPTS), "t", teacher(model), tmp_path / "store", SPEED)
    assert stored(tmp_path / "store") == 2 * len(PROMPTS)


def test_examples_and_system_prompt_come_before_the_prompt() -> None:
    who = teacher("m", system="Be kind.", examples=[Example(prompt="Q", response="A")])
    assert [(m["role"], m["content"]) for m in who.messages("P")] == [
        ("system", "Be kind."),
        ("user", "Q"),
        ("assistant", "A"),
        ("user", "P"),
    ]


def test_bad_teachers_and_too_long_prompts_are_refused_before_any_call(base_model: str, tmp_path: Path) -> None:
    prompts = prompts_table(["word " * 2000, "short"])
    with pytest.raises(InputError, match=r"1 prompts do not fit .* exceeds its context of 1024"):
        generate_responses(prompts, "t", teacher(base_model), tmp_path, SPEED)
    entry = {"model": base_model, "license": "x", "sampling": {"max_tokens": 1}, "backend": "vlm"}
    with pytest.raises(InputError, match=r"^teachers.t.backend is 'vlm'; it must be one of transformers, vllm, openai"):
        Teacher.parse(entry, "teachers.t")
    with pytest.raises(InputError, match="neither an existing folder, nor a hub id"):
        generate_responses(prompts, "t", teacher("no/such/model"), tmp_path, SPEED)
    assert not stored(tmp_path)
