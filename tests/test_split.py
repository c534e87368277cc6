"""A model that is split scores as a whole one: its layers on two devices, or each layer shared by two processes."""

import json
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from persyn.errors import InputError
from persyn.learnability import LearnabilitySpeed
from persyn.models import load_causal_lm
from persyn.models.shares import ScoringSpeed, work_in_shares
from persyn.quality.reward_model import RewardModelSettings, RewardModelSpeed, reward_model_scores
from rehearsal.models import SIZES, random_model
from tests.support.split import compare, scores_of, wait_for_a_kill
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
IDS = {"vocab_size": 401, "max_position_embeddings": 1024, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def build(folder: Path, architecture: str, reward: bool = False, **shape: Any) -> Path:
    """Save a random model; its vocabulary is odd, so that no head could be dealt out to two processes."""
    place = folder / f"{architecture}{'-reward' if reward else ''}"
    shape = SIZES | IDS | FAMILIES.get(architecture, {}) | shape
    random_model(architecture, shape, seed=0, is_reward_model=reward).save_pretrained(place)
    return place


def test_two_processes_hold_one_model_and_score_as_one(tmp_path: Path) -> None:
    models = [build(tmp_path, family, reward) for family in FAMILIES for reward in (False, True)]
    work_in_shares(partial(compare, tmp_path / "found"), [models], ScoringSpeed(tensor_parallel=2), "x")
    found = json.loads((tmp_path / "found").read_text())
    assert set(found) == {model.name for model in models}
    for name, (difference, shared) in found.items():
        print(f"{name}: {difference:.1e}, {shared} weights shared")
        assert difference < 1e-4, name
        assert shared == (8 if "Phi3" in name else 14), f"{name}: each matrix of both layers is shared"
