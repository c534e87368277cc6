"""Routes: a strategy gives every prompt its teacher. A new rule is one class, added to Strategy."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from persyn.errors import InputError
from persyn.router.settings import Method
from persyn.routes.budgeted import choose, choose_within, expected_tokens
from persyn.schemas import NEXT, ROUTES, Domain
from persyn.settings import Seed, Settings, Share
from persyn.ties import tie_width

logger = logging.getLogger(__name__)
Predict = Callable[[pl.DataFrame, Method | None], np.ndarray]
QUALITY = pl.col("quality")
Z_SCORE = QUALITY.mean(), QUALITY.std(ddof=0)
MIN_MAX = QUALITY.min(), QUALITY.max() - QUALITY.min()


@dataclass(frozen=True)
class Pool:
    """The inputs of a rule beside the prompts."""

    teachers: Sequence[str]
    """Their names, in the order of the router's strengths."""
    rewards: pl.DataFrame
    """REWARDS of the parallel set."""
    predict: Predict
    """The prompts and a method (None: the router itself) -> strengths (N, M). It loads the router: call it only in
    rules that need it."""
    families: Mapping[str, str | None]
    """Teacher -> its family of models."""
    student_family: str | None = None
    responses: Callable[[], Mapping[str, pl.DataFrame]] | None = None
    """Teacher -> RESPONSES to the parallel set, for rules that need their lengths."""
    with_next: bool = False
    """Whether the routes get a last column `next`: the other teachers in the order in which they may be asked again."""
    unfit: pl.DataFrame | None = None
    """prompt_id and teacher of the responses to the parallel set that the student may not be trained on, since each
    sample has a defect that is dropped. Rules that select among responses take another where there is one."""


class Rule(Settings):
    """A strategy of params.yaml, which gives every prompt its teacher. `rule` names the kind."""

    rule: str

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES of `prompts`, which are sorted by prompt_id."""
        raise NotImplementedError


class Persyn(Rule):
    """The router's choice: m* = argmax_m o_m, over the teachers that are not excluded. The router is not retrained:
    prompts of an excluded teacher go to the next best one.
    """

    rule: Literal["persyn"]
    router: Method | None = None
    """Route by this method, one of router.beside; null and router.method are the router itself."""
    exclude: list[str] = Field(default_factory=list)
    """Teachers that get no prompt."""
    max_tokens: Annotated[float, Field(ge=0)] | None = None
    """Limit on the expected response tokens c_m to pay for: 0 for responses in the parallel set, for others their
    teacher's mean in the domain (budgeted.expected_tokens). The choice is then argmax_m(o_m - weight * c_m) at the
    smallest weight that keeps the limit (budgeted.choose_within)."""
    second_below: float | None = None
    """A prompt on which the strongest teacher leads the next by less than this goes to both."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES with strengths and margins, two rows a prompt where it is undecided."""
        _known(self.exclude, pool, "persyn")
        kept = [position for position, name in enumerate(pool.teachers) if name not in self.exclude]
        if not kept:
            raise InputError(f"rule persyn.exclude names all {len(pool.teachers)} teachers; leave at least one")
        names = [pool.teachers[position] for position in kept]
        strengths = pool.predict(prompts, self.router)[:, kept]
        ranked = np.sort(strengths, axis=1)[:, ::-1]
        undecided = np.zeros(prompts.height, bool)
        if self.second_below is not None and len(kept) > 1:
            undecided = ranked[:, 0] - ranked[:, 1] < self.second_below
        if self.max_tokens is None:
            chosen = choose(strengths, np.zeros(strengths.shape), undecided)
        elif pool.responses is None:
            raise InputError("rule persyn.max_tokens needs the parallel set's responses, for the teachers' lengths")
        else:
            tokens = expected_tokens(prompts, pl.concat(pool.responses().values()), names)
            chosen, _ = choose_within(strengths, tokens, undecided, self.max_tokens)
        rows, columns = np.nonzero(chosen)
        strength, best = strengths[rows, columns], columns == strengths.argmax(axis=1)[rows]
        margin = strength - np.where(best, ranked[rows, 1], ranked[rows, 0]) if len(kept) > 1 else None
        routes = _routes(prompts[rows], [names[column] for column in columns], strength, margin)
        if not pool.with_next:
            return routes
        order = np.array(names)[np.argsort(-strengths, axis=1, kind="stable")[rows]]
        return routes.with_columns(next=pl.Series(order.tolist(), dtype=NEXT))


class Strong(Rule):
    """The strongest teacher for all prompts.

    Where prompts are of several domains, quality counts as its z-score over all responses of its domain, since scales
    differ by method; so too in family_strong and mix.
    """

    rule: Literal["strong"]
    teacher: str | None = None
    """Its name; null is the teacher of the highest mean quality."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to one teacher."""
        return _routes(prompts, [self.teacher or _strongest(pool.rewards, prompts)] * prompts.height)


class FamilyStrong(Rule):
    """For all prompts, the teacher of the highest mean quality (see strong) in the student's own family."""

    rule: Literal["family_strong"]

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to one teacher."""
        members = [name for name in pool.teachers if pool.families[name] == pool.student_family is not None]
        if not members:
            raise InputError(
                f"rule family_strong: student.family is {pool.student_family!r}, the teachers' families are "
                f"{sorted({str(family) for family in pool.families.values()})}; name one of them as student.family"
            )
        return _routes(prompts, [_strongest(pool.rewards, prompts, members)] * prompts.height)


class Mix(Rule):
    """A random mixture of a strong and a weak teacher, 1:4 (arXiv 2502.12143), with exactly these shares.

    Defaults: the teachers of highest and lowest mean quality.
    """

    rule: Literal["mix"]
    strong: str | None = None
    """The strong teacher; null is that of the highest mean quality."""
    weak: str | None = None
    """The weak teacher; null is that of the lowest mean quality."""
    strong_share: Share = 0.2
    """The strong teacher's share of the prompts."""
    seed: Seed = 0
    """Of the draw."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to two teachers."""
        scores = _by_domain(pool.rewards, prompts, *Z_SCORE)
        strong = self.strong or _best(scores, pl.col("quality").mean())
        weak = self.weak or _best(scores, -pl.col("quality").mean())
        lots = np.random.default_rng(self.seed).permutation(prompts.height)
        return _routes(prompts, [strong if lot < round(self.strong_share * prompts.height) else weak for lot in lots])


class Car(Rule):
    """ONE teacher for all: argmax of mean quality / (1 + beta * mean student loss), the Compatibility-Adjusted Reward
    (arXiv 2411.07133; its beta could not be verified). The loss is minus the learnability, so learnability.method must
    be mean_logprob. If a quality is negative, all are shifted so that the lowest is 0. Where prompts are of several
    domains, quality first goes from 0 to 1 over the responses of its domain.
    """

    rule: Literal["car"]
    beta: Annotated[float, Field(ge=0)] = 3.0
    """How much the student's loss counts."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to one teacher."""
        scores = _by_domain(pool.rewards, prompts, *MIN_MAX)
        lowest = min(scores["quality"].min(), 0.0)  # type: ignore[type-var]
        adjusted = (pl.col("quality") - lowest).mean() / (1 - self.beta * pl.col("learnability").mean())
        return _routes(prompts, [_best(scores, adjusted)] * prompts.height)


class BestSingle(Rule):
    """The one teacher of the highest mean reward for all prompts: the control of any routing."""

    rule: Literal["best_single"]

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to one teacher."""
        return _routes(prompts, [_best(pool.rewards, pl.col("reward").mean())] * prompts.height)


class Oracle(Rule):
    """Generate then select: per prompt the response of the highest reward (Eq. 2), of those fit to train on."""

    rule: Literal["oracle"]
    seed: Seed = 0
    """Of the lots that decide between equals."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to the best teacher of each prompt."""
        return _select(prompts, pool, "reward", self.seed)


class Grape(Rule):
    """Generate then select: per prompt the response likeliest under the student (arXiv 2502.04194): alpha = 1; of those
    fit to train on.
    """

    rule: Literal["grape"]
    seed: Seed = 0
    """Of the lots that decide between equals."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to the best teacher of each prompt."""
        return _select(prompts, pool, "learnability", self.seed)


class Scas(Rule):
    """Generate then select: per prompt, of the responses that are right, the most learnable one, as SCAS (arXiv
    2605.26872) selects among verified answers by what they cost to learn; of those fit to train on. If none is right,
    the most learnable of all; the log tells on how many prompts, and dataset.require leaves them out.
    """

    rule: Literal["scas"]
    require: dict[Domain, float] = Field(default_factory=dict)
    """Domain -> least quality of a right response; 1, the best that a verifier gives, where a domain is not named.
    Domains whose best quality is not 1 (a judge's, a reward model's, given ones) must be named."""
    seed: Seed = 0
    """Of the lots that decide between equals."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to the best teacher of each prompt."""
        domains = prompts.select("prompt_id", pl.col("domain").cast(pl.String))
        least = pl.col("domain").replace_strict(self.require or {"": 1.0}, default=1.0, return_dtype=pl.Float64)
        rows = pool.rewards.join(domains, on="prompt_id", how="left", validate="m:1", maintain_order="left")
        rows = rows.with_columns(right=pl.col("quality") >= least)
        none = rows.filter(~pl.col("right").any().over("prompt_id"))["prompt_id"].n_unique()
        logger.info(
            "scas: no response to %d of %d parallel prompts is right; these go to the most learnable one of all",
            *(none, rows["prompt_id"].n_unique()),
        )
        return _select(prompts, pool, "learnability", self.seed, rows["right"])


class BestQuality(Rule):
    """Generate then select: per prompt the response of the highest quality: alpha = 0; of those fit to train on."""

    rule: Literal["best_quality"]
    seed: Seed = 0
    """Of the lots that decide between equals."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to the best teacher of each prompt."""
        return _select(prompts, pool, "quality", self.seed)


class Random(Rule):
    """A teacher drawn uniformly for each prompt: the control."""

    rule: Literal["random"]
    seed: Seed = 0
    """Of the draw."""

    def choose(self, prompts: pl.DataFrame, pool: Pool) -> pl.DataFrame:
        """ROUTES to any teacher."""
        drawn = np.random.default_rng(self.seed).integers(len(pool.teachers), size=prompts.height)
        return _routes(prompts, [pool.teachers[position] for position in drawn])


Strategy = Annotated[
    Persyn | Strong | FamilyStrong | Mix | Car | BestSingle | Oracle | Grape | Scas | BestQuality | Random,
    Field(discriminator="rule"),
]
"""Any of the rules, as an entry of `strategies` names it."""


def build_routes(prompts: pl.DataFrame, pool: Pool, strategy: Rule) -> pl.DataFrame:
    """Give every prompt its teacher, or two where the rule says so.

    Args:
        prompts: PROMPTS; no rule needs their texts or references, which may be left out.
        pool: the teachers and what is known of them.

    Returns:
        ROUTES; with pool.with_next, and the column `next`: the teachers that the prompt did not go to, the best first:
        by the router's strengths, in rules that choose each prompt's best response by that, else by their mean reward
        on the parallel set.

    Raises:
        InputError: a teacher that the strategy names is unknown, or what it needs is not there.
    """
    chosen = strategy.choose(prompts.sort("prompt_id"), pool)
    _known(chosen["teacher"].to_list(), pool, strategy.rule)
    if not pool.with_next:
        return chosen
    if "next" not in chosen.columns:
        chosen = chosen.with_columns(next=pl.Series([_by_reward(pool)] * chosen.height, dtype=NEXT))
    taken = chosen.select(pl.col("teacher").implode().over("prompt_id"))["teacher"]
    rest = [[name for name in order if name not in own] for order, own in zip(chosen["next"], taken, strict=True)]
    return chosen.with_columns(next=pl.Series(rest, dtype=NEXT))


def allocation(routes: pl.DataFrame, teachers: Sequence[str]) -> dict[str, Any]:
    """Every teacher's share of the routes (including 0) and the entropy of the shares in nats."""
    counts = Counter(routes["teacher"])
    shares = {teacher: counts[teacher] / routes.height for teacher in teachers}
    entropy = -sum(share * np.log(share) for share in shares.values() if share)
    return {"prompts": routes["prompt_id"].n_unique(), "entropy": float(entropy) + 0.0, "share": shares}


def _best(rewards: pl.DataFrame, score: pl.Expr) -> str:
    """The teacher of the highest score; if equal, the first by name."""
    scores = rewards.group_by("teacher").agg(score=score)
    return scores.sort("score", "teacher", descending=[True, False])["teacher"][0]


def _by_reward(pool: Pool) -> list[str]:
    """The teachers by their mean reward, the highest first; if equal, by name. Those without rewards come last."""
    means = dict(pool.rewards.group_by("teacher").agg(pl.col("reward").mean()).iter_rows())
    return sorted(pool.teachers, key=lambda name: (-means.get(name, -np.inf), name))


def _strongest(rewards: pl.DataFrame, prompts: pl.DataFrame, among: Sequence[str] | None = None) -> str:
    """The teacher of the highest mean quality, by z-scores where there are several domains."""
    scores = _by_domain(rewards, prompts, *Z_SCORE)
    rows = scores if among is None else scores.filter(pl.col("teacher").is_in(among))
    return _best(rows, pl.col("quality").mean())


def _by_domain(rewards: pl.DataFrame, prompts: pl.DataFrame, shift: pl.Expr, scale: pl.Expr) -> pl.DataFrame:
    """REWARDS with quality minus its domain's `shift`, divided by its `scale` (0 where that is 0): no domain's scale
    then drowns another's. Unchanged if all prompts are of one domain.
    """
    known = prompts.select("prompt_id", "domain")
    rows = rewards.join(known, on="prompt_id", how="left", validate="m:1", maintain_order="left")
    if rows["domain"].n_unique() < 2:
        return rewards
    size = scale.over("domain")
    scaled = pl.when(size > 0).then((pl.col("quality") - shift.over("domain")) / size).otherwise(0.0)
    return rows.with_columns(quality=scaled).drop("domain")


def _select(prompts: pl.DataFrame, pool: Pool, column: str, seed: int, right: pl.Series | None = None) -> pl.DataFrame:
    """Per prompt the teacher of the largest value among those whose responses are fit to train on, and of these among
    the right ones, where there are any. Ties, also by rounding, are broken at random, not by name.

    Args:
        right: for each row of pool.rewards, whether it goes before those that are not; None: all are alike.

    A parallel prompt that has no rewards (a score was missing) goes to the best single teacher.
    """
    not_parallel = prompts.filter(~pl.col("parallel")).height
    if not_parallel:
        raise InputError(
            f"generate-then-select needs every teacher's response to every prompt, {not_parallel} of {prompts.height} "
            f"are not parallel; set prompts.num_parallel to null, or leave this strategy out"
        )
    rows = pool.rewards.with_columns(right=pl.lit(value=True) if right is None else right, fit=pl.lit(value=True))
    if pool.unfit is not None:
        unfit = pool.unfit.select("prompt_id", "teacher", unfit=pl.lit(value=True))
        rows = rows.join(unfit, on=["prompt_id", "teacher"], how="left", maintain_order="left")
        rows = rows.with_columns(fit=pl.col("unfit").is_null())
    rows = rows.with_columns(place=2 * pl.col("fit").cast(pl.Int8) + pl.col("right").cast(pl.Int8))
    rows = rows.sort("prompt_id", "teacher").with_columns(lot=np.random.default_rng(seed).random(rows.height))
    none = rows.filter(~pl.col("fit").any().over("prompt_id"))["prompt_id"].n_unique()
    if none:
        logger.warning("on %d of %d prompts no response is fit to train on (defects)", none, prompts.height)
    among = rows.filter(pl.col("place") == pl.col("place").max().over("prompt_id"))
    equal = among.filter(pl.col(column) >= pl.col(column).max().over("prompt_id") - tie_width(column))
    best = equal.sort("prompt_id", "lot").group_by("prompt_id").last().select("prompt_id", "teacher")
    chosen = prompts.select("prompt_id").join(best, on="prompt_id", how="left", validate="1:1", maintain_order="left")
    fallback = _best(pool.rewards, pl.col("reward").mean())
    routes = _routes(prompts, chosen["teacher"].fill_null(fallback).to_list())
    if not pool.with_next:
        return routes
    ranked = rows.sort("prompt_id", "place", column, "lot", descending=[False, True, True, True])
    of_prompts = ranked.group_by("prompt_id", maintain_order=True).agg(next="teacher")
    order = dict(of_prompts.iter_rows())
    everyone = _by_reward(pool)
    orders = [
        [*(own := order.get(identity, [])), *(n for n in everyone if n not in own)] for identity in routes["prompt_id"]
    ]
    return routes.with_columns(next=pl.Series(orders, dtype=NEXT))


def _known(names: Sequence[str], pool: Pool, rule: str) -> None:
    unknown = set(names) - set(pool.teachers)
    if unknown:
        raise InputError(f"strategy rule {rule} chose {', '.join(sorted(unknown))}; known: {', '.join(pool.teachers)}")


def _routes(
    prompts: pl.DataFrame, teacher: list[str], strength: np.ndarray | None = None, margin: np.ndarray | None = None
) -> pl.DataFrame:
    """ROUTES, in the order of `prompts`."""
    columns = {"teacher": teacher, "strength": strength, "margin": margin}
    series = [
        pl.Series(name, [None] * len(teacher) if values is None else values, dtype=ROUTES[name])
        for name, values in columns.items()
    ]
    return prompts.select("prompt_id").hstack(series).select(ROUTES.names())
