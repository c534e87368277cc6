"""Intervals: estimates (low, high) of what calls to a teacher will take, from its responses so far."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from persyn.files import cache_folder
from persyn.models.packaged import PACKAGED

Interval = tuple[float, float]
LEVEL = 0.95
SHORTEST_SHARE = 1 / 16  # of max_tokens: lower bound of the mean response of a teacher without any responses yet
TOKENS_A_SECOND = (35_000.0, 157_000.0)  # per H100 and billion of parameters
FASTEST = (4_600.0, 12_500.0)  # tokens a second of a small model on an H100


@dataclass(frozen=True)
class Use:
    """What some calls will take. Each number is an interval."""

    calls: Interval = (0, 0)
    prompt_tokens: Interval = (0, 0)
    response_tokens: Interval = (0, 0)
    gpu_hours: Interval | None = (0, 0)
    """On an H100, for teachers that run here; None if a size is unknown."""
    disk: Interval = (0, 0)
    """Bytes."""
    money: Interval | None = None
    """None if there is no price."""


def add(uses: Sequence[Use]) -> Use:
    """The sum, end by end. Unknown (None) values are left out."""
    return _combine([Use(), *uses], sum, sum)


def either(uses: Sequence[Use]) -> Use:
    """An unknown one of them: from the lowest low end to the highest high end."""
    return _combine(uses, min, max)


def lower(one: Use, other: Use) -> Use:
    """The smaller of each end."""
    return _combine([one, other], min, min)


def between(least: Use, most: Use) -> Use:
    """From the low ends of `least` to the high ends of `most`."""
    return _combine([least, most], lambda ends: ends[0], lambda ends: ends[-1])


def _combine(uses: Sequence[Use], low: Callable[..., float], high: Callable[..., float]) -> Use:
    combined: dict[str, Any] = {}
    for name in Use.__dataclass_fields__:
        known = [value for use in uses if (value := getattr(use, name)) is not None]
        combined[name] = (low([v[0] for v in known]), high([v[1] for v in known])) if known else None
    return Use(**combined)


def predicted_sum(known: np.ndarray, seen: np.ndarray, new: np.ndarray, alike: bool = False) -> Interval:
    """Prediction interval of the sum of new y, from an ordinary least-squares fit to the y seen so far.

    With X the predictors of the n seen, w the sum of the N new predictors, s^2 the residual variance and t of n - p
    degrees of freedom at LEVEL: w b plus or minus t s sqrt(N + w (X'X)^-1 w'). For a mean alone (p = 1, all ones) the
    root is sqrt(N + N^2 / n).

    Args:
        known: (n, p), n > p.
        seen: (n,).
        new: (N, p).
        alike: whether the errors of the new ones are equal instead of independent: N^2 then replaces N under the root.
    """
    inverse, w = np.linalg.pinv(known.T @ known), new.sum(axis=0)
    fit = inverse @ known.T @ seen
    freedom = len(seen) - known.shape[1]
    deviation = math.sqrt(((seen - known @ fit) ** 2).sum() / freedom)
    half = (
        stats.t.ppf((1 + LEVEL) / 2, freedom) * deviation * math.sqrt(len(new) ** (2 if alike else 1) + w @ inverse @ w)
    )
    return float(w @ fit - half), float(w @ fit + half)


def response_tokens(lengths: np.ndarray, count: int, max_tokens: int) -> Interval:
    """Response tokens of `count` new responses, within the possible: one token to max_tokens each, or more if more was
    seen: some servers count thoughts that they do not limit.

    Lengths are skewed and cut at max_tokens, so a few say little about the far end: predicted_sum alone, from four
    demo responses, held the truth in 70 to 97 % of draws. Each end therefore adds one response to those seen: the high
    end one twice as long as the longest; the low end, if one was cut, one of a single token (tests/test_intervals.py
    measures the coverage). Fewer than two seen say nothing, but for one above max_tokens, which raises the high end.
    """
    longest = float(lengths.max(initial=0))
    most = max_tokens if longest <= max_tokens else 2 * longest
    if len(lengths) < 2:
        return count * max(1.0, SHORTEST_SHARE * max_tokens), float(count * most)

    def interval(seen: np.ndarray) -> Interval:
        return predicted_sum(np.ones((len(seen), 1)), seen, np.ones((count, 1)))

    low = interval(np.append(lengths, 1) if longest >= max_tokens else lengths)[0]
    high = interval(np.append(lengths, min(most, 2 * longest)))[1]
    return float(np.clip(low, count, count * most)), float(np.clip(high, count, count * most))


def gpu_hours(tokens: Interval, size: float) -> Interval:
    """Hours of one H100 to generate these response tokens by a model of `size` billions of parameters.

    Decoding is bound by reading the weights, so tokens per second are about K / size. The ends of K are two published
    numbers for one model, Llama-3.1-405B in FP8 on 8 H100s: 700 tokens/s (github.com/vllm-project/vllm/issues/8244) and
    3,100 (vLLM's blog), times 405 / 8. Small models do not scale further: the caps are Llama-3.1-8B's 12,500 tokens/s
    (a survey of 2026, short prompts), and half the 9,200 of SmolLM2-1.7B (FinePhrase, Hugging Face 2026: "about half in
    practice"). Qwen3-8B's 5,409 (vllm#25915) lies between. Those runs include prompts, which are not counted again.
    """
    slow, fast = (min(k / size, cap) for k, cap in zip(TOKENS_A_SECOND, FASTEST, strict=True))
    return tokens[0] / fast / 3600, tokens[1] / slow / 3600


def weight_files(model: str) -> list[Path]:
    """The safetensors files of a local or packaged model; none if it is not on this machine (yet)."""
    packaged = PACKAGED.get(model.removeprefix("packaged:")) if model.startswith("packaged:") else None
    if packaged:
        return sorted((cache_folder() / "models").glob(f"*-{packaged.sha256[:12]}/*.safetensors"))
    return sorted(Path(model).glob("*.safetensors")) if Path(model).is_dir() else []


def count_parameters(model: str) -> float | None:
    """Billions of parameters, from the headers of the model's safetensors files; None if it is not here."""
    from safetensors import safe_open

    total = 0
    for file in weight_files(model):
        with safe_open(file, framework="numpy") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    return total / 1e9 or None


def size_in_name(model: str) -> float | None:
    """Billions of parameters in a model's name: Qwen2.5-7B 7, Mixtral-8x7B 56, smollm2-135m 0.135."""
    found = re.search(r"(?<![a-z0-9.])(?:(\d+)x)?(\d+(?:\.\d+)?)([bm])(?![a-z0-9])", model.lower().rpartition("/")[2])
    if not found:
        return None
    experts, number, unit = found.groups()
    return int(experts or 1) * float(number) * (1 if unit == "b" else 1e-3)
