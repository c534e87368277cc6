"""Whether two engines' greedy responses to one prompt part at a tie: two tokens as likely, but for rounding."""

from collections.abc import Sequence
from typing import Any

import torch

TIE = 0.01
"""Nats between two tokens that rounding can swap in fp32: far above its error, far below what tells tokens apart."""


def parting(first: Sequence[int], second: Sequence[int]) -> int:
    """Where two responses part: the position of their first different token."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((at for at, (one, other) in pairs if one != other), min(len(first), len(second)))


def gap(model: Any, prompt: Sequence[int], first: Sequence[int], second: Sequence[int]) -> float:
    """How far apart, in nats, the two tokens are at which two responses part.

    Args:
        model: a causal language model in fp32.
        first: the token ids of a response, with its end.
    """
    at = parting(first, second)
    if at in (len(first), len(second)):
        return float("inf")  # one was cut: no token of it stands against the other's
    with torch.inference_mode():
        logits = model(torch.tensor([[*prompt, *first[:at]]]), logits_to_keep=1).logits[0, -1]
    scores = torch.log_softmax(logits.float(), dim=-1)
    return float((scores[first[at]] - scores[second[at]]).abs())
