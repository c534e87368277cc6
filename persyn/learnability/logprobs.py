"""Log-probabilities of tokens under a causal LM, for the branches of a forest in one forward pass.

Only the hidden states that predict a scored token reach the LM head.
"""

from collections.abc import Sequence
from typing import Any

import torch
from accelerate.utils import align_module_device

from persyn.models.forest import branch_states, on_device
from persyn.models.split import input_device

VOCABULARY_TILE = {"cpu": 8192, "cuda": 65536}
"""Tokens of the vocabulary whose logits exist at once: on a CPU they fit its cache, which is three times faster."""
LOGIT_CHUNK = 2048
"""Positions whose logits exist at once."""

Branch = tuple[int, list[int], list[int]]
"""Index of the response, context token ids after the shared ones (at least one), and the token ids that are scored."""


@torch.inference_mode()
def token_scores(
    model: Any,
    trees: Sequence[tuple[list[int], Sequence[Branch]]],
    with_ranks: bool = False,
    whole: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and rank of every scored token of every branch, in one forward pass.

    At most [LOGIT_CHUNK, VOCABULARY_TILE] logits exist at once; they are reduced in fp32.

    Args:
        trees: shared token ids and their branches.
        whole: read the last scored token as well. It predicts nothing, but in some models a pass's length matters.

    Returns:
        Two (R,) tensors on the head's device, branch after branch: nats, and ranks from 1 for the likeliest (0 without
        ranks). A GPU may still be at work on them.
    """
    forest = [(shared, [branch_tokens(branch, whole) for branch in branches]) for shared, branches in trees]
    branches = [branch for _, group in trees for branch in group]
    predicting = [
        states[len(context) - 1 : len(context) - 1 + len(targets)]
        for states, (_, context, targets) in zip(branch_states(model, forest), branches, strict=True)
    ]
    targets = on_device(torch.tensor([token for _, _, row in branches for token in row]), model)  # (R,)
    head = model.get_output_embeddings()
    with align_module_device(head):  # fetches its weight if that waits in memory or on a disk
        hidden, targets = (part.to(head.weight.device) for part in (torch.cat(predicting), targets))  # (R, H), (R,)
        chunks = [
            _head(model, hidden[at : at + LOGIT_CHUNK], targets[at : at + LOGIT_CHUNK], with_ranks)
            for at in range(0, len(targets), LOGIT_CHUNK)
        ]
    logprobs, ranks = (torch.cat(part) for part in zip(*chunks, strict=True))
    return logprobs, ranks


def branch_tokens(branch: Branch, whole: bool = False) -> list[int]:
    """What is read of a branch: all but its last token, which predicts nothing."""
    _, context, targets = branch
    return [*context, *(targets if whole else targets[:-1])]


def stretch_length(model: Any) -> int | None:
    """The length beyond which a pass stretches the position encoding of all its tokens; None where none does.

    Phi-3's long contexts (longrope) have one set of frequencies for short passes and one for long passes. Dynamic NTK
    computes new ones from the length of the pass.
    """
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [kind for kind in (rope, *rope.values()) if isinstance(kind, dict)]  # one, or one for each kind of layer
    lengths = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    return min(lengths, default=None)


@torch.inference_mode()
def forget_stretch(model: Any) -> None:
    """Read one token, which takes the position encoding back to its original: dynamic NTK keeps the frequencies of the
    longest pass until a short one comes.
    """
    token = torch.zeros((1, 1), dtype=torch.long, device=input_device(model))
    model.base_model(input_ids=token, use_cache=False)


def _head(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, with_ranks: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and rank of `targets` (C,) given hidden states (C, H), one tile of the vocabulary after the other."""
    head = model.get_output_embeddings()
    tile = VOCABULARY_TILE.get(hidden.device.type, VOCABULARY_TILE["cuda"])
    bias = getattr(head, "bias", None)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    chosen = (hidden.float() * head.weight[targets].float()).sum(dim=1)  # (C,)
    chosen = _capped(chosen if bias is None else chosen + bias[targets].float(), cap)
    ranks, masses = torch.full_like(targets, with_ranks), []
    for start in range(0, len(head.weight), tile):
        part = slice(start, start + tile)
        logits = torch.nn.functional.linear(hidden, head.weight[part], None if bias is None else bias[part])
        logits = _capped(logits.float(), cap)  # (C, tile)
        masses.append(logits.logsumexp(dim=1))
        if with_ranks:
            inside = (targets >= start) & (targets < start + tile)  # a target does not count for its own rank
            logits[inside, targets[inside] - start] = float("-inf")
            ranks += (logits > chosen[:, None]).sum(dim=1)
    return chosen - torch.stack(masses).logsumexp(dim=0), ranks


def _capped(logits: torch.Tensor, cap: float | None) -> torch.Tensor:
    return logits if not cap else cap * torch.tanh(logits / cap)  # Gemma-2 soft-caps its logits after the head
