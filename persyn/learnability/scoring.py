"""Scoring: responses to many prompts under a model, in as few forward passes as memory allows."""

import logging
import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import torch
from tqdm import tqdm

from persyn.errors import InputError
from persyn.learnability import LearnabilitySettings
from persyn.learnability.logprobs import Branch, branch_tokens, forget_stretch, stretch_length, token_scores
from persyn.models.forest import pack, prepare
from persyn.models.shares import agree, is_first, may_try_again
from persyn.models.split import input_device
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
    prepared = prepare(model, sum(len(prompt) + len(response) for prompt, response in rows.values()))
    batch_tokens = batch_tokens or prepared
    by_prompt: dict[tuple[int, ...], list[str]] = {}
    for key, (prompt, _) in rows.items():
        by_prompt.setdefault(tuple(prompt), []).append(key)
    most, group = max(by_prompt.items(), key=lambda item: len(item[1]))
    if not tree_is_exact(model, list(most[-CHECKED:]), [rows[key][1][:CHECKED] for key in group[:3]]):
        batch_tokens = 1
    batch_tokens = agree(batch_tokens)
    keys = [group for _, group in sorted(by_prompt.items(), key=lambda item: -len(item[0]))]
    groups = [(rows[group[0]][0], [rows[key][1] for key in group]) for group in keys]
    with tqdm(total=total, initial=total - len(rows), desc="learnability", unit="response") as bar:
        for scores in score_groups(model, groups, method, batch_tokens):
            finite = {keys[n][index]: score for n, index, score in scores if math.isfinite(score)}
            if is_first():
                store.put({key: {"learnability": score} for key, score in finite.items()})
            if len(finite) < len(scores):
                logger.warning("%d scores are not finite and left out", len(scores) - len(finite))
            bar.update(len(scores))


def score_groups(
    model: Any,
    groups: Sequence[tuple[list[int], Sequence[list[int]]]],
    method: LearnabilitySettings,
    batch_tokens: int,
) -> Iterator[list[tuple[int, int, float]]]:
    """Score responses to many prompts, in as few forward passes as `batch_tokens` and the memory allow.

    Where a long pass stretches the position encoding of all its tokens (see stretch_length), what is too long for the
    original one is read alone, as training reads it, so that it does not change its shorter neighbours.

    Args:
        model: a causal LM.
        groups: token ids of a prompt, at least one, and of its responses, none empty.

    Yields:
        After a pass, what it completed: the positions of group and response, and the score.
    """
    trees = [method.branches(prompt, responses) for prompt, responses in groups]
    of_response: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for tree, (_, branches) in enumerate(trees):
        for position, (response, _, _) in enumerate(branches):
            of_response.setdefault((tree, response), []).append((tree, position))
    found: dict[tuple[int, int], tuple[torch.Tensor, torch.Tensor]] = {}
    for part, scored in _read_passes(model, trees, method.method == "rank_surprisal", batch_tokens):
        lengths = [len(trees[tree][1][position][2]) for tree, position in part]
        logprobs, ranks = (tokens.cpu().split(lengths) for tokens in scored)
        found |= dict(zip(part, zip(logprobs, ranks, strict=True), strict=True))
        touched = {(tree, trees[tree][1][position][0]): None for tree, position in part}
        complete = [key for key in touched if all(branch in found for branch in of_response[key])]
        yield [(*key, _reduce([found.pop(branch) for branch in of_response[key]], method)) for key in complete]


def _read_passes(
    model: Any, trees: Sequence[tuple[list[int], Sequence[Branch]]], with_ranks: bool, batch_tokens: int
) -> Iterator[tuple[list[tuple[int, int]], tuple[torch.Tensor, torch.Tensor]]]:
    """Each pass's branches (tree, position) with what token_scores gives. A GPU is given the next pass before the last
    one's scores are waited for.
    """
    passes, alone = _passes(model, trees, batch_tokens)
    given = None
    while passes or alone:
        whole = not passes
        part = passes.pop() if passes else [alone.pop()]
        if whole:
            forget_stretch(model)
        forest = [
            (trees[tree][0], [trees[tree][1][position] for _, position in branches])
            for tree, branches in groupby(part, lambda branch: branch[0])
        ]
        try:
            scored = token_scores(model, forest, with_ranks, whole)
        except torch.OutOfMemoryError:
            if len(part) == 1 or not may_try_again():
                raise
            passes += [part[len(part) // 2 :], part[: len(part) // 2]]
            continue
        if given:
            yield given
        given = part, scored
    if given:
        yield given


def score_group(
    model: Any, prompt: list[int], responses: Sequence[list[int]], method: LearnabilitySettings, batch_tokens: int
) -> list[float]:
    """The scores of responses to one prompt, as score_groups."""
    scores = {
        index: score
        for part in score_groups(model, [(prompt, responses)], method, batch_tokens)
        for _, index, score in part
    }
    return [scores[index] for index in range(len(responses))]


def _passes(
    model: Any, trees: Sequence[tuple[list[int], Sequence[Branch]]], batch_tokens: int
) -> tuple[list[list[tuple[int, int]]], list[tuple[int, int]]]:
    """Branches (tree, position) of each pass, the first pass last; and the branches that are read alone."""
    lengths = [[len(branch_tokens(branch)) for branch in branches] for _, branches in trees]
    limit, alone, short = stretch_length(model), [], []
    for tree, (shared, branches) in enumerate(trees):
        long = [i for i in range(len(branches)) if limit is not None and len(shared) + lengths[tree][i] + 1 > limit]
        alone += [(tree, i) for i in long]
        short.append([i for i in range(len(branches)) if i not in set(long)])
    sizes = [(len(trees[tree][0]), [lengths[tree][i] for i in kept]) for tree, kept in enumerate(short)]
    passes = [[(tree, short[tree][i]) for tree, i in part] for part in pack(sizes, batch_tokens)]
    return passes[::-1], alone


def _reduce(parts: Sequence[tuple[torch.Tensor, torch.Tensor]], method: LearnabilitySettings) -> float:
    logprobs, ranks = zip(*parts, strict=True)
    return method.reduce(torch.cat(logprobs), torch.cat(ranks))


@torch.inference_mode()
def tree_is_exact(model: Any, prompt: list[int], responses: Sequence[list[int]]) -> bool:
    """Whether this model respects the tree mask: scores of a group equal those of its rows one by one.

    A model with layers that ignore mask and position (such as state-space layers) does not; its rows are then scored
    one by one.

    Raises:
        InputError: even one by one, the scores differ from the model's own: its head is more than a matrix product.
    """
    logits = model(torch.tensor([prompt + responses[0]], device=input_device(model))).logits[0, len(prompt) - 1 : -1]
    own = -torch.nn.functional.cross_entropy(logits.float().cpu(), torch.tensor(responses[0])).item()
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
