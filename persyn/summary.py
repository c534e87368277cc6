"""Summary: a few numbers for comparing two runs."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from persyn.comparison import REFERENCE
from persyn.errors import InputError

MAIN_METRICS = ("prompt_level_strict_acc", "math_verify", "pass@1", "exact_match", "acc", "score")
"""A task's main score is the first of these that it has. `math_verify` comes before lm-eval's `exact_match`, which
misses a right result in another notation: in the demo it is 0 for every student."""
MOST_TASKS = 2
"""Up to this many tasks are shown one by one; if there are more, only their mean."""
HITS = 3
"""The k of Hit@3."""

Scores = Mapping[str, Mapping[str, Mapping[str, Any]]]
"""task -> metric -> {value, stderr, n, cut}: a file of metrics/evaluation."""


def build_summary(
    router: Mapping[str, Any],
    allocation: Mapping[str, Any],
    evaluations: Mapping[str, Scores],
    cost: Mapping[str, Any],
    tasks: Sequence[str],
    untuned: Scores | None = None,
) -> dict[str, float]:
    """At most 12 numbers under short names, to four significant digits.

    Args:
        router: metrics/router.json.
        allocation: strategy -> its share of the prompts by teacher; only that of `persyn` is read.
        evaluations: strategy -> its scores.
        cost: metrics/cost.json.
        tasks: the tasks named in params.yaml. If each has scores, only they count, not the parts of a group.
        untuned: the scores of the student before any tuning.

    Returns:
        regret: mean reward lost by the router's choice on held-out prompts. gain: its mean reward there minus that of
        one teacher for all of them. hit_at_1: share of them on which it chose the best teacher. share: share of all
        prompts routed to the teacher that `persyn` uses most. <task> and <task>_other: the task's main score under
        `persyn`, and under the best other strategy; two tasks are named by the first word in which their names differ.
        With more than MOST_TASKS tasks, score and score_other instead: means over the tasks, the best other strategy
        having the highest mean. learnt: how much higher the mean of the tasks' main scores is under `persyn` than
        before any tuning. calls and tokens: calls to teachers and response tokens of `persyn`, parallel set included.
        fewer: how many times fewer calls than all teachers on all prompts. A number that a run lacks is left out: gain
        if too few prompts were held out, scores of others if `persyn` is the only strategy.

    Raises:
        InputError: there is no strategy `persyn`.
    """
    if REFERENCE not in evaluations:
        raise InputError(f"strategies are {', '.join(evaluations)}; the summary needs one called {REFERENCE}")
    parallel, routed = cost["parallel"].values(), cost["routed"][REFERENCE]["spent"]
    numbers = {
        "regret": router.get("regret"),
        "gain": router.get("over_majority", {}).get("difference"),
        "hit_at_1": router.get("hit_at_1"),
        "share": max(allocation[REFERENCE]["share"].values()),
        **_scores(evaluations, tasks),
        **(_learnt(evaluations[REFERENCE], untuned, tasks) if untuned else {}),
        "calls": sum(use["calls"] for use in parallel) + routed["calls"],
        "tokens": sum(use["response_tokens"] for use in parallel) + routed["response_tokens"],
        "fewer": cost["saved"][REFERENCE].get("calls"),
    }
    return {name: float(f"{n:.4g}") if isinstance(n, float) else n for name, n in numbers.items() if n is not None}


def told_hits(router: Mapping[str, Any]) -> list[str]:
    """The Hit metrics of metrics/router.json that say something. With three teachers or fewer, Hit@3 is 1 however the
    router chooses, so it is left out; so is one that is None or missing.
    """
    names = ["hit_at_1"] if len(router.get("share", ())) <= HITS else ["hit_at_1", "hit_at_3", "hit_at_3_oracle"]
    return [name for name in names if router.get(name) is not None]


def main_metric(metrics: Collection[str]) -> str:
    """A task's main metric: the first of MAIN_METRICS that it has, or else the first by name. A metric's name may end
    in a comma and the filter that read the responses.
    """
    found = (metric for name in MAIN_METRICS for metric in sorted(metrics) if metric.partition(",")[0] == name)
    return next(found, min(metrics))


def main_score(metrics: Mapping[str, Mapping[str, Any]]) -> float:
    """The value of a task's main metric."""
    return float(metrics[main_metric(metrics)]["value"])


def cut_share(metrics: Mapping[str, Mapping[str, Any]]) -> float | None:
    """The share of a task's responses that reached the token limit before their end; None if it is not known."""
    found = metrics[main_metric(metrics)]
    return found["cut"] / found["n"] if found.get("cut") is not None and found["n"] else None


def _learnt(ours: Scores, untuned: Scores, named: Sequence[str]) -> dict[str, float]:
    """How much higher the mean of the tasks' main scores is than before any tuning. That mean itself is in
    metrics/beside.json: with it, the table of `dvc exp show` would not fit a screen.
    """
    tasks = [task for task in _counted(ours, named) if task in untuned]
    gained = [main_score(ours[task]) - main_score(untuned[task]) for task in tasks]
    return {"learnt": sum(gained) / len(gained)} if gained else {}


def _counted(ours: Scores, named: Sequence[str]) -> list[str]:
    """The tasks named, if each has scores; else all."""
    return list(named) if set(named) <= set(ours) else list(ours)


def _scores(evaluations: Mapping[str, Scores], named: Sequence[str]) -> dict[str, float]:
    """The main scores of `persyn` and of the best other strategy, by task or as means over the tasks."""
    tasks = _counted(evaluations[REFERENCE], named)
    mains = {
        strategy: {name: main_score(scores[task]) for name, task in zip(_short(tasks), tasks, strict=True)}
        for strategy, scores in evaluations.items()
        if set(tasks) <= set(scores)
    }
    if len(tasks) > MOST_TASKS:
        mains = {strategy: {"score": sum(values.values()) / len(values)} for strategy, values in mains.items()}
    others = [values for strategy, values in mains.items() if strategy != REFERENCE]
    found = {}
    for name, value in mains[REFERENCE].items():
        found[name] = value
        if others:
            found[f"{name}_other"] = max(values[name] for values in others)
    return found


def _short(tasks: list[str]) -> list[str]:
    """Two tasks named by the first word in which they differ: ifeval, math for persyn_ifeval, persyn_math."""
    if len(tasks) == 2:
        for words in zip(*(task.split("_") for task in tasks), strict=False):
            if words[0] != words[1]:
                return list(words)
    return tasks
