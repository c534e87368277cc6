"""Diagnostics: known ways in which a run fails, and whether this one shows them. The thresholds are our own."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import polars as pl

from persyn.defects import DETECTORS, repetition
from persyn.project.snapshot import Snapshot

State = Literal["ok", "watch", "alarm", "unknown"]
Levels = tuple[float, float]
LENGTH: Levels = (0.5, 0.8)  # absolute Spearman's rho of reward and response tokens
CUT: Levels = (0.1, 0.5)  # of a teacher's responses
DEFECT: Levels = (0.02, 0.2)  # of a teacher's responses
DROPPED: Levels = (0.05, 0.2)  # of a strategy's rows
LONGER: Levels = (1.25, 2.0)  # ratio of response tokens to the teachers' mean
TRAIN: Levels = (500, 100)  # parallel prompts; fewer is worse
HELD_OUT: Levels = (200, 50)  # at 50, Hit@1 has a standard error of up to 0.07; at 200, of 0.035
ENDLESS: Levels = (0.05, 0.2)  # of a student's responses


@dataclass(frozen=True)
class Signature:
    """One way to fail: what it is, what was found, and what to do about it. Unknown: its data is not made yet."""

    name: str
    what: str
    value: str
    state: State
    advice: str


def find_signatures(run: Snapshot) -> list[Signature]:
    """Look for every signature in the metrics, the responses to the parallel prompts and the samples.

    Returns:
        One Signature each, in the order of the pipeline: `watch` from the first of its two thresholds (above) on,
        `alarm` from the second.
    """
    counts, router = {**run.metric("defects")}, run.metric("router")
    responses = {name: table for name, table in run.responses.items() if name != run.student}
    counts.pop(run.student, None)
    return [
        _cut(counts),
        _defect("error", "a call failed: there is no response", counts),
        *(_defect(kind, _first_line(detect), counts) for kind, detect in DETECTORS.items()),
        _length(run.metric("rewards")),
        _few("few training prompts", "the router learns from few parallel prompts", router.get("num_train"), TRAIN),
        _few("few held-out prompts", "what is said of the router rests on few", router.get("num_held_out"), HELD_OUT),
        _collapsed(router),
        _controls(router),
        _longer(run.metric("allocation").get("persyn", {}), responses),
        _dropped(run.metric("dataset")),
        _endless(run.samples),
    ]


def _cut(counts: Mapping[str, Any]) -> Signature:
    what = "responses are cut at max_tokens: the student learns to stop in the middle, and long thinkers lose unfairly"
    advice = "raise sampling.max_tokens of these teachers (only cut responses are paid for again)"
    return _by_teacher("cut at max_tokens", what, counts, "length", CUT, advice)


def _defect(kind: str, what: str, counts: Mapping[str, Any]) -> Signature:
    policy = f"set defects.{kind} to penalise or drop" if kind in DETECTORS else "run the stage again"
    advice = f"read some of these responses; mend the teacher's prompt or sampling, or {policy}"
    return _by_teacher(f"defect: {kind}", what, counts, kind, DEFECT, advice)


def _by_teacher(name: str, what: str, counts: Mapping[str, Any], key: str, levels: Levels, advice: str) -> Signature:
    shares = {teacher: of.get(key, 0) / of["responses"] for teacher, of in counts.items() if of["responses"]}
    what += f" ({_told(levels)} of a teacher's responses)"
    if not shares:
        return Signature(name, what, "", "unknown", "dvc repro defects")
    worst = sorted(shares, key=lambda teacher: (-shares[teacher], teacher))
    named = [
        f"{teacher} {counts[teacher].get(key, 0)} of {counts[teacher]['responses']} ({shares[teacher]:.0%})"
        for teacher in worst
        if shares[teacher]
    ]
    more = f" and {len(named) - 3} more" if len(named) > 3 else ""
    value = ", ".join(named[:3]) + more or "none"
    return Signature(name, what, value, _state(shares[worst[0]], levels), advice)


def _length(rewards: Mapping[str, Any]) -> Signature:
    name, what = (
        "reward is length",
        f"the reward ranks responses by how long they are; watch from {LENGTH[0]}, alarm from {LENGTH[1]} either way",
    )
    if not rewards:
        return Signature(name, what, "", "unknown", "dvc repro rewards")
    rho = rewards.get("length_correlation")
    advice = "compare with another quality method or alpha; look at the landscape above"
    if rho is None:
        return Signature(name, what, "rewards or lengths are all equal", "unknown", advice)
    return Signature(name, what, f"Spearman {rho:+.2f} of reward and tokens", _state(abs(rho), LENGTH), advice)


def _few(name: str, what: str, count: int | None, levels: Levels) -> Signature:
    advice = "raise prompts.num_parallel (what was answered is not paid for again) or change router.holdout"
    what += f"; fewer than {levels[0]:,} to watch, than {levels[1]:,} an alarm"
    if count is None:
        return Signature(name, what, "", "unknown", "dvc repro router")
    state: State = "alarm" if count < levels[1] else "watch" if count < levels[0] else "ok"
    return Signature(name, what, f"{count:,} prompts", state, advice)


def _collapsed(router: Mapping[str, Any]) -> Signature:
    name, what = "router collapsed", "one teacher gets at least 90 % of the prompts where the oracle gives it 20 % less"
    if "collapsed" not in router:
        return Signature(name, what, "", "unknown", "dvc repro router")
    teacher, share = max(router["share"].items(), key=lambda item: item[1])
    advice = "more parallel prompts, or another router.method"
    if chose_one_teacher(router):
        value = f"no: all to {teacher} on purpose, since routing is not shown to be worth anything"
        return Signature(name, what, value, "ok", advice)
    return Signature(name, what, f"most to {teacher}: {share:.0%}", "alarm" if router["collapsed"] else "ok", advice)


def chose_one_teacher(router: Mapping[str, Any]) -> bool:
    """Whether the router of metrics/router.json gives every prompt to one teacher because no gain was supported."""
    return router.get("trust", {}).get("trust") == 0


def _controls(router: Mapping[str, Any]) -> Signature:
    name = "router no better than its controls"
    what = "sending all prompts to one teacher, or by source or nearest neighbours, does as well"
    if "over_majority" not in router:
        return Signature(name, what, "", "unknown", "dvc repro router")
    over, regret = router["over_majority"], router["regret"]
    better = sorted(control for control, of in router["controls"].items() if of["regret"] <= regret)
    lost = over["difference"] < 0 and over["verdict"] == "differs"
    value = f"{over['difference']:+.3f} reward over the majority teacher ({over['verdict']})"
    value += f"; regret no higher: {', '.join(better)}" if better else "; lower regret than all of them"
    state: State = "alarm" if lost else "watch" if better or over["verdict"] != "differs" else "ok"
    return Signature(name, what, value, state, "more parallel prompts, or teachers that differ more; else do not route")


def _longer(allocation: Mapping[str, Any], responses: Mapping[str, pl.DataFrame]) -> Signature:
    name = "persyn routes to the long-winded"
    what = "its teachers write longer than random choice would: what is generated and trained on grows; "
    what += f"watch from {LONGER[0]:g}, alarm from {LONGER[1]:g} times"
    written = {teacher: table.filter(pl.col("finish_reason") != "error") for teacher, table in responses.items()}
    means = {name: table["num_response_tokens"].sum() / table.height for name, table in written.items() if table.height}
    share = {teacher: part for teacher, part in allocation.get("share", {}).items() if teacher in means}
    if not share or not sum(share.values()) or not sum(means.values()):
        return Signature(name, what, "", "unknown", "dvc repro routes@persyn")
    expected = sum(part * means[teacher] for teacher, part in share.items()) / sum(share.values())
    mean = sum(means.values()) / len(means)
    value = (
        f"{expected:,.0f} expected tokens a response, the teachers' mean is {mean:,.0f} ({expected / mean:.2f} times)"
    )
    advice = "see the ledger; if it is too much, try another alpha or terser teachers"
    return Signature(name, what, value, _state(expected / mean, LONGER), advice)


def _dropped(datasets: Mapping[str, Any]) -> Signature:
    name, what = "dataset rows dropped", "routed responses are thrown away, so that strategies train on unequal data"
    found = {}
    for key, of in datasets.items():
        # Dropping the worse of good responses is no loss, nor one that a later teacher's replaced or a limit asks for.
        meant = ("second", "sample", "max_per_teacher", "max_per_source")
        rows = of["rows"] - sum(of["dropped"].get(reason, 0) for reason in meant)
        if required := of.get("require"):
            rows -= max(0, of["dropped"].get("require", 0) - required["dropped"])
        if rows:
            found[key] = rows - of["kept"], rows
    advice = "see metrics/dataset/ for why; a defect that one teacher often has argues against it"
    return _worst(name, what, found, DROPPED, "dvc repro dataset", advice)


def _endless(samples: Mapping[str, pl.DataFrame]) -> Signature:
    name, what = (
        "student answers without end",
        "its answers to evaluation items end in a loop",
    )
    found = {}
    for strategy, table in samples.items():
        responses = table.unique(["task", "sample_id"], keep="first", maintain_order=True)["response"]
        if responses.len():
            found[strategy] = sum(repetition("", response) for response in responses), responses.len()
    advice = "train longer, drop cut and looping responses (defects.length, defects.repetition)"
    return _worst(name, what, found, ENDLESS, "dvc repro evaluation", advice)


def _worst(
    name: str, what: str, found: Mapping[str, tuple[int, int]], levels: Levels, make: str, advice: str
) -> Signature:
    """The Signature of the worst strategy; `found` has (how many, of how many) for each."""
    what += f" ({_told(levels)})"
    if not found:
        return Signature(name, what, "", "unknown", make)
    worst = max(sorted(found), key=lambda strategy: found[strategy][0] / found[strategy][1])
    some, of = found[worst]
    value = f"{worst} {some} of {of} ({some / of:.0%})" if some else "none"
    value += (
        f"; persyn {found['persyn'][0]} of {found['persyn'][1]}"
        if some and worst != "persyn" and "persyn" in found
        else ""
    )
    return Signature(name, what, value, _state(some / of, levels), advice)


def _told(levels: Levels) -> str:
    return f"watch from {levels[0]:.0%}, alarm from {levels[1]:.0%}"


def _state(value: float, levels: Levels) -> State:
    return "alarm" if value >= levels[1] else "watch" if value >= levels[0] else "ok"


def _first_line(detect: Callable[..., Any]) -> str:
    line = (detect.__doc__ or "").partition("\n")[0].rstrip(".")
    return line[:1].lower() + line[1:]


def worst_first(signatures: Iterable[Signature]) -> list[Signature]:
    """Sorted by state: alarm, watch, unknown, ok; otherwise in the given order."""
    return sorted(signatures, key=lambda found: ["alarm", "watch", "unknown", "ok"].index(found.state))
