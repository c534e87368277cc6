"""Row sampler: sampling in which a prompt's response does not depend on the other prompts in its batch."""

import hashlib

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from persyn.generation import Sampling


def row_sampler(sampling: Sampling, keys: list[str]) -> LogitsProcessorList:
    """Processors for temperature, top-p and a draw per row; empty (greedy) at temperature 0."""
    if sampling.temperature == 0:
        return LogitsProcessorList()
    return LogitsProcessorList(
        [
            TemperatureLogitsWarper(sampling.temperature),
            TopPLogitsWarper(sampling.top_p),
            RowSampler(sampling.seed, keys),
        ]
    )


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
