"""The micro-world: right answers, texts that verify, disjoint problems, the same text for a seed, models that load."""

from pathlib import Path
from random import Random

import pytest

from persyn.generation import Sampling, Teacher
from persyn.generation.transformers import TransformersSpeed
from persyn.models import load_causal_lm, load_model
from persyn.project.params import read_params
from persyn.prompts import build_prompts
from persyn.responses import generate_responses
from persyn.verifiers import is_right_answer
from science.problems import KINDS, STYLES, draw_problems, solve, write
from science.training import build_tokenizer
from science.world import TEACHERS, all_problems, build_world, mixed_texts, write_raw
from tests.support.tables import prompts_table

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(
    ("prompt", "answer", "mistake"),
    [
        ("rev 482", "284", "428"),
        ("sort 482", "248", "842"),
        ("swap 482", "842", "428"),
        ("rot 482", "824", "248"),
        ("next 491", "512", "389"),
        ("parity 481", "221", "112"),
        ("max 482", "8", "2"),
    ],
)
def test_every_kind_has_its_answer_and_its_misconception(prompt: str, answer: str, mistake: str) -> None:
    assert solve(prompt)[1] == answer
    assert solve(prompt, mistaken=True)[1] == mistake


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", KINDS)
def test_a_right_text_verifies_and_a_misconception_does_not(kind: str, style: str) -> None:
    for problem in draw_problems(kind, 10, Random(1)):
        right, wrong = (write(problem, style, Random(0), mistaken) for mistaken in (False, True))
        assert is_right_answer(problem.prompt, right, problem.answer) == 1
        assert is_right_answer(problem.prompt, wrong, problem.answer) == 0


def test_evaluation_items_are_in_no_other_part() -> None:
    seen = {name: {p.prompt for group in part.values() for p in group} for name, part in all_problems(0).items()}
    assert seen["evaluation"].isdisjoint(seen["prompts"] | seen["training"])
    assert (len(seen["evaluation"]), len(seen["prompts"])) == (525, 2625)


def test_the_raw_files_are_those_of_the_seed_and_make_the_profile_s_prompts(tmp_path: Path) -> None:
    for name, seed in (("one", 0), ("again", 0), ("other", 1)):
        write_raw(all_problems(seed), tmp_path / name)
    for file in (tmp_path / "one").rglob("*.jsonl"):
        path = file.relative_to(tmp_path / "one")
        assert file.read_bytes() == (tmp_path / "again" / path).read_bytes()
        assert file.read_bytes() != (tmp_path / "other" / path).read_bytes()
    params = read_params(ROOT / "profiles" / "micro.yaml")
    prompts, counts = build_prompts(tmp_path / "one", params.prompts)
    assert prompts["parallel"].all()
    assert counts["dropped"] == {}
    assert set(params.teachers) == set(TEACHERS)


def test_a_word_is_one_token_and_a_digit_is_one() -> None:
    training = all_problems(0)["training"]
    texts = mixed_texts("words", 0, training, dict.fromkeys(STYLES, 1.0), 0.5, 2000)
    tokenizer = build_tokenizer(texts)
    assert len(tokenizer) <= 300
    for word in {word for _, response in texts for word in response.split()[1:] if word.isalpha()}:
        assert len(tokenizer.tokenize(f" {word}")) == 1, word
    assert len(tokenizer.tokenize("4821")) == 4


def test_a_tiny_world_loads_and_its_teacher_answers(tmp_path: Path) -> None:
    from transformers import AutoModelForSequenceClassification

    world = tmp_path / "world"
    build_world(0, world, scale=0.0, teachers=["weak-b"])
    names = {folder.name for folder in (world / "models").iterdir()}
    assert names == {"weak-b", "router", "reward", "student-terse", "student-steps"}
    prompts = prompts_table(["rev 482", "max 482"], "math", ["284", "8"])
    model, sampling = str(world / "models/weak-b"), Sampling(max_tokens=8)
    teacher = Teacher(model=model, sampling=sampling, license="Apache-2.0", backend="transformers")
    answers = generate_responses(prompts, "weak-b", teacher, tmp_path / "store", TransformersSpeed(batch_size=2))
    assert (answers["num_response_tokens"] <= 8).all()
    assert load_model(AutoModelForSequenceClassification, str(world / "models/router"), num_labels=3)
    before = (world / "models/weak-b/model.safetensors").read_bytes()
    build_world(1, world)
    assert (world / "models/weak-b/model.safetensors").read_bytes() == before
    build_world(0, tmp_path / "again", scale=0.0, teachers=["weak-b"])
    assert (tmp_path / "again/models/weak-b/model.safetensors").read_bytes() == before
    assert load_causal_lm(str(world / "models/student-terse")).num_parameters() < 200_000
