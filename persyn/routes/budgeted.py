"""Budgeted routes: the strongest teachers within a limit on response tokens.

Legend: N prompts, M teachers.
"""

import logging
import math
from collections.abc import Sequence

import numpy as np
import polars as pl

from persyn.errors import InputError

logger = logging.getLogger(__name__)


def expected_tokens(prompts: pl.DataFrame, responses: pl.DataFrame, teachers: Sequence[str]) -> np.ndarray:
    """The response tokens that each teacher is expected to cost on each prompt.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of all teachers to the parallel set.

    Returns:
        (N, M) in the order of `prompts` and `teachers`: 0 if the teacher's response exists already, else its mean
        response tokens over the parallel prompts of the prompt's domain (over all, if it has none there).

    Raises:
        InputError: a teacher has no response at all.
    """
    written = responses.filter(pl.col("finish_reason") != "error")
    written = written.group_by("prompt_id", "teacher").agg(pl.col("num_response_tokens").sum())  # of all samples
    lengths = written.join(prompts.select("prompt_id", "domain"), on="prompt_id", how="left", validate="m:1")
    means = lengths.group_by("teacher").agg(pl.col("num_response_tokens").mean())
    overall = dict(means.rows())
    by_domain = lengths.group_by("teacher", "domain").agg(pl.col("num_response_tokens").mean())
    mean = {(name, domain): tokens for name, domain, tokens in by_domain.rows()}
    silent = [name for name in teachers if name not in overall]
    if silent:
        raise InputError(f"{', '.join(silent)} have no responses to parallel prompts, so no known length; exclude them")
    columns = []
    for name in teachers:
        paid = prompts["prompt_id"].is_in(written.filter(pl.col("teacher") == name)["prompt_id"].to_list())
        lengths_here = np.array([mean.get((name, domain), overall[name]) for domain in prompts["domain"]], float)
        columns.append(np.where(paid.to_numpy(), 0.0, lengths_here))
    return np.stack(columns, axis=1)


def choose(strengths: np.ndarray, tokens: np.ndarray, undecided: np.ndarray, weight: float = 0.0) -> np.ndarray:
    """Per prompt the teacher of the largest o_m - weight * c_m, and also the next one if it is undecided.

    Args:
        strengths: o, (N, M).
        tokens: c, (N, M).
        undecided: (N,), bool.

    Returns:
        (N, M), bool: one True a row, two where undecided.
    """
    value = strengths - weight * tokens
    rows = np.arange(len(value))
    chosen = np.zeros(value.shape, bool)
    chosen[rows, value.argmax(axis=1)] = True
    rest = np.where(chosen, -np.inf, value)
    chosen[rows[undecided], rest[undecided].argmax(axis=1)] = True
    return chosen


def choose_within(
    strengths: np.ndarray, tokens: np.ndarray, undecided: np.ndarray, max_tokens: float
) -> tuple[np.ndarray, float]:
    """`choose` at the smallest weight, 0 or more, at which the expected tokens are at most `max_tokens`.

    The choice maximises sum(o) - weight * sum(c), so its tokens only fall as the weight grows, and no choice with as
    few tokens has larger strengths in sum (a Lagrange multiplier: Everett 1963, doi 10.1287/opre.11.3.399). The weight
    is found by bisection, to the last bit.

    Args:
        strengths: (N, M).
        tokens: (N, M), expected response tokens.
        undecided: (N,), bool: which prompts need two teachers.

    Returns:
        As choose, and the weight in strength per token.

    Raises:
        InputError: even the shortest teachers exceed `max_tokens`.
    """

    def total(weight: float) -> float:
        return math.fsum(tokens[choose(strengths, tokens, undecided, weight)])

    shortest = math.fsum(tokens[choose(np.zeros_like(tokens), tokens, undecided, 1.0)])
    if shortest > max_tokens:
        raise InputError(
            f"rule persyn.max_tokens is {max_tokens}; the shortest teachers alone are expected to need "
            f"{shortest:,.0f} response tokens: raise it, or add a shorter teacher"
        )
    low, high = 0.0, 0.0
    if (unlimited := total(0.0)) > max_tokens:
        high = 1e-6
        while total(high) > max_tokens:
            low, high = high, 2 * high
        while low < (middle := (low + high) / 2) < high:
            low, high = (middle, high) if total(middle) > max_tokens else (low, middle)
    logger.info(
        "%s response tokens are expected (%s without max_tokens), at a weight of %.6g strength per token",
        *(f"{total(high):,.0f}", f"{unlimited:,.0f}", high),
    )
    return choose(strengths, tokens, undecided, high), high
