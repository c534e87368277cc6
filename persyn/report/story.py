"""The story: what a run cost and what came of it, in seven lines for a terminal."""

from typing import Any

from persyn.comparison import unlike_cuts
from persyn.project.snapshot import Snapshot
from persyn.report.overview import fewer, over_one_teacher, verdict
from persyn.report.page import REFERENCE, count, listed
from persyn.report.results import money_of
from persyn.router.worth import worth_text
from persyn.settings import UNTUNED
from persyn.summary import cut_share, main_metric

FEW = 100
"""With fewer items a task, the story says that they prove nothing."""
MOST_TASKS = 3
"""So many tasks are told one by one."""


def story(run: Snapshot) -> list[str]:
    """Seven lines: the cost, what it saved, who responds, whether the student is better than before any tuning and than
    the others, whether routing is worth it, and how sure that is. A line names what is not made yet.
    """
    return [
        f"Cost of {REFERENCE}: {_cost(run)}",
        f"Saved: {_saved(run)}",
        f"Who responds: {_allocation(run)}",
        f"Is the student better than before? {_learnt(run)}",
        f"Is it better than the others? {verdict(_others(run))}",
        f"Is routing worth it? {_worth(run)}",
        f"How sure is this? {_sure(run)}",
    ]


def _cost(run: Snapshot) -> str:
    cost = run.metric("cost")
    if REFERENCE not in cost.get("routed", {}):
        return f"there is no strategy {REFERENCE}." if cost else "not known yet (dvc repro cost)."
    uses = [*cost["parallel"].values(), cost["routed"][REFERENCE]["spent"]]
    calls, tokens = (sum(use[unit] for use in uses) for unit in ("calls", "response_tokens"))
    teachers = len(cost["parallel"].keys() - {run.student})
    who = f"{teachers} teachers" + (" and the student" if run.student in cost["parallel"] else "")
    used = f"{count(calls)} calls to {who}, {count(tokens)} response tokens"
    money = money_of(run, cost)
    if not money:
        return f"{used}; no teacher has a price (prices in params.yaml), so no sum of money."
    judge = f" and {money['judge']:,.2f} for the judge" if money["judge"] else ""
    without = f"; {listed(money['unpriced'])} without a price" if money["unpriced"] else ""
    return f"{used}; {money['strategies'][REFERENCE]:,.2f} {money['currency']}{judge}{without}."


def _saved(run: Snapshot) -> str:
    cost = run.metric("cost")
    ratio = cost.get("saved", {}).get(REFERENCE, {}).get("calls")
    if ratio is None:
        return "nothing to compare with every teacher on every prompt."
    everything = count(cost["generate_then_select"]["calls"])
    return f"every teacher on every prompt would take {everything} calls; this took {fewer(ratio, 'calls')}."


def _allocation(run: Snapshot) -> str:
    found = run.metric("allocation").get(REFERENCE)
    if not found:
        return f"no routes of {REFERENCE} yet (dvc repro routes)."
    shares = sorted(found["share"].items(), key=lambda item: (-item[1], item[0]))
    who = listed([f"{name} to {share:.0%}" for name, share in shares if share])
    return f"{who} of {count(found['prompts'])} prompts."


def _learnt(run: Snapshot) -> str:
    """The tuned student beside the untuned one, on each task's main metric."""
    before, after = run.metric("beside").get(UNTUNED), run.metric("evaluation").get(REFERENCE)
    if not before or not after:
        return "Not measured yet (dvc repro comparison)."
    verdicts: Any = run.metric("comparison").get(UNTUNED) or {}
    parts = []
    for task in (name for name in after if name in before):
        metric = main_metric(after[task])
        if metric in before[task]:
            old, new = before[task][metric]["value"], after[task][metric]["value"]
            said = verdicts.get(task, {}).get(metric, {}).get("verdict", "not compared yet")
            cut = [share for share in (cut_share(before[task]), cut_share(after[task])) if share is not None]
            if len(cut) == 2 and unlike_cuts(cut):
                said += f" (of the responses {cut[0]:.0%} were cut before, {cut[1]:.0%} now)"
            parts.append(f"{task} ({metric}) {old:.3f} before, {new:.3f} now: {said}")
    more = [f"{len(parts) - MOST_TASKS} more tasks in the report"] if len(parts) > MOST_TASKS else []
    return f"{'; '.join([*parts[:MOST_TASKS], *more]) or 'No task was evaluated before and after'}."


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


def _worth(run: Snapshot) -> str:
    """The cross-validated worth; of a router without cross-validation, its worth on the held-out prompts."""
    router = run.metric("router")
    told = [*worth_text(router), *over_one_teacher(router)]
    if told:
        return told[0]
    return "Not known: too few prompts are held out." if router else "Not known yet (dvc repro router)."


def _sure(run: Snapshot) -> str:
    tasks = [task for found in run.metric("comparison").values() for task in found.values()]
    items = [fields["n"] for metrics in tasks for fields in metrics.values()]
    if not items:
        return "Nothing has been compared yet."
    if min(items) < FEW:
        return f"Not at all: {min(items)} items a task prove nothing, but that the pipeline works from end to end."
    return f"{count(min(items))} items a task or more, but one training each: other seeds may differ (docs/science.md)."
