"""Quality: how good a response is, by a method that fits its domain. Higher is better; scales differ by method."""

import functools
import logging
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.errors import InputError, check_keys
from persyn.generation.budget import Budget
from persyn.quality.judge import judge_scores
from persyn.quality.reward_model import reward_model_scores
from persyn.schemas import QUALITY
from persyn.verifiers import is_right_answer, share_of_checks
from persyn.verifiers.execution import passes_tests

VERIFIERS = {"checkers": share_of_checks, "math_verify": is_right_answer}
logger = logging.getLogger(__name__)


def score_quality(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    folder: Path,
    speed: Mapping[str, Any] | None = None,
    budget: Budget | None = None,
    *,
    methods: Mapping[str, str],
    reward_model: Mapping[str, Any] | None = None,
    judge: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Score every response by the method of its prompt's domain. An error has no score, nor has a response whose
    score is not a finite number (which is warned of): their prompts take no part in what follows.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of one teacher, each prompt_id in `prompts`.
        folder: the response store, which keeps what a reward model or a judge said.
        speed: the knobs of the server that the judge is behind.
        budget: tokens that the judge may be paid for; None sets no limit.
        methods: domain -> checkers (share of the constraints in `reference` that hold), math_verify (1 if the final
            answer equals `reference`, else 0), unit_tests (1 if the code passes the tests in `reference`, else 0),
            reward_model (the scalar of a sequence-classification model) or judge (a language model's grade).
        reward_model: the arguments of reward_model_scores, needed by the method of that name.
        judge: the arguments of judge_scores, needed by the method of that name.

    Returns:
        QUALITY.

    Raises:
        InputError: a domain has no method, a method is unknown, or a reference it needs is missing or malformed.
    """
    answered = responses.filter(pl.col("finish_reason") != "error")
    rows = answered.join(prompts, on="prompt_id", how="left", validate="m:1").sort("prompt_id")
    known = (*VERIFIERS, "unit_tests", "reward_model", "judge")
    parts = []
    for domain in rows["domain"].unique().sort().to_list():
        method, part = methods.get(domain), rows.filter(pl.col("domain") == domain)
        if method not in known:
            raise InputError(f"quality.methods.{domain} is {method!r}; it must be one of {', '.join(known)}")
        if method == "reward_model":
            check_keys("quality.reward_model", reward_model or {}, reward_model_scores)
            scores = reward_model_scores(part, folder, **reward_model or {})
        elif method == "judge":
            check_keys("quality.judge", judge or {}, judge_scores)
            scores = judge_scores(part, folder, speed or {}, budget, **judge or {})
        else:
            scores = _verified(part, method)
        parts.append(part.select("prompt_id", "teacher", quality=pl.Series(scores, dtype=pl.Float64)))
    scored = pl.concat([QUALITY.to_frame(), *parts]).sort("prompt_id")
    broken = scored.filter(~pl.col("quality").is_finite())
    if broken.height:
        logger.warning("%d scores are not finite and left out, first %s", broken.height, broken.rows()[:3])
    return scored.filter(pl.col("quality").is_finite())


def _verified(rows: pl.DataFrame, method: str) -> list[float]:
    """The scores of a verifier, row by row; unit tests run at once on all processors."""
    without = rows.filter(pl.col("reference").is_null())
    if without.height:
        raise InputError(
            f"prompt {without['prompt_id'][0]} has no reference, which {method} needs; name its column as `reference` "
            f"in prompts.sources, or choose the method reward_model or judge"
        )
    columns = [rows[column].to_list() for column in ("prompt", "response", "reference")]
    bar = functools.partial(tqdm, total=rows.height, desc=f"quality by {method}", unit="response")
    if method == "unit_tests":
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(bar(pool.map(passes_tests, *columns)))
    return list(bar(map(VERIFIERS[method], *columns)))
