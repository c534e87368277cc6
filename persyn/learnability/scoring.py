"""Scoring: responses to one prompt under a model, in as few forward passes as memory allows."""

import logging
import math
from collections.abc import Sequence
from typing import Any

import torch
from tqdm import tqdm

from persyn.errors import InputError
from persyn.learnability import LearnabilitySettings
from persyn.learnability.logprobs import forget_stretch, split_group, stretch_length, token_scores
from persyn.store import Store

TOLERANCE = {torch.float32: 1e-3}
"""Nats per token that tree_is_exact tolerates, by precision; 0.05 in others."""
CHECKED = 64
"""Tokens of prompt and response that tree_is_exact reads, so that it needs little memory."""
logger = logging.getLogger(__name__)


def score_missing(
    model: Any,
    rows: dict[str, tuple[list[int], list[int]]],
    method: LearnabilitySettings,
    store: Store,
    batch_tokens: int | None,
    total: int,
) -> None:
    """Score `rows` in groups that share a prompt, and store each group's scores as they come."""
    batch_tokens = batch_tokens or (4096 if model.device.type == "cuda" else 512)
    by_prompt: dict[tuple[int, ...], list[str]] = {}
    for key, (prompt, _) in rows.items():
        by_prompt.setdefault(tuple(prompt), []).append(key)
    most, group = max(by_prompt.items(), key=lambda item: len(item[1]))
    if not tree_is_exact(model, list(most[-CHECKED:]), [rows[key][1][:CHECKED] for key in group[:3]]):
        batch_tokens = 1
    with tqdm(total=total, initial=total - len(rows), desc="learnability", unit="response") as bar:
        for shared, keys in sorted(by_prompt.items(), key=lambda item: -len(item[0])):
            scores = score_group(model, list(shared), [rows[key][1] for key in keys], method, batch_tokens)
            finite = {key: score for key, score in zip(keys, scores, strict=True) if math.isfinite(score)}
            store.put({key: {"learnability": score} for key, score in finite.items()})
            if len(finite) < len(keys):
                logger.warning("%d scores are not finite and left out", len(keys) - len(finite))
            bar.update(len(keys))


def score_group(
    model: Any, prompt: list[int], responses: Sequence[list[int]], method: LearnabilitySettings, batch_tokens: int
) -> list[float]:
    """The scores of responses to one prompt, in as few forward passes as `batch_tokens` and the memory allow.

    Where a long pass stretches the position encoding of all its tokens (see stretch_length), what is too long for the
    original one is read alone, as training reads it, so that it does not change its shorter neighbours.

    Args:
        model: a causal LM.
        prompt: token ids, at least one.
        responses: N lists of token ids, none empty.

    Returns:
        N floats.
    """
    shared, branches = method.branches(prompt, responses)
    lengths = [len(context) + len(targets) - 1 for _, context, targets in branches]
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    limit = stretch_length(model)
    long = {i for i, length in enumerate(lengths) if limit is not None and len(shared) + length + 1 > limit}
    short = [i for i in range(len(lengths)) if i not in long]
    parts = [[short[i] for i in part] for part in split_group(len(shared), [lengths[i] for i in short], batch_tokens)]
    parts += [[i] for i in long]
    while parts:
        part = parts.pop()
        alone = part[0] in long
        if alone:
            forget_stretch(model)
        try:
            scored = token_scores(model, shared, [branches[i] for i in part], method.method == "rank_surprisal", alone)
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        else:
            found |= dict(zip(part, scored, strict=True))
    return [
        method.reduce(
            torch.cat([found[position][0] for position, (of, _, _) in enumerate(branches) if of == index]),
            torch.cat([found[position][1] for position, (of, _, _) in enumerate(branches) if of == index]),
        )
        for index in range(len(responses))
    ]


@torch.inference_mode()
def tree_is_exact(model: Any, prompt: list[int], responses: Sequence[list[int]]) -> bool:
    """Whether this model respects the tree mask: scores of a group equal those of its rows one by one.

    A model with layers that ignore mask and position (such as state-space layers) does not; its rows are then scored
    one by one.

    Raises:
        InputError: even one by one, the scores differ from the model's own: its head is more than a matrix product.
    """
    logits = model(torch.tensor([prompt + responses[0]], device=model.device)).logits[0, len(prompt) - 1 : -1].float()
    own = -torch.nn.functional.cross_entropy(logits, torch.tensor(responses[0], device=model.device)).item()
    alone = score_group(model, prompt, responses, LearnabilitySettings(), batch_tokens=1)
    together = score_group(model, prompt, responses, LearnabilitySettings(), batch_tokens=1 << 20)
    tolerance = TOLERANCE.get(model.dtype, 0.05)
    if abs(own - alone[0]) > tolerance:  # false for NaN, which score_missing handles
        raise InputError(
            f"{type(model).__name__} scores a response {own:.4f}, but its trunk and head separately {alone[0]:.4f}: "
            f"this kind of model cannot be a student yet"
        )
    error = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    if error > tolerance:
        logger.warning("%s: a shared prompt changes scores by %.2g; rows are scored alone", type(model).__name__, error)
    return not error > tolerance
