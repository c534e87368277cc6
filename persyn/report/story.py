"""The story: what a run cost and what came of it, in a few lines for a terminal."""

from typing import Any

from persyn.project.snapshot import Snapshot
from persyn.report.overview import verdict
from persyn.report.page import REFERENCE, count, listed
from persyn.router.worth import worth_text
from persyn.settings import UNTUNED
from persyn.summary import main_metric

FEW = 100
"""With fewer items a task, the story says that they prove nothing."""


def story(run: Snapshot) -> list[str]:
    """Seven lines: the cost, what it saved, who answers, whether the student is better than before and than under other
    strategies, whether routing is worth it, and how sure that is. A line names what is not made yet.
    """
    routing = worth_text(run.metric("router"))[:1] or ["not known (no router with cross-validation; dvc repro router)."]
    return [
        *_cost(run),
        f"Who answers what: {_allocation(run)}",
        f"Is the student better than untuned? {_learnt(run)}",
        f"Is it better than under other strategies? {verdict(_others(run))}",
        f"Is routing worth it? {routing[0]}",
        f"How sure is this? {_sure(run)}",
    ]


def _cost(run: Snapshot) -> list[str]:
    cost = run.metric("cost", None)
    if not cost:
        return ["What it cost: not known yet (dvc repro cost).", "What it saved: not known yet (dvc repro cost)."]
    used = cost["routed"].get(REFERENCE)
    uses = [*cost["parallel"].values(), used["spent"]] if used else [cost["total"]["spent"]]
    calls, tokens = (sum(use[unit] for use in uses) for unit in ("calls", "response_tokens"))
    who = REFERENCE if used else "all strategies together"
    found = cost.get("money")
    spent = (found["strategies"].get(REFERENCE) if used else found["spent"]) if found else None
    money = "no price is given (prices in params.yaml)" if spent is None else f"{spent:,.2f} {found['currency']}"
    unpriced = f", without {', '.join(found['unpriced'])}" if spent is not None and found["unpriced"] else ""
    told = f"{count(calls)} calls to {len(cost['parallel'])} teachers, {count(tokens)} response tokens"
    saved = cost["saved"].get(REFERENCE, {}).get("calls")
    fewer = f", {saved:.1f} times as many" if saved else f"; there is no strategy {REFERENCE} to compare with"
    everything = count(cost["generate_then_select"]["calls"])
    return [
        f"What it cost ({who}): {told}; {money}{unpriced}.",
        f"What it saved: every teacher on every prompt would take {everything} calls{fewer}.",
    ]


def _allocation(run: Snapshot) -> str:
    found = run.metric("allocation").get(REFERENCE)
    if not found:
        return f"no routes of the strategy {REFERENCE} yet (dvc repro routes)."
    shares = sorted(found["share"].items(), key=lambda item: (-item[1], item[0]))
    who = listed([f"{name} {share:.0%}" for name, share in shares if share])
    return f"{who} of {count(found['prompts'])} prompts."


def _learnt(run: Snapshot) -> str:
    """The tuned student beside the untuned one, on each task's main metric."""
    before, after = run.metric("beside").get(UNTUNED), run.metric("evaluation").get(REFERENCE)
    if not before or not after:
        return f"Not measured: it takes {UNTUNED} and a student of {REFERENCE} (dvc repro comparison)."
    verdicts: Any = run.metric("comparison").get(UNTUNED) or {}
    parts = []
    for task in (name for name in after if name in before):
        metric = main_metric(after[task])
        if metric in before[task]:
            old, new = before[task][metric]["value"], after[task][metric]["value"]
            said = verdicts.get(task, {}).get(metric, {}).get("verdict", "not compared yet")
            parts.append(f"{task} ({metric}) {old:.3f} before, {new:.3f} now, {said}")
    return f"{'; '.join(parts[:3])}{f'; {len(parts) - 3} more tasks in the report' if len(parts) > 3 else ''}."


def _others(run: Snapshot) -> dict[str, Any] | None:
    """metrics/comparison.json without the untuned student, and with each task's main metric alone."""
    comparison = run.metric("comparison", None)
    if comparison is None:
        return None
    return {
        name: {task: {main_metric(metrics): metrics[main_metric(metrics)]} for task, metrics in tasks.items()}
        for name, tasks in comparison.items()
        if name != UNTUNED
    }


def _sure(run: Snapshot) -> str:
    found = [
        fields
        for tasks in run.metric("comparison").values()
        for metrics in tasks.values()
        for fields in metrics.values()
    ]
    if not found:
        return "Nothing has been compared yet."
    least = min(fields["n"] for fields in found)
    if least < FEW:
        return f"Not at all: {least} items a task prove nothing. The pipeline works; no more is shown."
    return f"{count(least)} items a task or more, one training; other seeds may give other differences."
