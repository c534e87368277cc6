"""Rewards: raw quality and learnability -> one reward a response, comparable within its prompt."""

import logging
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import polars as pl
from pydantic import Field

from persyn.defects import Policies, best_samples, falls_short
from persyn.errors import InputError
from persyn.schemas import REWARDS, Domain, alike, row_key
from persyn.settings import Settings, Share
from persyn.ties import TIE, tie_width

logger = logging.getLogger(__name__)
KEYS = ["prompt_id", "teacher"]
ALPHAS = (0.0, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0)
"""The weights of learnability that the metrics compare the chosen one with."""
FLAT = 0.2
"""If no pair changes over a range of alpha this wide, the stage says so."""
OUTSIDE = 0.5
"""Shares of the known teachers' range by which an anchored one's score may lie outside of it."""
LOST_BY = 0.01
"""Where the penalty is 1 or more, a penalised response is below every other of its prompt by this much at least."""
OWN = {"own": pl.Float64, "flawed": pl.Boolean, "lowest": pl.Float64, "highest": pl.Float64}
"""What with_student adds to the prompts."""
GATE = 1.0
"""How far below the lowest reward of the responses that pass a gate the others of their prompt are."""


class RewardSettings(Settings):
    """The section `rewards`: how quality and learnability become one reward."""

    alpha: Share
    """Weight of learnability, from 0 (quality alone) to 1 (learnability alone)."""
    alpha_slope: float = 0.0
    """How much the weight depends on the prompt (ours, not the paper's). It is alpha + alpha_slope * (e - 1/2), clipped
    to 0 to 1; e is the rank of the prompt's mean quality among all prompts, 0 to 1. Above 0, learnability decides
    prompts on which most teachers do well, quality decides hard ones."""
    normalization: Literal["min_max", "z_score", "rank", "shared", "none"] = "min_max"
    """Over the responses to a prompt: min_max to 0 to 1; z_score; rank (0 for the worst to 1 for the best, equal scores
    share the mean of their ranks); shared (minus the prompt's mean, divided by the standard deviation within prompts
    of the whole domain, so that a small difference stays small); none. Equal scores normalise to 0. Where quality has
    two values, min_max gives the same pairs for every alpha below 1/2: shared and rank do not. Penalised responses do
    not count; their scores are clipped to the range of the others. Nor do those of teachers with `anchors`, which may
    lie outside of it: the other teachers' rewards are what they are without them."""
    length_control: bool = False
    """Whether quality is freed from what length alone brings, since judges favour long responses (ours, after
    AlpacaEval-LC, arXiv 2404.04475): quality - slope * (log tokens - their mean on the prompt). One slope a domain, by
    least squares with an effect of each prompt and each teacher, so that a good teacher that writes long keeps its
    lead."""
    penalty: Annotated[float, Field(ge=0)] = 1.0
    """Subtracted from the reward of a response with a defect. From 1 on, it loses to every other response to its
    prompt, whatever the normalization."""
    gate: dict[Domain, float] = Field(default_factory=dict)
    """Domain -> least quality: there, quality is a gate instead of a summand (ours, after SCAS, arXiv 2605.26872, which
    selects among verified answers by what they cost to learn). The reward of a response that reaches it is its
    learnability alone, normalised over those that do; any other's is 1 below the lowest of these, so it loses to each
    of them. Where none reaches it, all rewards are 0: the prompt makes no pair. alpha, alpha_slope and length_control
    have no effect in these domains."""
    unsolved: Annotated[float, Field(ge=0)] = 0.0
    """How much more quality counts where the student itself fails, in units of reward (ours): unsolved * (1 - s) * q is
    added to a response's reward, where q is its quality from 0 to 1 and s that of what the student responds before any
    tuning. It needs a teacher with `is_student`. Quality is taken as it is by checkers, math_verify and unit_tests, and
    from 0 to 1 on a judge's scale; domains of reward_model and given get nothing, since these have no scale, nor do
    those with a gate. A response with a defect that costs `penalty` gets nothing. A defective one of the student has an
    s of 0; a prompt to which it has no response gets nothing, and is counted."""


def build_rewards(
    quality: pl.DataFrame,
    learnability: pl.DataFrame,
    defects: pl.DataFrame,
    teachers: Sequence[str],
    policies: Policies,
    settings: RewardSettings,
    anchored: Sequence[str] = (),
    domains: pl.DataFrame | None = None,
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """r = (1 - alpha) * r_q + alpha * r_l (PerSyn, Eq. 2), both normalised over the teachers of a prompt. In domains
    with a gate, r = r_l over those of the prompt's responses that pass, and min(r) - GATE for each of the others.

    Args:
        quality: QUALITY of every teacher.
        learnability: LEARNABILITY of every teacher.
        defects: DEFECTS of every teacher.
        teachers: names of all teachers. A prompt that lacks a teacher's score (its call failed, or a score was not
            finite) is left out and counted: no comparison on it would be fair.
        policies: which defects cost settings.penalty.
        anchored: the teachers that got only some prompts: a prompt is complete without them.
        domains: columns prompt_id and domain; None: all prompts are of one. Quality's scale is the domain's own. With
            settings.unsolved, as with_student returns it.

    An anchored teacher changes no other's reward, and no metric but `teachers` and `penalised` counts it.

    Returns:
        REWARDS and their metrics: {prompts, kept, dropped: {incomplete}, penalised, ties (prompts on which all rewards
        are equal), length_correlation (Spearman, of reward and response tokens: near 1 or -1, the reward mostly
        measures length; None where either is constant), length_within_prompt: {uncontrolled, controlled: the mean
        over prompts of that correlation on the prompt, without and with length_control, whichever is chosen},
        length_slopes: {domain: quality a unit of log tokens}, alpha: as alpha_effect, teachers: {name: {quality,
        learnability, reward: mean}}}; with settings.gate, gate: as count_gate; where `domains` are with_student's,
        unsolved: as count_unsolved.

    Raises:
        InputError: a score belongs to an unknown teacher, no prompt is left, or as mix_rewards.
    """
    scores = join_scores(quality, learnability, defects, teachers, policies, anchored, domains)
    both = {control: settings.changed(length_control=control) for control in (False, True)}
    mixed = {control: mix_rewards(scores, how) for control, how in both.items()}
    rewards = mixed[settings.length_control]
    known = {control: table.filter(~pl.col("anchored")) for control, table in mixed.items()}
    own = known[settings.length_control]
    prompts = len(set(quality["prompt_id"]) | set(learnability["prompt_id"]))
    kept = rewards["prompt_id"].n_unique()
    counts: dict[str, Any] = {
        "prompts": prompts,
        "kept": kept,
        "dropped": {"incomplete": prompts - kept},
        "penalised": int(rewards["penalised"].sum()),
        "ties": _count_ties(own),
        "length_correlation": _finite(own.select(pl.corr("reward", "num_tokens", method="spearman")).item()),
        "length_within_prompt": {
            "uncontrolled": _correlation_within(known[False]),
            "controlled": _correlation_within(known[True]),
        },
        "length_slopes": dict(scores.select(pl.col("domain").fill_null("all"), "slope").unique().sort("domain").rows()),
        "alpha": alpha_effect(own, settings),
        "teachers": {
            row.pop("teacher"): row
            for row in rewards.group_by("teacher")
            .agg(pl.col("quality", "learnability", "reward").mean())
            .sort("teacher")
            .to_dicts()
        },
    }
    if settings.gate:
        counts["gate"] = count_gate(own, settings)
    if domains is not None and "own" in domains.columns:
        without = mix_rewards(scores, settings.changed(unsolved=0.0)).filter(~pl.col("anchored"))
        counts["unsolved"] = count_unsolved(own, without, settings)
    if not own["gated"].all():
        _tell_alpha(counts["alpha"], settings)
    return rewards.select(REWARDS.names()), counts


def with_student(
    prompts: pl.DataFrame,
    quality: pl.DataFrame | None,
    defects: pl.DataFrame,
    policies: Policies,
    scales: Mapping[str, tuple[float, float]],
) -> pl.DataFrame:
    """How well the student itself does on each prompt before any tuning.

    Args:
        prompts: columns prompt_id and domain.
        quality: QUALITY of the student's responses; None: it was not asked.
        defects: DEFECTS of at least these.
        policies: which defects make a response count as wrong: those that they penalise or drop.
        scales: domain -> its lowest and highest quality; without the domains in which these are not known.

    Returns:
        prompt_id, domain; and if it was asked: lowest and highest; own: the mean quality of its samples on that scale,
        from 0 to 1; null where no response has a score, or the domain no scale; flawed: whether a sample has a defect.
    """
    known = prompts.select("prompt_id", pl.col("domain").cast(pl.String))
    if quality is None:
        return known
    for number, end in enumerate(("lowest", "highest")):
        ends = {domain: scale[number] for domain, scale in scales.items()}
        value = pl.col("domain").replace_strict(ends, default=None, return_dtype=pl.Float64)
        known = known.with_columns(value.alias(end))
    quality, defects = alike([quality, defects])
    rows = quality.join(defects, on=row_key(quality), how="left", validate="1:1")
    flawed = pl.any_horizontal(pl.lit(False), *policies.kinds("penalise", "drop")).fill_null(False)
    rows = rows.join(known, on="prompt_id", how="left", validate="m:1").with_columns(flawed=flawed, own=_on_scale())
    own = pl.when(pl.col("own").is_not_null()).then(pl.when("flawed").then(0.0).otherwise("own"))
    found = rows.group_by("prompt_id").agg(own.mean().alias("own"), pl.col("flawed").any())
    return known.join(found, on="prompt_id", how="left", validate="1:1", maintain_order="left")


def _on_scale() -> pl.Expr:
    """The `quality` from 0 to 1, by the `lowest` and `highest` of the domain; null where these are not known."""
    return ((pl.col("quality") - pl.col("lowest")) / (pl.col("highest") - pl.col("lowest"))).clip(0, 1)


def join_scores(
    quality: pl.DataFrame,
    learnability: pl.DataFrame,
    defects: pl.DataFrame,
    teachers: Sequence[str],
    policies: Policies,
    anchored: Sequence[str] = (),
    domains: pl.DataFrame | None = None,
) -> pl.DataFrame:
    """All that mix_rewards needs, of the prompts with all scores; arguments and errors as of build_rewards.

    Returns:
        QUALITY joined with LEARNABILITY; penalised; anchored; domain; log_tokens, minus the mean on the prompt of those
        that are not anchored; slope, of its domain; own, flawed, lowest and highest of with_student, and scaled, the
        quality from 0 to 1: all null where the student was not asked.
    """
    quality, learnability, defects = alike([quality, learnability, defects])
    key = row_key(quality)
    scores = quality.join(learnability, on=key, how="full", coalesce=True, validate="1:1")
    scores = scores.join(defects, on=key, how="left", validate="1:1").sort(key)
    incomplete = pl.any_horizontal(pl.col("quality", "learnability").is_null())
    dropped = pl.any_horizontal(pl.lit(False), *policies.kinds("drop")).fill_null(False)
    best = best_samples(scores.with_columns(unfit=incomplete | dropped)).select(pl.exclude("unfit"))
    rows = _complete(best, teachers, anchored).sort(KEYS)
    penalised = pl.any_horizontal(pl.lit(False), *policies.kinds("penalise", "drop")).fill_null(False)
    log_tokens, is_anchored = pl.col("num_tokens").clip(1).log(), pl.col("teacher").is_in(list(anchored))
    mean = pl.when(~is_anchored).then(log_tokens).mean().over("prompt_id")
    rows = rows.with_columns(
        penalised=penalised, anchored=is_anchored, log_tokens=log_tokens - mean, domain=pl.lit(None, pl.String)
    )
    if domains is not None:
        known = domains.select("prompt_id", pl.col("domain").cast(pl.String), *(c for c in OWN if c in domains.columns))
        rows = rows.drop("domain").join(known, on="prompt_id", how="left", validate="m:1", maintain_order="left")
    rows = rows.with_columns(pl.lit(None, kind).alias(name) for name, kind in OWN.items() if name not in rows.columns)
    slopes = {domain: _length_slope(part) for (domain,), part in rows.group_by("domain")}
    slope = pl.Series([slopes[domain] for domain in rows["domain"]], dtype=pl.Float64)
    return rows.with_columns(slope=slope, scaled=_on_scale())


def mix_rewards(scores: pl.DataFrame, settings: RewardSettings) -> pl.DataFrame:
    """The rewards of join_scores' rows by these settings, for which nothing is scored or joined again.

    Returns:
        `scores` with counted (whether it sets the range of its prompt), clipped (whether its scores are clipped to that
        range), gated (whether its domain has a gate), failed (whether it is below it), r_q and r_l (normalised), shift
        (what alpha_slope adds to alpha), gain (what unsolved adds to the reward), cost (the penalty; null where failed)
        and reward.

    Raises:
        InputError: settings.unsolved needs how well the student does, which is not known for any prompt.
    """
    if settings.unsolved and scores["own"].is_null().all():
        raise InputError(
            f"rewards.unsolved is {settings.unsolved:g}, but no response of the student has a quality on a scale; see "
            f"metrics/defects.json for calls that failed, or set it to 0"
        )
    controlled = pl.col("quality") - (pl.col("slope") * pl.col("log_tokens") if settings.length_control else 0.0)
    free = ~pl.col("penalised") | (settings.penalty == 0)
    known, passed = ~pl.col("anchored"), ~pl.col("failed")
    rows = scores.with_columns(
        gated=pl.col("domain").is_in(list(settings.gate)).fill_null(value=False), failed=falls_short(settings.gate)
    )
    counted = pl.lit(value=False)
    for those in (known & passed & free, known & passed, known):  # the first of these that a prompt has
        counted |= those & ~counted.any().over("prompt_id")
    rows = rows.with_columns(controlled=controlled, clipped=~free, counted=counted)
    rows = _normalise(rows, "controlled", "r_q", settings.normalization)
    rows = _normalise(rows, "learnability", "r_l", settings.normalization)
    rows = rows.with_columns(ease=_ease())
    shift = (
        settings.alpha_slope * (pl.col("ease").max().over("prompt_id") - 0.5) if settings.alpha_slope else pl.lit(0.0)
    )
    weight = (settings.alpha + pl.col("shift")).clip(0, 1)
    mixed = (1 - weight) * pl.col("r_q") + weight * pl.col("r_l")
    mixed = mixed + pl.col("gain") if settings.unsolved else mixed
    gated = pl.when("failed").then(None).when("gated").then("r_l").otherwise(mixed)
    rows = rows.with_columns(shift=shift, gain=_gain(settings.unsolved)).with_columns(mixed=gated)
    rows = rows.with_columns(cost=_cost(settings.penalty)).with_columns(reward=pl.col("mixed") - pl.col("cost"))
    return rows.with_columns(reward=_behind_gate()) if settings.gate else rows


def _behind_gate() -> pl.Expr:
    """The `reward`, with that of responses that `failed` (null until now). An anchored response moves no other's: one
    that passes is raised above the known ones that do not.
    """
    reward, known = pl.col("reward"), ~pl.col("anchored")
    level = (pl.when(known).then(reward).min().over("prompt_id") - GATE).fill_null(0.0)
    raised = pl.when(known).then(reward).otherwise(pl.max_horizontal(reward, level + GATE / 2))
    return pl.when("failed").then(level).when("gated").then(raised).otherwise(reward)


def _gain(unsolved: float) -> pl.Expr:
    """What a response gains by its quality where the student fails; nothing behind a gate, or if it is penalised."""
    gets = ~pl.col("gated") & ~pl.col("clipped")
    return pl.when(gets).then(unsolved * (1 - pl.col("own")) * pl.col("scaled")).fill_null(0.0)


def count_gate(rewards: pl.DataFrame, settings: RewardSettings) -> dict[str, Any]:
    """least: settings.gate; prompts: how many have one; none_passes: of these, those on which no response reaches it,
    so that they make no pair; below: the responses that do not reach it.
    """
    prompts = rewards.filter("gated").group_by("prompt_id").agg(none=pl.col("failed").all())
    counts = {"prompts": prompts.height, "none_passes": prompts["none"].sum(), "below": int(rewards["failed"].sum())}
    logger.info(
        "rewards.gate: %d of %d prompts with a gate make no pair, since no response to them passes; in all, %d "
        "responses do not",
        *(counts["none_passes"], counts["prompts"], counts["below"]),
    )
    return {"least": dict(settings.gate), **counts}


def count_unsolved(rewards: pl.DataFrame, without: pl.DataFrame, settings: RewardSettings) -> dict[str, Any]:
    """What settings.unsolved acts on, and what it changes.

    Args:
        rewards: of mix_rewards by these settings, without anchored teachers.
        without: the same where unsolved is 0.

    Returns:
        weight: settings.unsolved; prompts: on how many it acts. Of these, solved: the student's quality is the highest
        of the scale; taught: that of a teacher's response without a penalised defect is; nobody: neither. own: the
        student's mean quality, 0 to 1; flawed: prompts with a defective response of the student. left_out: the other
        prompts, {gate: the domain has one, scale: it has none, response: the student has no scored one}. raised:
        responses whose reward it raises. pairs: how many have an order, with it or without; changed_pairs and
        changed_best: pairs and prompts on which the order or the best teachers are others than without it.
    """
    solves = (pl.col("scaled") > 1 - TIE) & ~pl.col("clipped")
    prompts = rewards.group_by("prompt_id").agg(pl.col("gated", *OWN).first(), taught=solves.fill_null(False).any())
    why = pl.when("gated").then(pl.lit("gate")).when(pl.col("lowest").is_null()).then(pl.lit("scale"))
    why = why.when(pl.col("own").is_null()).then(pl.lit("response"))
    prompts = prompts.with_columns(left_out=why, solved=pl.col("own") > 1 - TIE)
    acts = prompts.filter(pl.col("left_out").is_null())
    now, then = _orders(rewards), _orders(without)
    counts: dict[str, Any] = {
        "weight": float(settings.unsolved),
        "prompts": acts.height,
        "solved": int(acts["solved"].sum()),
        "taught": acts.filter(~pl.col("solved"), "taught").height,
        "nobody": acts.filter(~pl.col("solved"), ~pl.col("taught")).height,
        "own": acts["own"].mean(),
        "flawed": int(acts["flawed"].sum()),
        "left_out": {reason: prompts.filter(left_out=reason).height for reason in ("gate", "scale", "response")},
        "raised": int((rewards["gain"] > 0).sum()),
        "pairs": int(((now != 0) | (then != 0)).sum()),
        "changed_pairs": int((now != then).sum()),
        "changed_best": rewards.filter(_are_best(rewards) != _are_best(without))["prompt_id"].n_unique(),
    }
    logger.info(
        "rewards.unsolved %g: of %d prompts the student solves %d, a teacher %d others, nobody %d; it changes %d of %d "
        "pairs, and the best teachers of %d prompts; left out: %s",
        *(counts[name] for name in ("weight", "prompts", "solved", "taught", "nobody", "changed_pairs", "pairs")),
        *(counts["changed_best"], ", ".join(f"{number} by {name}" for name, number in counts["left_out"].items())),
    )
    return counts


def _each_pair(rewards: pl.DataFrame, *columns: str) -> pl.DataFrame:
    """These columns, and `width` (the tie's), of both responses of each pair to a prompt: the second's end in _2."""
    side = rewards.select(*KEYS, *columns, width=tie_width("reward"))
    pairs = side.join(side, on="prompt_id", suffix="_2", validate="m:m")
    return pairs.filter(pl.col("teacher") < pl.col("teacher_2"))


def _orders(rewards: pl.DataFrame) -> pl.Series:
    """-1, 0 or 1 for each pair of responses to a prompt, by prompt and teachers."""
    pairs = _each_pair(rewards, "reward")
    gap = pl.col("reward") - pl.col("reward_2")
    order = pl.when(gap.abs() > pl.col("width")).then(gap.sign()).otherwise(0.0)
    return pairs.sort(*KEYS, "teacher_2").select(order=order)["order"]


def _are_best(rewards: pl.DataFrame) -> pl.Series:
    """Whether a response has the highest reward of its prompt, but for rounding."""
    highest = pl.col("reward").max().over("prompt_id")
    return rewards.select(best=pl.col("reward") >= highest - tie_width("reward"))["best"]


def _cost(penalty: float) -> pl.Expr:
    """What a response's `mixed` reward loses: penalty, and from 1 on as much as puts all that are penalised below the
    others of the prompt. It is one number a prompt for known teachers, so that their own order stays, and it is not
    moved by anchored ones: of these, one that is sound is raised above the known that are penalised.
    """
    known, sound, mixed = ~pl.col("anchored"), ~pl.col("penalised"), pl.col("mixed")
    if penalty < 1:
        return pl.when(sound).then(0.0).otherwise(float(penalty))
    size = mixed.abs()
    own, wide = (
        pl.max_horizontal(pl.lit(LOST_BY), 10 * TIE * each.max().over("prompt_id"))
        for each in (pl.when(known).then(size), size)
    )
    others = pl.when(known & sound).then(mixed).min().over("prompt_id")
    highest = pl.when(known & ~sound).then(mixed).max().over("prompt_id")
    cost = penalty + (highest - penalty - others + own).clip(0.0).fill_null(0.0)
    raised = pl.when(known).then(mixed).otherwise(pl.max_horizontal(mixed, highest - cost + wide))
    lowest = pl.when(sound).then(raised).min().over("prompt_id")
    below = pl.max_horizontal(pl.lit(float(penalty)), mixed - lowest + wide)
    return pl.when(sound).then(mixed - raised).when(known).then(cost).otherwise(below)


def alpha_effect(rewards: pl.DataFrame, settings: RewardSettings) -> dict[str, Any]:
    """What another alpha would change. On a pair of responses the reward differs by dq + w * (dl - dq), less the
    penalties and plus what `unsolved` adds, where w is the weight of learnability: its sign changes at one w at most,
    which gives the alpha exactly.

    Args:
        rewards: of mix_rewards by these settings.

    Returns:
        chosen; pairs: how many have an order at the chosen alpha (pairs.min_margin is not regarded); same_order:
        {alpha: share of them that it orders alike}, for ALPHAS and the chosen one, None where there is no pair;
        unchanged: [low, high], the widest range of alpha around the chosen one between which no pair changes.
    """
    columns = ["penalised", "r_q", "r_l", "cost", "gain", "shift", "gated", "reward"]
    pairs = _each_pair(rewards, *columns)
    gap = {name: (pairs[name] - pairs[f"{name}_2"]).to_numpy() for name in ("r_q", "r_l", "cost", "gain", "reward")}
    start, slope = gap["r_q"] - gap["cost"], gap["r_l"] - gap["r_q"]
    start = start + gap["gain"] if settings.unsolved else start
    if settings.penalty >= 1:  # a penalised response loses to any other, whatever alpha is
        lost = pairs["penalised"].cast(int).to_numpy() - pairs["penalised_2"].cast(int).to_numpy()
        start, slope = np.where(lost, -lost * np.finfo(float).max, start), np.where(lost, 0.0, slope)
    gated = pairs["gated"].to_numpy()  # there, alpha has no effect
    start, slope = np.where(gated, gap["reward"], start), np.where(gated, 0.0, slope)
    shift, width = pairs["shift"].to_numpy(), pairs["width"].to_numpy()

    def order(alpha: float) -> np.ndarray:
        """-1, 0 or 1 for each pair."""
        difference = start + np.clip(alpha + shift, 0, 1) * slope
        return np.where(np.abs(difference) > width, np.sign(difference), 0)

    now = order(settings.alpha)
    num_pairs = int((now != 0).sum())
    shares = {
        f"{alpha:g}": float((order(alpha) == now)[now != 0].mean()) if num_pairs else None
        for alpha in sorted({*ALPHAS, float(settings.alpha)})
    }
    turns = np.abs(slope) > width
    weights = -start[turns] / slope[turns]
    within = (weights > -TIE) & (weights < 1 + TIE)
    flips = (weights - shift[turns])[within]
    low = max([0.0, *flips[flips < settings.alpha + TIE]])
    high = min([1.0, *flips[flips > settings.alpha - TIE]])
    unchanged = [float(min(low, settings.alpha)), float(max(high, settings.alpha))]
    return {"chosen": float(settings.alpha), "pairs": num_pairs, "same_order": shares, "unchanged": unchanged}


def _tell_alpha(effect: dict[str, Any], settings: RewardSettings) -> None:
    if not effect["pairs"]:
        return
    shares = ", ".join(f"{alpha}: {share:.0%}" for alpha, share in effect["same_order"].items())
    logger.info(
        "alpha %g orders %d pairs; the share that other alphas order alike: %s", *list(effect.values())[:2], shares
    )
    low, high = effect["unchanged"]
    if high - low > FLAT - TIE:
        better = (
            "" if settings.normalization in ("rank", "shared") else "; rewards.normalization shared or rank may help"
        )
        logger.warning(
            "no pair changes for any alpha between %.3g and %.3g (alpha is %g), so alpha has no effect there, as where "
            "quality has few values%s",
            *(low, high, settings.alpha, better),
        )


def _normalise(rows: pl.DataFrame, column: str, into: str, normalization: str) -> pl.DataFrame:
    """`rows` with `column` normalised within the prompt. Only the rows that are `counted` set its range; of the others,
    those that are `clipped` stay within it, and the rest near it."""
    if normalization == "none":
        return rows.with_columns(pl.col(column).alias(into))
    value, by, counted = pl.col(column), "prompt_id", pl.when("counted").then(pl.col(column))
    low, high, mean, unit = (pl.col(name) for name in ("low", "high", "mean", "unit"))
    rows = rows.with_columns(
        low=counted.min().over(by), high=counted.max().over(by), mean=counted.mean().over(by), unit=pl.lit(0.0)
    )
    constant = high - low <= TIE * pl.max_horizontal(low.abs(), high.abs())
    room = pl.when(constant).then(math.inf).when("clipped").then(0.0).otherwise(OUTSIDE * (high - low))
    kept = pl.when("counted").then(value).otherwise(value.clip(low - room, high + room))
    rows = rows.with_columns(constant=constant, **{column: kept})
    unit_range = (value - low) / (high - low)
    if normalization == "z_score":
        rows = rows.with_columns(unit=counted.std(ddof=0).over(by))
    elif normalization == "shared":
        centred = pl.when("counted").then(pl.when("constant").then(0.0).otherwise(value - mean))
        sound = pl.when(~pl.col("clipped")).then(centred)  # prompts on which all are penalised set no unit of others
        unit = pl.coalesce(square.mean().sqrt().over("domain") for square in (sound.pow(2), centred.pow(2)))
        rows = rows.with_columns(unit=unit)
    elif normalization == "rank":
        rounded = unit_range.round(-math.floor(math.log10(TIE)))
        rows = rows.with_columns(some=pl.when("counted").then(rounded), all=rounded)
        unit_range = _place(by)
    if normalization in ("z_score", "shared"):  # squares of the smallest numbers are 0
        rows = rows.with_columns(constant=pl.col("constant") | (pl.col("unit") == 0))
    scaled = (value - mean) / pl.col("unit") if normalization in ("z_score", "shared") else unit_range
    apart = ~pl.col("counted") & ~pl.col("clipped")
    beside = pl.when(apart).then((value - low).sign()).otherwise(0.0)  # an anchored score beside constant ones
    rows = rows.with_columns(pl.when("constant").then(beside).otherwise(scaled).alias(into))
    return rows.select(pl.exclude("low", "high", "mean", "unit", "constant", "all", "some"))


def _place(by: str) -> pl.Expr:
    """The place of each score (`all`) among those that count (`some`, null for the others), 0 for the worst of them to
    1 for the best; half a place below or above where it is between two, or outside.
    """
    number = pl.col("some").count().over(by)
    equal = pl.col("some").count().over(by, "all")
    below = pl.col("some").sort().search_sorted(pl.col("all"), side="left").over(by) - pl.col("some").null_count().over(
        by
    )
    return (below + 0.5 * equal - 0.5) / (number - 1)


def _length_slope(rows: pl.DataFrame) -> float:
    """Quality a unit of log tokens, by least squares over the rows that are not penalised or anchored, with an effect
    of each prompt and each teacher (Frisch-Waugh: both are taken out of the length first); 0 where they explain all
    lengths.

    AlpacaEval-LC fits preferences over one baseline by a logistic model of the length difference, a slope a model.
    Ours is linear, for scores of any scale, with one slope for all teachers of a domain.
    """
    free = rows.filter(~pl.col("penalised") & ~pl.col("anchored"))
    names = free["teacher"].unique().sort()[1:]
    columns = [
        pl.col("quality"),
        pl.col("num_tokens").clip(1).log(),
        *(pl.col("teacher").eq(n).cast(float) for n in names),
    ]
    within = [(column - column.mean().over("prompt_id")).alias(str(n)) for n, column in enumerate(columns)]
    matrix = free.select(within).to_numpy()
    quality, length, teachers = matrix[:, 0], matrix[:, 1], matrix[:, 2:]
    own = length - teachers @ np.linalg.lstsq(teachers, length, rcond=None)[0]
    return float(own @ quality / (own @ own)) if own @ own > TIE * (length @ length) else 0.0


def _ease() -> pl.Expr:
    """Rank of the prompt's mean quality among all prompts, 0 to 1, over the rows that are not anchored (null for those
    that are); every prompt has equally many of them."""
    own = pl.when(~pl.col("anchored")).then("quality")
    mean = pl.when(~pl.col("anchored")).then(own.mean().over("prompt_id"))
    return (mean.rank() - 0.5) / mean.count()


def _count_ties(rewards: pl.DataFrame) -> int:
    """Prompts on which all rewards are equal but for rounding."""
    rows = rewards.select("prompt_id", "reward", width=tie_width("reward"))
    spread = pl.col("reward").max() - pl.col("reward").min()
    return int(rows.group_by("prompt_id").agg(tie=spread <= pl.col("width").first())["tie"].sum())


def _correlation_within(rewards: pl.DataFrame) -> float | None:
    """The mean over prompts of Spearman's correlation of reward and tokens; prompts on which either is constant are
    left out."""
    rho = pl.corr("reward", "num_tokens", method="spearman").fill_nan(None)
    return _finite(rewards.group_by("prompt_id").agg(rho=rho).sort("prompt_id")["rho"].mean())


def _finite(value: Any) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _complete(scores: pl.DataFrame, teachers: Sequence[str], anchored: Sequence[str]) -> pl.DataFrame:
    """The scores of prompts on which every teacher but the anchored ones has both, finite."""
    unknown = set(scores["teacher"]) - set(teachers)
    if unknown:
        raise InputError(f"scores belong to {', '.join(sorted(unknown))}, not among the teachers {', '.join(teachers)}")
    finite = scores.filter(pl.col("quality").is_finite() & pl.col("learnability").is_finite())
    required = ~pl.col("teacher").is_in(anchored)
    complete = finite.filter(required.sum().over("prompt_id") == len(teachers) - len(anchored))
    if complete.is_empty():
        have = ", ".join(f"{teacher} {finite.filter(teacher=teacher).height}" for teacher in teachers)
        raise InputError(
            f"none of {scores['prompt_id'].n_unique()} prompts has both scores of every teacher (scored: {have}); "
            f"see metrics/defects.json for calls that failed, and run their stages again"
        )
    return complete
