"""A model that is split scores as a whole one: its layers in several places, or each layer shared by two processes."""

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from persyn.errors import InputError
from persyn.learnability import LearnabilitySpeed
from persyn.learnability.logprobs import token_scores
from persyn.models import forest, load_causal_lm
from persyn.models.shares import ScoringSpeed, work_in_shares
from persyn.quality.reward_model import RewardModelSettings, RewardModelSpeed, reward_model_scores
from rehearsal.models import SIZES, random_model
from tests.support.shares import refuse_in_one, wait_for_each_other
from tests.support.split import compare, scores_of
from tests.test_quality import build_reward_model
from tests.test_shares import learn, tables

FAMILIES: dict[str, dict[str, Any]] = {
    "Qwen3": {},
    "Llama": {"tie_word_embeddings": True},
    "Gemma3Text": {
        "tie_word_embeddings": True,
        "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "Phi3": {},
}
MORE: dict[str, dict[str, Any]] = {
    **{family: {} for family in ("Cohere2", "Glm4", "Granite", "Mistral", "Olmo2", "Qwen2", "SmolLM3")},
    "Gemma2": {"tie_word_embeddings": True, "sliding_window": 8},
    "Mixtral": {"num_local_experts": 4},
    "Qwen3Moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
}
IDS = {"vocab_size": 401, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
TWO = ScoringSpeed(tensor_parallel=2)


def build(folder: Path, architecture: str, reward: bool = False, **shape: Any) -> Path:
    """Save a random model; its vocabulary is odd, so that no head could be dealt out to two processes."""
    place = folder / f"{architecture}{'-reward' if reward else ''}"
    shape = SIZES | IDS | (FAMILIES | MORE).get(architecture, {}) | shape
    random_model(architecture, shape, seed=0, is_reward_model=reward).save_pretrained(place)
    return place


def test_two_processes_hold_one_model_and_score_as_one(tmp_path: Path) -> None:
    models = [build(tmp_path, family, reward) for family in FAMILIES for reward in (False, True)]
    work_in_shares(partial(compare, tmp_path / "found"), [models], TWO, "x")
    found = json.loads((tmp_path / "found").read_text())
    assert set(found) == {model.name for model in models}
    for name, (difference, shared) in found.items():
        assert difference < 1e-4, name
        assert shared == (8 if "Phi3" in name else 14), f"{name}: each matrix of both layers is shared"


@pytest.mark.slow
def test_so_they_do_with_other_architectures(tmp_path: Path) -> None:
    models = [build(tmp_path, family) for family in MORE] + [build(tmp_path, "Llama", intermediate_size=63)]
    work_in_shares(partial(compare, tmp_path / "found"), [models], TWO, "x")
    found = json.loads((tmp_path / "found").read_text())
    assert len(found) == len(MORE) + 1
    assert all(difference < 1e-4 and shared >= 12 for difference, shared in found.values()), found


@pytest.mark.slow
def test_tables_are_those_of_one_process_and_only_the_first_of_each_model_writes(
    base_model: str, tmp_path: Path
) -> None:
    expected = learn(base_model, tmp_path / "one")
    for copies in (1, 2):
        folder = tmp_path / f"copies{copies}"
        found = learn(base_model, folder, LearnabilitySpeed(tensor_parallel=2, processes=copies))
        assert found.drop("learnability").equals(expected.drop("learnability"))
        assert found["learnability"].to_list() == pytest.approx(expected["learnability"].to_list(), abs=1e-4)
        assert len(list(folder.glob("*/j1-*.log"))) == copies
    build_reward_model(tmp_path / "model")
    prompts, responses = tables()
    rows, settings = responses.join(prompts, on="prompt_id"), RewardModelSettings(model=str(tmp_path / "model"))
    alone = reward_model_scores(rows, tmp_path / "r1", settings)
    found_scores = reward_model_scores(rows, tmp_path / "r2", settings, RewardModelSpeed(tensor_parallel=2))
    assert found_scores == pytest.approx(alone, abs=1e-4)


@pytest.mark.parametrize("killed", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_ends_those_that_wait_for_it(killed: int, tmp_path: Path) -> None:
    def kill() -> None:
        while len(files := list(tmp_path.glob("pid-*"))) < 2 or not all(file.read_text() for file in files):
            time.sleep(0.05)
        os.kill(int((tmp_path / f"pid-{killed}").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(
        InputError, match=rf"^one of 2 scoring processes ended: process {killed} .*SIGKILL.* speed\.x\."
    ):
        work_in_shares(partial(wait_for_each_other, tmp_path), [[1]], TWO, "x")
    killer.join()
    assert not Path(f"/proc/{(tmp_path / f'pid-{1 - killed}').read_text()}").exists()


@pytest.mark.slow
def test_a_refusal_in_one_is_told_and_not_that_the_other_waited_in_vain() -> None:
    with pytest.raises(InputError, match=r"^the second refuses; mend it$"):
        work_in_shares(refuse_in_one, [[1]], TWO, "x")


def test_a_model_without_a_plan_or_with_odd_heads_is_refused_before_it_is_loaded(tmp_path: Path) -> None:
    shape = {"n_embd": 32, "n_layer": 1, "n_head": 4, "vocab_size": 401, "bos_token_id": 1, "eos_token_id": 2}
    random_model("GPT2", shape, seed=0).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(InputError, match=r"no tensor parallel plan for GPT2LMHeadModel; set device_map: auto"):
        load_causal_lm(str(tmp_path / "gpt2"), tensor_parallel=2)
    odd = build(tmp_path, "Llama", num_key_value_heads=1)
    with pytest.raises(InputError, match=r"num_key_value_heads is 1, which 2 processes cannot share evenly"):
        load_causal_lm(str(odd), tensor_parallel=2)


@pytest.mark.parametrize("first", ["cpu", "disk"])
@pytest.mark.parametrize(("family", "reward"), [("Qwen3", False), ("Gemma3Text", False), ("Phi3", True)])
def test_layers_in_several_places_score_the_same(
    family: str, reward: bool, first: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = build(tmp_path, family, reward)
    head = first if FAMILIES[family].get("tie_word_embeddings") else "disk"
    places = {"model.embed_tokens": first, "model.layers.0": "cpu", "model.layers.1": "disk", "model.norm": "disk"}
    places |= {"model.rotary_emb": "cpu", "score" if reward else "lm_head": head}
    assert scores_of(model, device_map=places) == scores_of(model)
    slow = list(places.values()).count("disk")
    assert f"{model} is too large for the memory here: of its 6 parts {slow} on the disk" in caplog.text


def test_auto_is_plain_where_there_is_one_device(tmp_path: Path) -> None:
    model = build(tmp_path, "Qwen3")
    assert scores_of(model, device_map="auto") == scores_of(model)


def test_states_and_targets_follow_the_head_to_its_device(base_model: str) -> None:
    model = load_causal_lm(base_model)
    model.lm_head.weight = torch.nn.Parameter(model.lm_head.weight.to("meta"))  # the one other device that a CPU has
    logprobs, _ = token_scores(model, [([5, 6], [(0, [7], [8, 9])])])
    assert logprobs.device.type == "meta"
    assert logprobs.shape == (2,)
    assert forest.input_device(model).type == "cpu"
