"""The story that `persyn report` prints: its numbers are those of the metrics; what is missing is said in words."""

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


def test_it_tells_cost_savings_allocation_student_and_routing(run: Snapshot) -> None:
    lines = story(run)
    assert [line.partition("?")[0].partition(":")[0] for line in lines] == [
        "What it cost (persyn)",
        "What it saved",
        "Who answers what",
        "Is the student better than untuned",
        "Is it better than under other strategies",
        "Is routing worth it",
        "How sure is this",
    ]
    assert "no price is given" in lines[0]
    assert f"would take {run.metric('cost')['generate_then_select']['calls']} calls, " in lines[1]
    assert " before, " in lines[3]
    assert "untuned" not in lines[4]
    assert "200 items a task or more" in lines[6]
    few = {"random": {"sums": {"acc": {"n": 16, "verdict": "identical", "mde": None}}}}
    assert "16 items a task prove nothing" in story(run.replace(metrics={"comparison": few}))[6]


def test_every_part_may_be_missing(run: Snapshot) -> None:
    for name in run.metrics:
        assert len(story(run.replace(metrics={**run.metrics, name: None}))) == 7
    assert "dvc repro cost" in story(run.replace(metrics={}))[0]
    others = invented(["ann", "ben"], ["persyn", "random"], ["sums"]).metric("cost")
    cost = {**others, "routed": {}, "saved": {}}
    lines = story(run.replace(metrics={"cost": cost}))
    assert "all strategies together" in lines[0]
    assert "no strategy persyn" in lines[1]
