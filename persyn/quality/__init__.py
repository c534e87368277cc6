"""Quality: how good a response is, by a method that fits its domain. Higher is better; scales differ by method."""

import functools
import logging
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import polars as pl
from pydantic import AfterValidator, Field, model_validator
from tqdm import tqdm

from persyn.errors import InputError, did_you_mean
from persyn.generation import Teacher
from persyn.generation.budget import Budget
from persyn.generation.openai import OpenAISpeed
from persyn.generation.precomputed import read_scores
from persyn.messages import as_text
from persyn.quality.judge import JudgeSettings, Verdicts, count_verdicts, judge_scores
from persyn.quality.reward_model import RewardModelSettings, RewardModelSpeed, reward_model_scores
from persyn.schemas import QUALITY, Domain, alike
from persyn.settings import Misfit, Settings, shown
from persyn.verifiers import is_right_answer, share_of_checks
from persyn.verifiers.execution import passes_tests

VERIFIERS = {"checkers": share_of_checks, "math_verify": is_right_answer}
logger = logging.getLogger(__name__)


def quality_methods() -> list[str]:
    """The methods that `quality.methods` may name: the verifiers, two that use models, and scores that exist."""
    return [*VERIFIERS, "unit_tests", "reward_model", "judge", "given"]


def _known_method(name: str) -> str:
    known = quality_methods()
    if name not in known:
        raise ValueError(f"is {shown(name)}; it must be one of {', '.join(known)}{did_you_mean(name, known)}")
    return name


Method = Annotated[
    str,
    AfterValidator(_known_method),
    Field(json_schema_extra=lambda schema: schema.update(enum=list[Any](quality_methods()))),
]


class QualitySettings(Settings):
    """The section `quality`: how good a response is, by a method for each domain."""

    methods: dict[Domain, Method]
    """Domain -> checkers (share of the constraints in `reference` that hold), math_verify (1 if the final answer equals
    `reference`, else 0), unit_tests (1 if the code passes the tests in `reference`, else 0), reward_model (the scalar
    of a sequence-classification model), judge (a language model's grade) or given (the score that the response has in
    its teacher's `precomputed`; every teacher needs one)."""
    reward_model: RewardModelSettings | None = None
    """Needed by the method reward_model."""
    judge: JudgeSettings | None = None
    """Needed by the method judge."""

    @model_validator(mode="after")
    def _has_what_methods_need(self) -> Self:
        for method in ("reward_model", "judge"):
            if method in self.methods.values() and getattr(self, method) is None:
                raise Misfit(method, "is null, but methods names it; it must be a mapping, such as {model: ...}")
        return self

    @property
    def scales(self) -> dict[str, tuple[float, float]]:
        """Domain -> its lowest and highest quality. A reward model's scores and given ones have none that are known."""
        ends = dict.fromkeys((*VERIFIERS, "unit_tests"), (0.0, 1.0))
        if self.judge and self.judge.lowest < self.judge.highest:
            ends["judge"] = (self.judge.lowest, self.judge.highest)
        return {domain: ends[method] for domain, method in self.methods.items() if method in ends}

    @property
    def at_once(self) -> int | None:
        """Prompts whose responses are scored in one call; None: any number. `given` reads its data sets in each call,
        and looks whether a teacher has any score: it gets all of them at once.
        """
        return 2**40 if "given" in self.methods.values() else None


class QualitySpeed(NamedTuple):
    """How fast scores come; they are the same."""

    judge: OpenAISpeed = OpenAISpeed()
    """The knobs of the judge's server."""
    reward_model: RewardModelSpeed = RewardModelSpeed()


def score_quality(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    folder: Path,
    settings: QualitySettings,
    speed: QualitySpeed | None = None,
    budget: Budget | None = None,
    teachers: Mapping[str, Teacher] | None = None,
    counts: dict[str, Any] | None = None,
) -> pl.DataFrame:
    """Score every response by the method of its prompt's domain. Errors have no score. A score that is not finite is
    left out with a warning. A prompt without a score is left out of the rewards.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES, each prompt_id in `prompts`.
        folder: the response store, which keeps the scores of reward models and the verdicts of judges.
        speed: None takes the defaults.
        budget: tokens that may be paid for; None sets no limit.
        teachers: name -> teacher of these responses, for the method given.
        counts: receives what the scores took: {judge: Verdicts.use, reward_model: {responses, cut}}, summed over the
            domains; without a method that was not used.

    Returns:
        QUALITY.

    Raises:
        InputError: a domain has no method, a reference it needs is missing or malformed, or no response of a teacher
            has the score that the method given needs.
    """
    written = responses.filter(pl.col("finish_reason") != "error")
    rows = written.join(prompts, on="prompt_id", how="left", validate="m:1").sort("prompt_id")
    parts = []
    for domain in rows["domain"].unique().sort().to_list():
        method, part = settings.methods.get(domain), rows.filter(pl.col("domain") == domain)
        if method is None:
            raise InputError(f"quality.methods.{domain} is missing; it must be one of {', '.join(quality_methods())}")
        if method == "reward_model" and settings.reward_model:
            cut: dict[str, Any] = {}
            knobs = (speed or QualitySpeed()).reward_model
            scores: Sequence[float | None] = reward_model_scores(part, folder, settings.reward_model, knobs, cut)
            _count(counts, method, cut)
        elif method == "judge" and settings.judge:
            found = Verdicts()
            scores = judge_scores(part, folder, (speed or QualitySpeed()).judge, budget, settings.judge, found)
            _count(counts, method, found.use)
        elif method == "given":
            scores = _given(part, teachers or {})
        else:
            scores = _verified(part, method)
        parts.append(part.select("prompt_id", "teacher", pl.Series("quality", scores, pl.Float64), pl.col("^sample$")))
    scored = pl.concat(parts or [QUALITY.to_frame()]).sort("prompt_id")
    broken = scored.filter(~pl.col("quality").is_finite())
    if broken.height:
        logger.warning("%d scores are not finite and left out, first %s", broken.height, broken.rows()[:3])
    return scored.filter(pl.col("quality").is_finite())


def judge_ledger(
    prompts: pl.DataFrame, responses: Sequence[pl.DataFrame], folder: Path, settings: QualitySettings
) -> dict[str, int] | None:
    """As count_verdicts, of the domains with a judge; None if there is none.

    Args:
        prompts: PROMPTS.
        responses: tables of RESPONSES, which may share rows.
    """
    judged = [domain for domain, method in settings.methods.items() if method == "judge"]
    if not judged or settings.judge is None:
        return None
    mine = prompts.filter(pl.col("domain").cast(pl.String).is_in(judged))
    return count_verdicts(mine, pl.concat(alike(responses)), folder, settings.judge)


def _count(counts: dict[str, Any] | None, method: str, more: Mapping[str, int]) -> None:
    """Add to the counts of a method."""
    if counts is not None:
        before = counts.get(method, {})
        counts[method] = {name: before.get(name, 0) + number for name, number in more.items()}


def _given(rows: pl.DataFrame, teachers: Mapping[str, Teacher]) -> list[float | None]:
    """The scores in the teachers' precomputed data sets, row by row; None where there is none."""
    scores: dict[tuple[str, str, str], float] = {}
    for name in rows["teacher"].unique().sort():
        source = teachers[name].precomputed if name in teachers else None
        if source is None:
            raise InputError(
                f"teachers.{name}.precomputed is null, whose score the quality method given needs; name a data set"
            )
        wanted = set(rows.filter(teacher=name).select("prompt_id", "response").rows())
        scores |= {(name, *key): score for key, score in read_scores(wanted, name, source).items()}
    return [scores.get(key) for key in rows.select("teacher", "prompt_id", "response").rows()]


def _verified(rows: pl.DataFrame, method: str) -> list[float]:
    """The scores of a verifier, row by row; unit tests run in parallel on all processors."""
    without = rows.filter(pl.col("reference").is_null())
    if without.height:
        raise InputError(
            f"prompt {without['prompt_id'][0]} has no reference, which {method} needs; name its column as `reference` "
            f"in prompts.sources, or choose the method reward_model or judge"
        )
    asked = [as_text(prompt) for prompt in rows["prompt"].to_list()]
    columns = asked, rows["response"].to_list(), rows["reference"].to_list()
    bar = functools.partial(tqdm, total=rows.height, desc=f"quality by {method}", unit="response")
    if method == "unit_tests":
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return list(bar(pool.map(passes_tests, *columns)))
    return list(bar(map(VERIFIERS[method], *columns)))
