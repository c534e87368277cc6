"""Signatures: each way to fail is told when it is there, and not when it is not."""

from typing import Any

import polars as pl
import pytest

from persyn.inspection.diagnostics import Signature, find_signatures, worst_first
from persyn.project.snapshot import Snapshot
from persyn.schemas import RESPONSES, SAMPLES

OVER = {"difference": 0.1, "verdict": "differs"}
ROUTER = {
    "collapsed": False,
    "share": {"a": 0.5, "b": 0.5},
    "num_train": 2000,
    "num_held_out": 500,
    "regret": 0.1,
    "controls": {"majority": {"regret": 0.2}, "knn": {"regret": 0.15}},
    "over_majority": OVER,
}
COUNTS = {"responses": 100, "length": 0, "error": 0, "repetition": 0}
METRICS: dict[str, Any] = {
    "rewards": {"length_correlation": 0.1},
    "router": ROUTER,
    "defects": {"a": COUNTS, "b": COUNTS},
    "allocation": {"persyn": {"share": {"a": 0.5, "b": 0.5}}},
    "dataset": {"persyn": {"rows": 100, "kept": 100, "dropped": {}}},
}
ENDLESS = "and so on and on, " * 40


def answers(teacher: str, length: int, reason: str = "stop") -> pl.DataFrame:
    row = {"prompt_id": "p", "teacher": teacher, "response": "x", "finish_reason": reason, "num_prompt_tokens": 1}
    return pl.DataFrame([row | {"num_response_tokens": length}], schema=RESPONSES)


def evaluated(*responses: str) -> pl.DataFrame:
    """Each item is scored by two metrics."""
    rows = [("t", str(n), metric, 1.0, text, False) for n, text in enumerate(responses) for metric in ("one", "two")]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


RESPONDED = {"a": answers("a", 100), "b": answers("b", 400)}
SAMPLED = {"persyn": evaluated("fine", "well"), "strong": evaluated("good", "fine")}


def run(metrics: dict[str, Any], samples: Any = SAMPLED) -> Snapshot:
    return Snapshot({}, metrics=metrics, responses=RESPONDED, samples=samples)


def found(name: str, samples: Any = SAMPLED, **changed: Any) -> Signature:
    """The signature of this name when some metrics are others."""
    [one] = [each for each in find_signatures(run(METRICS | changed, samples)) if each.name == name]
    return one


def test_a_healthy_run_shows_none() -> None:
    assert {each.state for each in find_signatures(run(METRICS))} == {"ok"}


def test_what_is_not_made_is_unknown_and_says_what_to_run() -> None:
    for nothing in ({}, dict.fromkeys(METRICS)):
        signatures = find_signatures(Snapshot({}, metrics=nothing))
        assert {each.state for each in signatures} == {"unknown"}
        assert all(each.advice.startswith("dvc repro ") for each in signatures)


@pytest.mark.parametrize(("changed", "state"), [({"length": 30}, "watch"), ({"length": 60}, "alarm")])
def test_cut_responses_name_the_worst_teacher(changed: dict[str, int], state: str) -> None:
    cut = found("cut at max_tokens", defects={"a": COUNTS | changed, "b": COUNTS})
    assert cut.state == state
    assert cut.value == f"a {changed['length']} of 100 ({changed['length']}%)"


def test_each_kind_of_defect_has_its_own() -> None:
    assert found("defect: repetition", defects={"a": COUNTS | {"repetition": 5}}).state == "watch"
    assert found("defect: error", defects={"a": COUNTS | {"error": 50}}).state == "alarm"
    assert found("defect: empty", defects={"a": COUNTS | {"repetition": 5}}).state == "ok"


@pytest.mark.parametrize(
    ("name", "change", "state"),
    [
        ("router collapsed", {"collapsed": True, "share": {"a": 0.95, "b": 0.05}}, "alarm"),
        ("few training prompts", {"num_train": 200}, "watch"),
        ("few training prompts", {"num_train": 20}, "alarm"),
        ("few held-out prompts", {"num_held_out": 6}, "alarm"),
        ("router no better than its controls", {"over_majority": OVER | {"verdict": "within noise"}}, "watch"),
        ("router no better than its controls", {"over_majority": OVER | {"difference": -0.1}}, "alarm"),
        ("router no better than its controls", {"regret": 0.15}, "watch"),
    ],
)
def test_the_router(name: str, change: dict[str, Any], state: str) -> None:
    signature = found(name, router=ROUTER | change)
    assert signature.state == state
    assert ("knn" in signature.value) == ("regret" in change)


def test_one_teacher_on_purpose_is_no_collapse() -> None:
    collapsed = ROUTER | {"collapsed": True, "share": {"a": 1.0, "b": 0.0}}
    signature = found("router collapsed", router=collapsed | {"trust": {"trust": 0.0}})
    assert (signature.state, signature.value[:27]) == ("ok", "no: all to a on purpose, si")
    assert found("router collapsed", router=collapsed | {"trust": {"trust": 0.5}}).state == "alarm"


@pytest.mark.parametrize(("rho", "state"), [(-0.6, "watch"), (0.9, "alarm"), (None, "unknown")])
def test_a_reward_that_is_length(rho: float | None, state: str) -> None:
    assert found("reward is length", rewards={"length_correlation": rho}).state == state


def test_routing_to_the_long_winded() -> None:
    signature = found("persyn routes to the long-winded", allocation={"persyn": {"share": {"a": 0.0, "b": 1.0}}})
    assert signature.state == "watch"
    assert signature.value == "400 expected tokens a response, the teachers' mean is 250 (1.60 times)"


def test_dropped_rows_and_endless_answers_name_the_worst_strategy() -> None:
    persyn = {"rows": 160, "kept": 99, "dropped": {"second": 60, "empty": 1}}
    strong = {"rows": 100, "kept": 70, "dropped": {"empty": 30}}
    dropped = found("dataset rows dropped", dataset={"persyn": persyn, "strong": strong})
    assert (dropped.state, dropped.value) == ("alarm", "strong 30 of 100 (30%); persyn 1 of 100"), "a second is no loss"
    endless = found("student answers without end", {"strong": evaluated(*["fine"] * 9, ENDLESS)})
    assert (endless.state, endless.value) == ("watch", "strong 1 of 10 (10%)")


def test_the_worst_comes_first() -> None:
    states = [
        each.state
        for each in worst_first(
            find_signatures(Snapshot({}, metrics={"rewards": {"length_correlation": 0.9}}, samples=SAMPLED))
        )
    ]
    assert states == ["alarm", *["unknown"] * (len(states) - 2), "ok"]
