"""Routes: every prompt gets ONE teacher, by a strategy. A new strategy is one function and one row of params."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from persyn.schemas import ROUTES, InputError, check_keys

Predict = Callable[[list[str]], np.ndarray]


def build_routes(
    prompts: pl.DataFrame, teachers: Sequence[str], predict: Predict, strategy: Mapping[str, Any]
) -> pl.DataFrame:
    """Give every prompt its teacher.

    Args:
        prompts: PROMPTS.
        teachers: the teachers' names, in the order of the router's strengths.
        predict: prompt texts -> strengths (N, M); called only by a rule that needs the router.
        strategy: `rule`, a key of RULES, and that rule's own arguments.

    Returns:
        ROUTES.

    Raises:
        InputError: the rule, one of its arguments or the teacher it names is wrong.
    """
    arguments = dict(strategy)
    rule = arguments.pop("rule", None)
    if rule not in RULES:
        raise InputError(f"strategy rule {rule!r} is not one of {', '.join(RULES)}")
    check_keys(f"rule {rule}", arguments, RULES[rule])
    ordered = prompts.sort("prompt_id")
    chosen = RULES[rule](ordered, teachers, predict, **arguments)
    unknown = set(chosen["teacher"]) - set(teachers)
    if unknown:
        raise InputError(f"strategy rule {rule} chose {', '.join(sorted(unknown))}; known: {', '.join(teachers)}")
    return ordered.select("prompt_id").hstack(chosen).select(ROUTES.names())


def persyn(prompts: pl.DataFrame, teachers: Sequence[str], predict: Predict) -> pl.DataFrame:
    """The router's choice: m* = argmax_m o_m."""
    strengths = predict(prompts["prompt"].to_list())
    ranked = np.sort(strengths, axis=1)[:, ::-1]
    chosen = [teachers[position] for position in strengths.argmax(axis=1)]
    margin = ranked[:, 0] - ranked[:, 1] if len(teachers) > 1 else None
    return _routes(chosen, ranked[:, 0], margin)


def strong(prompts: pl.DataFrame, teachers: Sequence[str], predict: Predict, *, teacher: str) -> pl.DataFrame:
    """One named teacher, the strongest, answers everything."""
    return _routes([teacher] * prompts.height)


def random(prompts: pl.DataFrame, teachers: Sequence[str], predict: Predict, *, seed: int = 0) -> pl.DataFrame:
    """A teacher drawn uniformly for each prompt: the control."""
    drawn = np.random.default_rng(seed).integers(len(teachers), size=prompts.height)
    return _routes([teachers[position] for position in drawn])


RULES: dict[str, Callable[..., pl.DataFrame]] = {"persyn": persyn, "strong": strong, "random": random}


def allocation(routes: pl.DataFrame, teachers: Sequence[str]) -> dict[str, Any]:
    """The share of prompts of every teacher (0 included) and the entropy of the shares in nats."""
    counts = Counter(routes["teacher"])
    shares = {teacher: counts[teacher] / routes.height for teacher in teachers}
    entropy = -sum(share * np.log(share) for share in shares.values() if share)
    return {"prompts": routes.height, "entropy": float(entropy) + 0.0, "share": shares}


def _routes(teacher: list[str], strength: np.ndarray | None = None, margin: np.ndarray | None = None) -> pl.DataFrame:
    columns = {"teacher": teacher, "strength": strength, "margin": margin}
    series = [
        pl.Series(name, [None] * len(teacher) if values is None else list(map(_plain, values)), dtype=ROUTES[name])
        for name, values in columns.items()
    ]
    return pl.DataFrame(series)


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value
