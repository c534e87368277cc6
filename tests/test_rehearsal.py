"""The rehearsal: every model of every shipped profile has a stand-in, and a profile stays what it is."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.chat import encode_prompt
from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.transformers import TransformersBackend, TransformersSpeed
from persyn.learnability import LearnabilitySettings, score_learnability
from persyn.messages import user_message
from persyn.models import Student, load_tokenizer
from persyn.project.params import check_params
from persyn.prompts import PromptSettings, build_prompts
from persyn.quality.reward_model import RewardModelSettings, reward_model_scores
from persyn.schemas import PROMPTS, write_table
from rehearsal.checks import check_contexts
from rehearsal.data import LocalData, parallel_sources
from rehearsal.families import FAMILIES, family_of
from rehearsal.models import build_once
from rehearsal.params import MAX_TOKENS, SELECT, hub_models, rehearsed, selected
from science.project import load_profile
from tests.support.tables import prompts_table, responses_table
from tests.support.tiny import ROOT

# In the profile alpaca nobody is asked: its teachers are names beside files, and no model has a stand-in.
PROFILES = [path for path in sorted((ROOT / "profiles").glob("*/params.yaml")) if path.parent.name != "alpaca"]
PAPER = [path for path in PROFILES if path.parent.name.startswith("paper-")]
EXAMPLES = [
    "Qwen/Qwen2.5-7B-Instruct",
    "Qwen/Qwen2.5-Math-7B-Instruct",
    "Qwen/Qwen2.5-1.5B",
    "Qwen/QwQ-32B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-1.7B-Base",
    "openai/gpt-oss-20b",
    "Qwen/Qwen3-30B-A3B",
    "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "deepseek-ai/DeepSeek-R1-Distill-Llama-70B",
    "deepseek-ai/DeepSeek-R1",
    "meta-llama/Meta-Llama-3-8B-Instruct",
    "meta-llama/Llama-3.1-8B-Instruct",
    "meta-llama/Llama-3.2-3B",
    "google/gemma-2-9b-it",
    "google/gemma-2-2b",
    "microsoft/Phi-3-small-128k-instruct",
    "microsoft/phi-4",
    "deepseek-ai/deepseek-coder-6.7b-instruct",
    "mistralai/Mistral-7B-Instruct-v0.3",
    "mistralai/Mixtral-8x7B-Instruct-v0.1",
]


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they are built."""
    return tmp_path_factory.mktemp("stand-ins")


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.parent.name)
def test_every_model_of_a_profile_is_known(path: Path) -> None:
    for model in hub_models(load_profile(path)).values():
        family_of(model)


def test_every_model_that_the_paper_document_names_is_known() -> None:
    text = (ROOT / "docs/paper.md").read_text()
    owners = "Qwen|google|meta-llama|microsoft|deepseek-ai|Skywork"
    named = set(re.findall(rf"(?:model: |model=|\| `)((?:{owners})/[\w.-]+)", text))
    assert {"meta-llama/Llama-3.2-3B", "google/gemma-2-2b"} <= named, "the students are named there"
    for model in named:
        family_of(model)


@pytest.mark.parametrize("model", EXAMPLES)
def test_a_stand_in_of_each_family_answers_and_ends(stand_ins: Path, model: str) -> None:
    folder = build_once(stand_ins, model)
    teacher = Teacher(model=str(folder), sampling=Sampling(max_tokens=6), license="", backend="transformers")
    backend = TransformersBackend(teacher, TransformersSpeed())
    assert type(backend.model).__name__ == f"{family_of(model).architecture}ForCausalLM"
    prompts = ["Name a colour.", "What is 3 times 4?"]
    answers: dict[int, Any] = {}
    for batch in backend.generate([user_message(prompt) for prompt in prompts], prompts, teacher.sampling):
        answers |= batch
    assert all(answer.finish_reason == "stop" and answer.response for answer in answers.values())


def test_the_examples_cover_all_families() -> None:
    assert {family_of(model) for model in EXAMPLES} == set(FAMILIES)


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-1.5B", "meta-llama/Llama-3.2-3B", "google/gemma-2-2b"])
def test_a_student_of_each_family_scores_responses(stand_ins: Path, tmp_path: Path, model: str) -> None:
    student = Student(model=str(build_once(stand_ins, model)), license="", max_length=128)
    prompts = prompts_table(["Name a colour.", "Name a tree."])
    responses = responses_table(prompts, "a", ["Red.", "Oak, which is a large one."])
    scores = score_learnability(prompts, responses, student, LearnabilitySettings(), tmp_path)["learnability"].to_list()
    assert len(set(scores)) == 2
    assert all(score < 0 for score in scores)


def test_a_reward_model_gives_one_score(stand_ins: Path, tmp_path: Path) -> None:
    folder = build_once(stand_ins, "Skywork/Skywork-Reward-Llama-3.1-8B", is_reward_model=True)
    rows = prompts_table(["Name a colour.", "Name a tree."]).with_columns(response=pl.Series(["Red.", "Oak."]))
    scores = reward_model_scores(rows, tmp_path, RewardModelSettings(model=str(folder)))
    assert len(set(scores)) == 2


def test_gemma_refuses_a_system_message(stand_ins: Path) -> None:
    tokenizer = load_tokenizer(str(build_once(stand_ins, "google/gemma-2-9b-it")))
    with pytest.raises(Exception, match="System role not supported"):
        encode_prompt(tokenizer, [{"role": "system", "content": "Be brief."}, *user_message("Name a colour.")])


def changed(one: Any, other: Any, path: str = "") -> set[str]:
    """Dotted paths at which two parameters differ."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        inner = one.keys() | other.keys()
        return set().union(*(changed(one.get(key), other.get(key), f"{path}.{key}".strip(".")) for key in inner))
    return {path} if one != other else set()


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.parent.name)
def test_only_what_makes_it_small_and_local_is_changed(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = load_profile(path)
    monkeypatch.chdir(tmp_path)
    data = LocalData(tmp_path / "data", tmp_path)
    small = rehearsed(params, lambda path, model: f"stand-ins/{model}", data.localised)
    small_or_local = (
        r"teachers\.[\w-]+\.(model|backend|sampling\.max_tokens|precomputed\..*)|prompts\.(sources|decontaminate|num_parallel)"
        r"|(student|router)\.(model|max_length)|router\.batch_size|quality\.reward_model\.model|sft\.(epochs|batch_size)"
        r"|evaluation\.(limit|max_tokens)|licenses\.allow_forbidden|speed\..*"
    )
    assert [path for path in changed(params, small) if not re.fullmatch(small_or_local, path)] == []
    assert list(small["teachers"]) == list(params["teachers"])
    [source, *_] = small["prompts"]["sources"]
    check_params(small, "the rehearsed profile")
    read = {"sources": [source], "decontaminate": [], "num_parallel": 3}
    prompts, _ = build_prompts(tmp_path, PromptSettings.parse(read))
    write_table(prompts, tmp_path / "prompts.parquet", PROMPTS)
    select = selected(small, parallel_sources(tmp_path / "prompts.parquet", tmp_path / "data"))
    check_params(select, "its generate-then-select")
    again, _ = build_prompts(tmp_path, PromptSettings.parse(select["prompts"] | {"decontaminate": []}))
    same = ["prompt_id", "prompt", "domain", "reference"]
    assert again.sort("prompt_id").select(same).equals(prompts.filter("parallel").sort("prompt_id").select(same))
    assert set(select["strategies"]) == {"persyn", *SELECT}


def test_settings_that_only_other_engines_have_are_left_out(tmp_path: Path) -> None:
    params = json.loads(json.dumps(load_profile(PAPER[0])))
    [first, second, *_] = params["teachers"].values()
    first |= {"quantization": "fp8", "adapter": "a", "extra_body": {"min_tokens": 2}}
    first["sampling"] = {"max_tokens": 9, "temperature": 1.0, "top_k": 20, "presence_penalty": 1.5}
    second |= {"backend": "openai", "host": "here", "sampling": {"max_tokens": 9, "seed": None, "extra": {"user": "x"}}}
    data = LocalData(tmp_path / "data", tmp_path)
    small = rehearsed(params, lambda path, model: f"stand-ins/{model}", data.localised)
    check_params(small, "the rehearsed profile")
    [first, *_] = small["teachers"].values()
    assert first["sampling"] == {"max_tokens": MAX_TOKENS, "temperature": 1.0, "top_k": 20}


@pytest.mark.parametrize("path", PAPER, ids=lambda path: path.parent.name)
def test_answers_fit_the_models(path: Path) -> None:
    params = load_profile(path)
    check_contexts(params)
    name = next(iter(params["teachers"]))
    params["teachers"][name]["sampling"]["max_tokens"] = 1 << 20
    with pytest.raises(InputError, match=name):
        check_contexts(params)


def test_what_has_no_stand_in_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not know the architecture of owner/new-7b"):
        build_once(tmp_path, "owner/new-7b")
    with pytest.raises(InputError, match=r"owner--new\.jsonl"):
        LocalData(tmp_path / "data", tmp_path).localised({"hub": "owner/new"})
