"""Work for test_split: what each of the processes that hold one model does."""

import json
from pathlib import Path
from typing import Any

import torch

from persyn.learnability import LearnabilitySettings
from persyn.learnability.scoring import score_groups
from persyn.models import load_causal_lm, load_model
from persyn.models.shares import is_first
from persyn.quality.reward_model import Reading, _scores

METHODS = [LearnabilitySettings(), LearnabilitySettings(method="rank_surprisal"), LearnabilitySettings(method="local")]
GROUPS: list[tuple[list[int], list[list[int]]]] = [
    ([5, 6], [[20, 30, 7], [9], list(range(40, 57))]),
    ([5, 6, 20, 21], [[11] * 9]),
    ([5, 6, 7], [[8], [8]]),
]
"""Prompts and their responses."""


def student_scores(model: Any) -> list[float]:
    """By every method, rows alone and many in a pass."""
    return [
        score
        for method in METHODS
        for batch_tokens in (1, 512)
        for _, _, score in sorted(s for part in score_groups(model, GROUPS, method, batch_tokens) for s in part)
    ]


def reward_scores(model: Any) -> list[float]:
    """Rows alone and many in a pass."""
    rows = [prompt + response for prompt, responses in GROUPS for response in responses]
    readings = [Reading(str(n), ids, len(ids)) for n, ids in enumerate(rows)]
    found = [(of.key, score) for tokens in (1, 512) for part in _scores(model, readings, tokens) for of, score in part]
    return [score for _, score in sorted(found)]


def scores_of(folder: Path, **placement: Any) -> tuple[list[float], int]:
    """The scores under the model of this folder, and how many of its weights are shared."""
    from transformers import AutoModelForSequenceClassification

    if "reward" in folder.name:
        model = load_model(AutoModelForSequenceClassification, str(folder), **placement)
        scores = reward_scores(model)
    else:
        model = load_causal_lm(str(folder), **placement)
        scores = student_scores(model)
    return scores, sum(isinstance(weight, torch.distributed.tensor.DTensor) for weight in model.parameters())


def compare(out: Path, share: list[Path]) -> None:
    """Write how far the scores of each model are from those of one process, and how many of its weights are shared."""
    found = {}
    for folder in share:
        (alone, _), (together, shared) = scores_of(folder), scores_of(folder, tensor_parallel=2)
        found[folder.name] = (max(abs(a - b) for a, b in zip(alone, together, strict=True)), shared)
    if is_first():
        out.write_text(json.dumps(found))
