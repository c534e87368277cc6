"""Log-probabilities of tokens under a causal LM, for many continuations of one context in one forward pass.

The row is [shared | branch 1 | branch 2 ...]: the attention mask is a tree (each branch sees the shared tokens and
itself) and positions restart after the shared tokens. So a shared prompt is read once, nothing is padded, and only the
positions that predict a scored token reach the LM head.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch

VOCABULARY_TILE = {"cpu": 8192, "cuda": 65536}
"""Tokens of the vocabulary whose logits exist at once: on a CPU they fit its cache, which is three times faster."""
LOGIT_CHUNK = 2048
"""Positions whose logits exist at once."""

Branch = tuple[int, list[int], list[int]]
"""Index of the response, context token ids after the shared ones (at least one), and the token ids that are scored."""


def split_group(shared: int, lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions of branches, longest first, in parts of at most `batch_tokens` tokens including the shared ones."""
    part: list[int] = []
    size = shared
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if part and size + lengths[position] > batch_tokens:
            yield part
            part, size = [], shared
        part.append(position)
        size += lengths[position]
    if part:
        yield part


@torch.inference_mode()
def token_scores(
    model: Any, shared: list[int], branches: Sequence[Branch], with_ranks: bool = False, whole: bool = False
) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """log p and rank of every scored token of every branch, in one forward pass.

    Only the hidden states that predict a scored token reach the LM head. At most [LOGIT_CHUNK, VOCABULARY_TILE] logits
    exist at once; they are reduced in fp32.

    Args:
        whole: read the last scored token as well. It predicts nothing, but in some models a pass's length matters.

    Returns:
        A pair of (R,) tensors for each branch, on the CPU: nats, and ranks from 1 for the likeliest (0 without ranks).
    """
    inputs = [[*context, *(targets if whole else targets[:-1])] for _, context, targets in branches]
    ids = torch.tensor(shared + [token for row in inputs for token in row])  # (T,)
    start = len(shared)
    positions = torch.cat([torch.arange(start), *(torch.arange(start, start + len(row)) for row in inputs)])
    branch = torch.cat([torch.zeros(start), *(torch.full((len(row),), n + 1.0) for n, row in enumerate(inputs))])
    predicts = [
        (torch.arange(len(row)) >= len(context) - 1) & (torch.arange(len(row)) < len(context) + len(targets) - 1)
        for row, (_, context, targets) in zip(inputs, branches, strict=True)
    ]
    scored = torch.cat([torch.zeros(start, dtype=torch.bool), *predicts])
    targets = torch.tensor([token for _, _, row in branches for token in row])  # (R,)
    ids, positions, branch, scored, targets = (t.to(model.device) for t in (ids, positions, branch, scored, targets))
    # One branch is plain causal attention, which needs no mask. The trunk is the model without its LM head.
    mask = None if len(branches) == 1 else tree_mask(model, branch, positions)
    trunk = model.base_model(input_ids=ids[None], attention_mask=mask, position_ids=positions[None], use_cache=False)
    hidden = trunk.last_hidden_state[0][scored]  # (R, H)
    chunks = [
        _head(model, hidden[at : at + LOGIT_CHUNK], targets[at : at + LOGIT_CHUNK], with_ranks)
        for at in range(0, len(targets), LOGIT_CHUNK)
    ]
    lengths = [len(row) for _, _, row in branches]
    logprobs, ranks = (torch.cat(part).cpu().split(lengths) for part in zip(*chunks, strict=True))
    return list(zip(logprobs, ranks, strict=True))


def tree_mask(model: Any, branch: torch.Tensor, positions: torch.Tensor) -> Any:
    """What each token may attend to: the shared tokens (branch 0) and the earlier ones of its own branch.

    Args:
        branch: (T,) 0 for what is shared, n for the n-th branch.
        positions: (T,) position of each token in its own sequence.

    Returns:
        A (1, 1, T, T) mask, True where attention is allowed; for a model with sliding-window layers a mask for each
        kind of layer, as transformers' models take them.
    """
    same = (branch[:, None] == branch[None]) | (branch[None] == 0)
    distance = positions[:, None] - positions[None]
    full = (same & (distance >= 0))[None, None]
    config = model.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or [])
    sliding = full & (distance < window)[None, None] if window else full
    if "sliding_attention" in kinds:
        return {"full_attention": full, "sliding_attention": sliding}
    return full if kinds else sliding


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
    token = torch.zeros((1, 1), dtype=torch.long, device=model.device)
    model.base_model(input_ids=token, use_cache=False)


def _head(
    model: Any, hidden: torch.Tensor, targets: torch.Tensor, with_ranks: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """log p and rank of `targets` (C,) given hidden states (C, H), one tile of the vocabulary after the other."""
    head = model.get_output_embeddings()
    tile = VOCABULARY_TILE.get(hidden.device.type, VOCABULARY_TILE["cuda"])
    bias = getattr(head, "bias", None)
    chosen = (hidden.float() * head.weight[targets].float()).sum(dim=1)  # (C,)
    chosen = _capped(model, chosen if bias is None else chosen + bias[targets].float())
    ranks, masses = torch.full_like(targets, with_ranks), []
    for start in range(0, len(head.weight), tile):
        part = slice(start, start + tile)
        logits = torch.nn.functional.linear(hidden, head.weight[part], None if bias is None else bias[part])
        logits = _capped(model, logits.float())  # (C, tile)
        masses.append(logits.logsumexp(dim=1))
        if with_ranks:
            inside = (targets >= start) & (targets < start + tile)  # a target does not count for its own rank
            logits[inside, targets[inside] - start] = float("-inf")
            ranks += (logits > chosen[:, None]).sum(dim=1)
    return chosen - torch.stack(masses).logsumexp(dim=0), ranks


def _capped(model: Any, logits: torch.Tensor) -> torch.Tensor:
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    return logits if not cap else cap * torch.tanh(logits / cap)  # Gemma-2 soft-caps its logits after the head
