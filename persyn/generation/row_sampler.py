"""Row sampler: sampling in which a prompt's response does not depend on the other prompts in its batch."""

import hashlib

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from persyn.errors import InputError
from persyn.generation import Sampling


def row_sampler(sampling: Sampling, keys: list[str]) -> LogitsProcessorList:
    """Processors for temperature, top-k, top-p, min-p and a draw per row; empty (greedy) at temperature 0.

    Raises:
        InputError: `sampling.extra` holds a top_k or min_p out of bounds.
    """
    if sampling.temperature is None or sampling.top_p is None or sampling.seed is None:
        raise InputError("sampling holds null, which stands for a server's own value; give a number")
    if sampling.temperature == 0:
        return LogitsProcessorList()
    given = sampling.more
    try:
        warpers: list[LogitsProcessor] = [TemperatureLogitsWarper(sampling.temperature)]
        if given.get("top_k", 0) > 0:  # 0 and -1 mean all, as for vLLM
            warpers.append(TopKLogitsWarper(given["top_k"]))
        warpers.append(TopPLogitsWarper(sampling.top_p))
        if "min_p" in given:
            warpers.append(MinPLogitsWarper(given["min_p"]))
    except (ValueError, TypeError) as error:
        raise InputError(f"sampling.extra is {sampling.extra}: {error}; correct it") from error
    return LogitsProcessorList([*warpers, RowSampler(sampling.seed, keys)])


class RowSampler(LogitsProcessor):
    """Turns greedy decoding into sampling, row by row: adding Gumbel noise and taking the maximum is an exact draw
    from the softmax (the Gumbel-max trick). Each row has its own generator, seeded by (seed, key).
    """

    def __init__(self, seed: int, keys: list[str]) -> None:
        digests = [hashlib.sha256(f"{seed}:{key}".encode()).digest() for key in keys]
        self.generators = [torch.Generator().manual_seed(int.from_bytes(digest[:7])) for digest in digests]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """Add noise to `scores` (B, V)."""
        noise = torch.stack(
            [torch.empty(scores.shape[1]).exponential_(generator=generator) for generator in self.generators]
        )
        return scores.float() - noise.log().to(scores.device)
