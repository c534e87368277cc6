"""The story that `persyn report` prints: its numbers are those of the metrics; what is missing is said in words."""

from typing import Any

import pytest

from persyn.comparison import compare_strategies
from persyn.project.snapshot import Snapshot
from persyn.report.story import story
from tests.support.invented import invented


@pytest.fixture(scope="module")
def run() -> Snapshot:
    made = invented(["ann", "ben"], ["persyn", "random"], ["sums"])
    samples = {**made.samples, "untuned": made.samples["random"]}
    beside = {"untuned": made.metric("evaluation")["random"]}
    return made.replace(metrics={**made.metrics, "beside": beside, "comparison": compare_strategies(samples)})


def changed(run: Snapshot, **metrics: Any) -> list[str]:
    return story(run.replace(metrics={**run.metrics, **metrics}))


def test_it_tells_cost_savings_allocation_student_and_routing(run: Snapshot) -> None:
    cost, lines = run.metric("cost"), story(run)
    spent = sum(use["calls"] for use in [*cost["parallel"].values(), cost["routed"]["persyn"]["spent"]])
    assert lines[0].startswith(f"Cost of persyn: {spent} calls to 2 teachers, ")
    assert "no teacher has a price" in lines[0]
    every, saved = cost["generate_then_select"]["calls"], cost["saved"]["persyn"]["calls"]
    assert lines[1].endswith(f" would take {every} calls; this took {saved:.2f} times fewer calls.")
    best, share = max(run.metric("allocation")["persyn"]["share"].items(), key=lambda item: item[1])
    assert lines[2].startswith(f"Who responds: {best} to {share:.0%} and ")
    ours, untuned = run.metric("evaluation")["persyn"]["sums"], run.metric("beside")["untuned"]["sums"]
    (metric,) = ours
    told = f"sums ({metric}) {untuned[metric]['value']:.3f} before, {ours[metric]['value']:.3f} now: "
    assert lines[3].startswith(f"Is the student better than before? {told}")
    assert lines[3].endswith(" (of the responses 10% were cut before, 0% now).")
    assert "random" in lines[4]
    assert "untuned" not in lines[4]
    assert lines[5].startswith("Is routing worth it? Routing is worth +0.050")
    assert "200 items a task or more" in lines[6]
    few = {"random": {"sums": {"acc": {"n": 16, "verdict": "identical", "mde": None}}}}
    assert "16 items a task prove nothing" in changed(run, comparison=few)[6]


def test_it_tells_money_where_there_are_prices_and_more_calls_as_more(run: Snapshot) -> None:
    prices = {"currency": "EUR", "teachers": {"ann": {"input": 1e6, "output": 0.0}}}
    line = story(run.replace(params={**run.params, "prices": prices}))[0]
    assert line.endswith(" EUR; ben without a price.")
    cost = run.metric("cost")
    assert "1.25 times more calls" in changed(run, cost={**cost, "saved": {"persyn": {"calls": 0.8}}})[1]


def test_a_router_without_cross_validation_is_told_by_its_held_out_prompts(run: Snapshot) -> None:
    router = {name: found for name, found in run.metric("router").items() if name != "learnable"}
    assert "held-out prompts the router" in changed(run, router=router)[5]
    assert "too few prompts" in changed(run, router={"regret": 0.1})[5]


def test_every_part_may_be_missing(run: Snapshot) -> None:
    for name in run.metrics:
        missing: Any = {} if name in ("allocation", "evaluation", "dataset") else None
        assert len(changed(run, **{name: missing})) == 7, name
    nothing = story(run.replace(metrics=dict.fromkeys(run.metrics, None) | {"allocation": {}, "evaluation": {}}))
    assert nothing == [
        "Cost of persyn: not known yet (dvc repro cost).",
        "Saved: nothing to compare with every teacher on every prompt.",
        "Who responds: no routes of persyn yet (dvc repro routes).",
        "Is the student better than before? Not measured yet (dvc repro comparison).",
        "Is it better than the others? No verdict yet: no students have been compared (dvc repro comparison).",
        "Is routing worth it? Not known yet (dvc repro router).",
        "How sure is this? Nothing has been compared yet.",
    ]
    cost = {**run.metric("cost"), "routed": {}, "saved": {}}
    assert changed(run, cost=cost)[0] == "Cost of persyn: there is no strategy persyn."
