"""The story: what a run cost and what came of it, in a few lines for a terminal."""

from typing import Any

from persyn.project.snapshot import Snapshot
from persyn.report.overview import verdict
from persyn.report.page import REFERENCE, count, listed
from persyn.router.worth import worth_text
from persyn.settings import UNTUNED
from persyn.summary import main_metric


def story(run: Snapshot) -> list[str]:
    """At most eight lines: the cost, what it saved, who responds, whether the student is better than before and than
    under other strategies, and whether routing is worth it. What is not made yet is named.
    """
    told = [*_cost(run), *_allocation(run), *_learnt(run)]
    if run.metric("comparison", None) is not None:
        told.append(f"Compared: {verdict(run.metric('comparison'))}")
    return [*told, *worth_text(run.metric("router"))[:2]]


def _cost(run: Snapshot) -> list[str]:
    cost = run.metric("cost", None)
    if cost is None or REFERENCE not in cost["routed"]:
        why = f"there is no strategy {REFERENCE}" if cost else "not known yet (dvc repro cost)"
        return [f"Cost: {why}."]
    uses = [*cost["parallel"].values(), cost["routed"][REFERENCE]["spent"]]
    calls, tokens = (sum(use[unit] for use in uses) for unit in ("calls", "response_tokens"))
    everything = cost["generate_then_select"]["calls"]
    fewer = cost["saved"][REFERENCE].get("calls")
    saved = f": {fewer:.1f} times fewer" if fewer else ""
    return [
        f"Cost of {REFERENCE}: {count(calls)} calls to {len(cost['parallel'])} teachers, {count(tokens)} response "
        f"tokens (`persyn ledger` has all strategies, and money where prices are given).",
        f"Every teacher on every prompt would have been {count(everything)} calls{saved}.",
    ]


def _allocation(run: Snapshot) -> list[str]:
    found = run.metric("allocation").get(REFERENCE)
    if not found:
        return []
    shares = sorted(found["share"].items(), key=lambda item: (-item[1], item[0]))
    who = listed([f"{name} {share:.0%}" for name, share in shares if share])
    return [f"Who responds: {who}, of {count(found['prompts'])} prompts."]


def _learnt(run: Snapshot) -> list[str]:
    """The tuned student beside the untuned one, on each task's main metric."""
    before, after = run.metric("beside").get(UNTUNED), run.metric("evaluation").get(REFERENCE)
    if not before or not after:
        return ["Is the student better than before? Not measured yet (dvc repro beside comparison)."]
    verdicts: Any = run.metric("comparison").get(UNTUNED) or {}
    parts = []
    for task in (name for name in after if name in before):
        metric = main_metric(after[task])
        old, new = before[task][metric], after[task][metric]
        said = verdicts.get(task, {}).get(metric, {}).get("verdict")
        items = f"{new['n']} items" + (f", {said}" if said else "")
        parts.append(f"{task} {old['value']:.3f} before, {new['value']:.3f} now ({items})")
    return [f"Is the student better than before? {'; '.join(parts)}."]
