"""Routes: every prompt gets its teacher, by a strategy. A new strategy is one function and one row of params."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from persyn.errors import InputError, check_keys
from persyn.routes.budgeted import choose, choose_within, expected_tokens
from persyn.schemas import ROUTES

Predict = Callable[[list[str]], np.ndarray]


@dataclass(frozen=True)
class Pool:
    """What a rule may look at, beside the prompts."""

    teachers: Sequence[str]
    """Their names, in the order of the router's strengths."""
    rewards: pl.DataFrame
    """REWARDS of the parallel set."""
    predict: Predict
    """Prompt texts -> strengths (N, M); loads the router, so only a rule that needs it calls it."""
    families: Mapping[str, str | None]
    """Teacher -> the family of models it is of."""
    student_family: str | None = None
    responses: Callable[[], Mapping[str, pl.DataFrame]] | None = None
    """Teacher -> RESPONSES to the parallel set; called only by a rule that needs their lengths."""


def build_routes(prompts: pl.DataFrame, pool: Pool, strategy: Mapping[str, Any]) -> pl.DataFrame:
    """Give every prompt its teacher, or two where the rule says so.

    Args:
        prompts: PROMPTS.
        pool: the teachers and what is known of them.
        strategy: `rule`, a key of RULES, and that rule's own arguments.

    Returns:
        ROUTES.

    Raises:
        InputError: the rule, one of its arguments or a teacher it names is wrong, or what it needs is not there.
    """
    arguments = dict(strategy)
    rule = arguments.pop("rule", None)
    if rule not in RULES:
        raise InputError(f"strategy rule {rule!r} is not one of {', '.join(RULES)}")
    check_keys(f"rule {rule}", arguments, RULES[rule])
    ordered = prompts.sort("prompt_id")
    chosen = RULES[rule](ordered, pool, **arguments)
    _known(chosen["teacher"].to_list(), pool, rule)
    return chosen


def persyn(
    prompts: pl.DataFrame,
    pool: Pool,
    *,
    exclude: Sequence[str] = (),
    max_tokens: float | None = None,
    second_below: float | None = None,
) -> pl.DataFrame:
    """The router's choice: m* = argmax_m o_m, over the teachers that are not excluded. The router stays as it was
    trained, so the prompts of an excluded teacher go to the next best one.

    Args:
        max_tokens: response tokens that the choice may be expected to be paid for: answers of the parallel set cost
            nothing, others their teacher's mean in the domain (frugal.expected_tokens). The choice is then
            argmax_m(o_m - weight * c_m) at the smallest weight that keeps them (frugal.choose_within).
        second_below: where the strongest teacher's margin over the next is less, the prompt goes to two.
    """
    _known(exclude, pool, "persyn")
    kept = [position for position, name in enumerate(pool.teachers) if name not in exclude]
    if not kept:
        raise InputError(f"rule persyn.exclude names all {len(pool.teachers)} teachers; leave at least one")
    names = [pool.teachers[position] for position in kept]
    strengths = pool.predict(prompts["prompt"].to_list())[:, kept]
    ranked = np.sort(strengths, axis=1)[:, ::-1]
    undecided = np.zeros(prompts.height, bool)
    if second_below is not None and len(kept) > 1:
        undecided = ranked[:, 0] - ranked[:, 1] < second_below
    if max_tokens is None:
        chosen = choose(strengths, np.zeros(strengths.shape), undecided)
    elif pool.responses is None:
        raise InputError("rule persyn.max_tokens needs the parallel set's responses, for the teachers' lengths")
    else:
        tokens = expected_tokens(prompts, pl.concat(pool.responses().values()), names)
        chosen, _ = choose_within(strengths, tokens, undecided, max_tokens)
    rows, columns = np.nonzero(chosen)
    strength, best = strengths[rows, columns], columns == strengths.argmax(axis=1)[rows]
    margin = strength - np.where(best, ranked[rows, 1], ranked[rows, 0]) if len(kept) > 1 else None
    return _routes(prompts[rows], [names[column] for column in columns], strength, margin)


def strong(prompts: pl.DataFrame, pool: Pool, *, teacher: str | None = None) -> pl.DataFrame:
    """The strongest teacher answers everything: the named one, else that of the highest mean quality."""
    return _routes(prompts, [teacher or _best(pool.rewards, pl.col("quality").mean())] * prompts.height)


def family_strong(prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """The teacher of the highest mean quality among the student's own family answers everything."""
    members = [name for name in pool.teachers if pool.families[name] == pool.student_family is not None]
    if not members:
        raise InputError(
            f"rule family_strong: student.family is {pool.student_family!r}, the teachers' families are "
            f"{sorted({str(family) for family in pool.families.values()})}; name one of them as student.family"
        )
    own = pool.rewards.filter(pl.col("teacher").is_in(members))
    return _routes(prompts, [_best(own, pl.col("quality").mean())] * prompts.height)


def mix(
    prompts: pl.DataFrame,
    pool: Pool,
    *,
    strong: str | None = None,
    weak: str | None = None,
    strong_share: float = 0.2,
    seed: int = 0,
) -> pl.DataFrame:
    """A random mixture of a strong and a weak teacher, 1:4 (arXiv 2502.12143): exactly that share of the prompts.

    Who is not named is the teacher of the highest, or of the lowest, mean quality.
    """
    if not 0 <= strong_share <= 1:
        raise InputError(f"rule mix.strong_share is {strong_share}; it must be from 0 to 1")
    strong = strong or _best(pool.rewards, pl.col("quality").mean())
    weak = weak or _best(pool.rewards, -pl.col("quality").mean())
    lots = np.random.default_rng(seed).permutation(prompts.height)
    return _routes(prompts, [strong if lot < round(strong_share * prompts.height) else weak for lot in lots])


def car(prompts: pl.DataFrame, pool: Pool, *, beta: float = 3.0) -> pl.DataFrame:
    """ONE teacher for all: argmax of mean quality / (1 + beta * mean student loss), the Compatibility-Adjusted Reward
    (arXiv 2411.07133; its beta could not be verified). The loss is minus the learnability, so learnability.method must
    be mean_logprob. Where a quality is negative, all are shifted so that the lowest is 0.
    """
    lowest = min(pool.rewards["quality"].min(), 0.0)  # type: ignore[type-var]
    adjusted = (pl.col("quality") - lowest).mean() / (1 - beta * pl.col("learnability").mean())
    return _routes(prompts, [_best(pool.rewards, adjusted)] * prompts.height)


def best_single(prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
    """The one teacher of the highest mean reward answers everything: the control of any routing."""
    return _routes(prompts, [_best(pool.rewards, pl.col("reward").mean())] * prompts.height)


def oracle(prompts: pl.DataFrame, pool: Pool, *, seed: int = 0) -> pl.DataFrame:
    """Generate then select: per prompt the response of the highest reward (Eq. 2)."""
    return _select(prompts, pool, "reward", seed)


def grape(prompts: pl.DataFrame, pool: Pool, *, seed: int = 0) -> pl.DataFrame:
    """Generate then select: per prompt the response likeliest under the student (arXiv 2502.04194): alpha = 1."""
    return _select(prompts, pool, "learnability", seed)


def best_quality(prompts: pl.DataFrame, pool: Pool, *, seed: int = 0) -> pl.DataFrame:
    """Generate then select: per prompt the response of the highest quality: alpha = 0."""
    return _select(prompts, pool, "quality", seed)


def random(prompts: pl.DataFrame, pool: Pool, *, seed: int = 0) -> pl.DataFrame:
    """A teacher drawn uniformly for each prompt: the control."""
    drawn = np.random.default_rng(seed).integers(len(pool.teachers), size=prompts.height)
    return _routes(prompts, [pool.teachers[position] for position in drawn])


RULES: dict[str, Callable[..., pl.DataFrame]] = {
    rule.__name__: rule
    for rule in (persyn, strong, family_strong, mix, car, best_single, oracle, grape, best_quality, random)
}


def allocation(routes: pl.DataFrame, teachers: Sequence[str]) -> dict[str, Any]:
    """The share of the routes of every teacher (0 included) and the entropy of the shares in nats."""
    counts = Counter(routes["teacher"])
    shares = {teacher: counts[teacher] / routes.height for teacher in teachers}
    entropy = -sum(share * np.log(share) for share in shares.values() if share)
    return {"prompts": routes["prompt_id"].n_unique(), "entropy": float(entropy) + 0.0, "share": shares}


def _best(rewards: pl.DataFrame, score: pl.Expr) -> str:
    """The teacher of the highest score; of equals the first by name."""
    scores = rewards.group_by("teacher").agg(score=score)
    return scores.sort("score", "teacher", descending=[True, False])["teacher"][0]


def _select(prompts: pl.DataFrame, pool: Pool, column: str, seed: int) -> pl.DataFrame:
    """Per prompt the teacher of the largest value; equals are drawn by lot, or the order of names would choose.

    A parallel prompt that has no rewards (a score was missing) goes to the best single teacher.
    """
    not_parallel = prompts.filter(~pl.col("parallel")).height
    if not_parallel:
        raise InputError(
            f"generate-then-select needs every teacher's answer to every prompt, {not_parallel} of {prompts.height} "
            f"are not parallel; set prompts.num_parallel to null, or leave this strategy out"
        )
    rows = pool.rewards.sort("prompt_id", "teacher")
    rows = rows.with_columns(lot=np.random.default_rng(seed).random(rows.height))
    best = rows.sort("prompt_id", column, "lot").group_by("prompt_id").last().select("prompt_id", "teacher")
    chosen = prompts.select("prompt_id").join(best, on="prompt_id", how="left", validate="1:1", maintain_order="left")
    fallback = _best(pool.rewards, pl.col("reward").mean())
    return _routes(prompts, chosen["teacher"].fill_null(fallback).to_list())


def _known(names: Sequence[str], pool: Pool, rule: str) -> None:
    unknown = set(names) - set(pool.teachers)
    if unknown:
        raise InputError(f"strategy rule {rule} chose {', '.join(sorted(unknown))}; known: {', '.join(pool.teachers)}")


def _routes(
    prompts: pl.DataFrame, teacher: list[str], strength: np.ndarray | None = None, margin: np.ndarray | None = None
) -> pl.DataFrame:
    """ROUTES, row by row of `prompts`."""
    columns = {"teacher": teacher, "strength": strength, "margin": margin}
    series = [
        pl.Series(name, [None] * len(teacher) if values is None else list(map(_plain, values)), dtype=ROUTES[name])
        for name, values in columns.items()
    ]
    return prompts.select("prompt_id").hstack(series).select(ROUTES.names())


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
