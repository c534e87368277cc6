"""The plan: counts are exact where they can be, and what is paid then lies within what was planned."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from persyn.cli import app
from persyn.cost import Prices, TokenPrice, build_ledger
from persyn.errors import InputError
from persyn.generation import Sampling, Teacher, pool_of
from persyn.generation.budget import Budget
from persyn.generation.openai import OpenAISpeed
from persyn.generation.requests import open_store, prepare_requests
from persyn.generation.terms import Licenses
from persyn.planning import ANY, build_plan
from persyn.planning.known import declared_prompts, known_routes
from persyn.planning.retries import Checks
from persyn.planning.text import ledger_text, plan_text
from persyn.project import params as project_params
from persyn.project.params import check_params, read_params
from persyn.prompts import Source, anchor_prompts
from persyn.quality import QualitySettings, QualitySpeed, judge_ledger, score_quality
from persyn.quality.judge import JudgeSettings, question
from persyn.responses import generate_responses
from persyn.routed import build_routed
from persyn.routes import Car, Persyn, Random, Rule, Strong
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_folder, read_table
from persyn.statistics import what_shows
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table

ROOT = Path(__file__).parent.parent
TEACHERS = {
    name: Teacher(model=f"stub-{name}", license="x", backend="openai", sampling=Sampling(max_tokens=50))
    for name in "abc"
}
TABLE = prompts_table([f"Tell a story about the number {number}." for number in range(30)])
TABLE = TABLE.with_columns(parallel=pl.Series([number < 10 for number in range(30)]))
STRATEGIES: dict[str, Rule] = {
    "persyn": Persyn(rule="persyn"),
    "strong": Strong(rule="strong", teacher="a"),
    "random": Random(rule="random"),
}


def plan(folder: Path, strategies: Mapping[str, Rule] = STRATEGIES, **changes: Any) -> dict[str, Any]:
    prompts, teachers = changes.get("prompts", TABLE), changes.get("teachers", TEACHERS)
    routes = known_routes(prompts, list(pool_of(teachers)), strategies, changes.get("made", {}))
    prices, budget = changes.get("prices", Prices()), changes.get("budget", Budget())
    quality = changes.get("quality", QualitySettings(methods={"instruction": "checkers"}))
    checks = changes.get("checks", Checks(quality))
    return build_plan(prompts, teachers, strategies, routes, folder, prices, budget, checks)


def holds(use: dict[str, Any], truth: dict[str, int]) -> bool:
    return all(use[name][0] <= truth[name] <= use[name][1] for name in truth)


def test_what_is_paid_then_is_what_was_planned(tmp_path: Path) -> None:
    cold = plan(tmp_path)
    assert not list(tmp_path.iterdir()), "planning writes nothing"
    strategies = {name: STRATEGIES[name] for name in ("strong", "random")}
    with stub_teacher() as server:
        speed = OpenAISpeed(base_url=server.url)
        each = dict.fromkeys(TEACHERS, speed)
        for name, teacher in TEACHERS.items():  # a probe
            generate_responses(anchor_prompts(TABLE.filter("parallel"), 4), name, teacher, tmp_path, speed)
        probed = plan(tmp_path)
        answers = [generate_responses(TABLE.filter("parallel"), n, t, tmp_path, speed) for n, t in TEACHERS.items()]
        parallel, routed = pl.concat(answers), {}
        warm = plan(tmp_path)
        for name, routes in known_routes(TABLE, list(TEACHERS), strategies, {}).items():
            routed[name] = build_routed(TABLE, routes, parallel, TEACHERS, Licenses(), tmp_path, each)
    ledger = build_ledger(TABLE, parallel, routed)
    for name, truth in ledger["parallel"].items():
        assert holds(cold["responses"][name], truth)
        assert probed["responses"][name]["calls"] == [6, 6]
    assert warm["responses"] == {}
    for name in routed:
        for found in (cold, probed, warm):
            calls = [use["calls"][0] for use in found["routed"][name].values()]
            assert sum(calls) == ledger["routed"][name]["spent"]["calls"] == 20
            tokens = [use["response_tokens"] for use in found["routed"][name].values()]
            assert sum(low for low, _ in tokens) <= ledger["routed"][name]["spent"]["response_tokens"]
            assert sum(high for _, high in tokens) >= ledger["routed"][name]["spent"]["response_tokens"]
    only = plan(tmp_path, strategies)
    assert only["total"]["all"]["calls"] == [0, 0]
    assert "nothing is left to ask" in plan_text(
        only | {"refused": [], "precomputed": ["a"], "prompts": only["prompts"] | {"from": "a file"}}
    )
    assert only["generate_then_select"]["times_fewer_calls"] == {"strong": [1.8, 1.8], "random": [1.8, 1.8]}
    assert server.counts["ok"] == ledger["total"]["spent"]["calls"]


def test_calls_nobody_can_split_yet_are_an_interval_over_teachers(tmp_path: Path) -> None:
    """20 prompts are not parallel. `strong` covers them by a; persyn's choice may agree with it, or never."""
    known = {name: STRATEGIES[name] for name in ("persyn", "strong")}
    found = plan(tmp_path, known)
    assert found["routed"]["persyn"] == {ANY: found["routed"]["persyn"][ANY]}
    assert found["routed"]["persyn"][ANY]["calls"] == [20, 20]
    assert found["total"]["all"]["calls"] == [30 + 20, 30 + 20 + 20]
    assert plan(tmp_path, {"persyn": STRATEGIES["persyn"]})["total"]["all"]["calls"] == [50, 50]
    two = {"persyn": Persyn(rule="persyn", second_below=0.1), "car": Car(rule="car")}
    found = plan(tmp_path, two)
    assert found["routed"]["persyn"][ANY]["calls"] == [20, 40]
    assert found["total"]["all"]["calls"] == [50, 30 + 60], "no more than all there are"
    made = known_routes(TABLE, list("abc"), {"random": STRATEGIES["random"]}, {})["random"]
    exact = plan(tmp_path, {"persyn": STRATEGIES["persyn"]}, made={"persyn": made})
    assert exact["total"]["all"]["calls"] == [50, 50]
    assert ANY not in exact["routed"]["persyn"]
    other = plan(tmp_path, {"persyn": STRATEGIES["persyn"]}, made={"persyn": made[1:]})
    assert ANY in other["routed"]["persyn"], "routes of other prompts say nothing"


def test_a_teacher_with_anchors_answers_only_those(tmp_path: Path) -> None:
    teachers = TEACHERS | {"c": TEACHERS["c"].changed(anchors=3)}
    found = plan(tmp_path, {"only_c": Strong(rule="strong", teacher="c")}, teachers=teachers)
    assert found["responses"]["c"]["calls"] == [3, 3]
    assert found["routed"]["only_c"]["c"]["calls"] == [27, 27]


def test_the_student_itself_is_planned_for_the_parallel_set_alone(tmp_path: Path) -> None:
    """Ten prompts are parallel, 20 are not: none of these can be routed to it, and selecting would not ask it."""
    itself = TEACHERS["c"].changed(is_student=True, model="itself")
    for strategies in (STRATEGIES, {"persyn": STRATEGIES["persyn"], "car": Car(rule="car")}):
        alone, found = (plan(tmp_path, strategies, teachers=given) for given in (TEACHERS, TEACHERS | {"me": itself}))
        assert found["responses"]["me"]["calls"] == [10, 10]
        assert {name: use for name, use in found["responses"].items() if name != "me"} == alone["responses"]
        assert found["routed"] == alone["routed"]
        assert found["total"]["all"]["calls"] == [end + 10 for end in alone["total"]["all"]["calls"]]
        assert found["generate_then_select"]["calls"] == alone["generate_then_select"]["calls"]
        assert found["scores"]["learnability"] == alone["scores"]["learnability"]
        assert found["scores"]["quality"] == {"checkers": 40}
    notes = {"refused": [], "precomputed": [], "prompts": found["prompts"] | {"from": "a file"}, "told": ["it is for"]}
    assert "It is for." in plan_text(found | notes)
    few = (
        "Evaluation: at most 5 items a task. Of differences between two students that differ on one item in ten, none "
    )
    assert few in " ".join(plan_text(found | notes | {"evaluation": what_shows(5)}).split())


def test_money_and_hours_only_where_they_are_known(tmp_path: Path) -> None:
    here = Teacher(model="o/model-7B", revision="0" * 40, license="x", backend="vllm", sampling=Sampling(max_tokens=50))
    teachers = {"a": TEACHERS["a"], "b": here, "c": here.changed(model="o/model")}
    prices = Prices(gpu_hour=2.0, teachers={"a": TokenPrice(input=1e6, output=2e6)})
    found = plan(tmp_path, {"strong": STRATEGIES["strong"]}, teachers=teachers, prices=prices)
    a, b, c = (found["responses"][name] for name in "abc")
    for end in (0, 1):
        assert a["money"][end] == pytest.approx(a["prompt_tokens"][end] + 2 * a["response_tokens"][end], rel=0.01)
        assert b["money"][end] == pytest.approx(2 * b["gpu_hours"][end], rel=0.01)
    assert a["gpu_hours"] == [0, 0], "it runs elsewhere"
    assert c["money"] is c["gpu_hours"] is None
    assert (found["unpriced"], found["unsized"], found["weights"]) == (["c"], ["c"], 14e9)
    assert plan(tmp_path)["total"]["all"]["money"] is None, "no price is not 0"


@pytest.mark.parametrize(
    ("prices", "message"),
    [
        ({"teachers": {"d": {"input": 1, "output": 1}}}, r"prices\.teachers .*'d', which is no teacher"),
        ({"sizes": {"smollm2-ters": 7}}, r"prices\.sizes .*'smollm2-ters'.* did you mean smollm2-terse\?"),
        ({"teachers": {"smollm2-terse": {"input": 1}}}, r"prices\.teachers\.smollm2-terse\.output is missing"),
    ],
)
def test_prices_of_no_teacher_and_by_halves_are_named(prices: dict[str, Any], message: str) -> None:
    shipped = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    with pytest.raises(InputError, match=message):
        check_params({**shipped, "prices": prices})


@pytest.mark.parametrize(("limit", "verdict"), [(100, "surely exceeds"), (2500, "may exceed"), (9000, "surely fits")])
def test_the_budget_is_compared(tmp_path: Path, limit: int, verdict: str) -> None:
    assert plan(tmp_path, budget=Budget(max_tokens=limit))["budget"]["verdict"] == verdict


def test_a_wrong_strategy_is_found_before_anything_runs(tmp_path: Path) -> None:
    shipped = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"rule": "persin"}, r"strategies\.wrong\.rule is 'persin'; .* did you mean persyn\?"),
        ({"rule": "persyn", "second": 1}, r"strategies\.wrong\.second .* did you mean second_below\?"),
        ({"rule": "car", "bta": 1}, r"strategies\.wrong\.bta .* did you mean beta\?"),
    ]
    for strategy, message in wrong:
        with pytest.raises(InputError, match=message):
            check_params({**shipped, "strategies": {"wrong": strategy}})
    with pytest.raises(InputError, match="leave at least one"):
        plan(tmp_path, {"wrong": Persyn(rule="persyn", exclude=list("abc"))})
    with pytest.raises(InputError, match="source o/n is not here and has no limit"):
        declared_prompts([Source(hub="o/n")], 5)


@pytest.mark.parametrize(
    ("profile", "calls", "select"),
    [
        ("one-gpu", 5 * 400 + 1_600, 5 * 2_000),
        ("paper-math", 15 * 2500 + 7_500, 15 * 10_000),
        ("code", 9 * 2500 + 47_974, 9 * 50_474),
    ],
)
def test_every_profile_of_the_hub_is_planned_offline(profile: str, calls: int, select: int) -> None:
    result = CliRunner().invoke(app, ["plan", "--params", str(ROOT / f"profiles/{profile}/params.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    parallel = sum(use["calls"][0] for use in found["responses"].values())
    assert parallel + found["routed"]["persyn"][ANY]["calls"][0] == calls
    assert found["generate_then_select"]["calls"] == [select, select]
    assert found["unsized"] == []


def test_the_papers_setting_offline() -> None:
    result = CliRunner().invoke(app, ["plan", "--params", str(ROOT / "profiles/paper-instruct/params.yaml"), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["prompts"]["count"] == 50_000
    assert sum(use["calls"][0] for use in found["responses"].values()) == 19 * 2500
    assert found["routed"]["persyn"][ANY]["calls"] == [47_500, 47_500]
    assert found["generate_then_select"]["calls"] == [950_000, 950_000]
    assert found["generate_then_select"]["times_fewer_calls"]["persyn"] == [10.0, 10.0]
    assert found["unsized"] == []
    assert found["refused"] == ["qwen2-72b", "llama-3-8b", "llama-3-70b"]
    assert len(found["precomputed"]) == 19


@pytest.fixture(autouse=True)
def own_params(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command sets which profile is read."""
    monkeypatch.setattr(project_params, "PARAMS", project_params.PARAMS)


DATA = ROOT / "data"
made = pytest.mark.skipif(not (DATA / "routed/persyn.parquet").is_file(), reason="`make demo` has not been run here")


@made
@pytest.mark.parametrize("probe", [0, 3, 4, 8])
def test_the_demos_truth_lies_within_its_plan(tmp_path: Path, probe: int) -> None:
    """Cold, or after a probe: the store is filled from the demo's own answers."""
    params = read_params(ROOT / "params.yaml")
    teachers, strategies = params.teachers, params.strategies
    prompts = read_table(DATA / "prompts.parquet", PROMPTS)
    responses = read_folder(DATA / "responses", list(teachers), RESPONSES)
    seen = anchor_prompts(prompts.filter("parallel"), probe) if probe else prompts[:0]
    for name, teacher in teachers.items():
        requests = prepare_requests(seen, teacher)
        rows = seen.join(responses[name], on="prompt_id", maintain_order="left").to_dicts()
        stored = zip(requests, rows, strict=True)
        most = teacher.sampling.max_tokens
        open_store(tmp_path, teacher).put({f"{request.key}:{most}": row for request, row in stored})
    files = {name: read_table(DATA / f"routes/{name}.parquet", ROUTES) for name in strategies}
    found = plan(tmp_path, strategies, prompts=prompts, teachers=teachers, made=files)
    left = pl.concat(responses.values()).join(seen, on="prompt_id", how="anti")
    routed = read_folder(DATA / "routed", list(strategies), RESPONSES)
    fields = ("num_prompt_tokens", "num_response_tokens")
    parts = [(found["responses"], left)]
    for strategy, table in routed.items():
        new = table.join(pl.concat(responses.values()), on=["prompt_id", "teacher"], how="anti")
        assert new.height == prompts.filter(~pl.col("parallel")).height > 0
        parts.append((found["routed"][strategy], new))
        left = pl.concat([left, new])
    parts.append((found["total"], left.unique(["prompt_id", "teacher"])))
    for uses, table in parts:
        for (name,), part in table.group_by("teacher"):
            truth = part.select(pl.len().alias("calls"), *(pl.col(field).sum().alias(field[4:]) for field in fields))
            assert holds(uses[str(name)], truth.to_dicts()[0]), (name, truth, uses)
    if not probe:
        calls = left.unique(["prompt_id", "teacher"]).height
        assert found["total"]["all"]["calls"] == [calls, calls]
        assert sum(use["calls"][0] for use in found["responses"].values()) == 72


def test_tokens_above_max_tokens_are_foreseen_once_seen(tmp_path: Path) -> None:
    """A server that counts a thought that it does not limit."""
    teacher = {"a": TEACHERS["a"].changed(sampling=Sampling(max_tokens=2))}
    with stub_teacher() as server:
        server.completion_tokens = 70
        before = generate_responses(TABLE[:4], "a", teacher["a"], tmp_path, server.speed())
        found = plan(tmp_path, {"strong": STRATEGIES["strong"]}, teachers=teacher)
        table = generate_responses(TABLE.filter("parallel"), "a", teacher["a"], tmp_path, server.speed())
    new = build_ledger(TABLE, table.join(before, on="prompt_id", how="anti"), {})["parallel"]["a"]
    assert new == {"calls": 6, "prompt_tokens": new["prompt_tokens"], "response_tokens": 6 * 70}
    assert holds(found["responses"]["a"], new)
    assert found["above_limit"] == ["a"]
    notes: dict[str, Any] = {"refused": [], "precomputed": [], "prompts": found["prompts"] | {"from": "a file"}}
    assert "Above sampling.max_tokens: responses of a took more tokens" in plan_text(found | notes)


def test_a_second_verdict_that_is_due_is_in_the_plan(tmp_path: Path) -> None:
    """The first calls could not be read, and the run ended before the second ones."""
    judge = JudgeSettings(model="judge", max_tokens=30, max_error_share=1.0)
    quality = QualitySettings(methods={"instruction": "judge"}, judge=judge)
    teacher = {"a": TEACHERS["a"]}
    parallel, changes = TABLE.filter("parallel"), {"teachers": teacher, "quality": quality}
    with stub_teacher(say=lambda asked: "Hm.") as server:
        responses = generate_responses(parallel, "a", TEACHERS["a"], tmp_path, server.speed())
        asked = responses.join(parallel, on="prompt_id", validate="1:1")
        first = pl.DataFrame({"prompt": [question(row) for row in asked.iter_rows(named=True)]})
        first = first.with_columns(prompt_id=pl.col("prompt"))
        generate_responses(first, "the judge", judge.asked_as, tmp_path, server.speed())
        due = plan(tmp_path, {"strong": STRATEGIES["strong"]}, **changes)
        before = server.counts["ok"]
        score_quality(parallel, responses, tmp_path, quality, QualitySpeed(server.speed()))
        assert due["judge"]["judge"]["calls"] == [server.counts["ok"] - before] * 2 == [10, 10]
    assert plan(tmp_path, {"strong": STRATEGIES["strong"]}, **changes)["judge"]["judge"]["calls"] == [0, 0]


def test_the_verdicts_that_a_second_opinion_needs_are_in_the_plan(tmp_path: Path) -> None:
    """Where a prompt has two teachers, the stage dataset may have both judged. 20 prompts are not parallel."""
    judge = QualitySettings(methods={"instruction": "judge"}, judge=JudgeSettings(model="judge", max_error_share=1.0))
    two: dict[str, Rule] = {"persyn": Persyn(rule="persyn", second_below=0.1)}
    assert plan(tmp_path, two, quality=judge)["judge"]["judge"]["calls"] == [30, 2 * (30 + 2 * 20)]
    routes = known_routes(TABLE, list("abc"), {"random": STRATEGIES["random"]}, {})["random"]
    undecided = routes.filter(~pl.col("prompt_id").is_in(TABLE.filter("parallel")["prompt_id"].to_list()))[:3]
    other = undecided.with_columns(teacher=pl.col("teacher").replace({"a": "b", "b": "c", "c": "a"}))
    both = pl.concat([routes, other])
    found = plan(tmp_path, two, made={"persyn": both}, quality=judge)
    assert found["judge"]["judge"]["calls"] == [30, 2 * (30 + 2 * 3)]
    assert found["total"]["all"]["calls"] == [30 + 20 + 3 + 30, 30 + 20 + 3 + 72]
    with stub_teacher(say=lambda asked: f"Score: 5 {len(asked)}") as server:
        for name, teacher in TEACHERS.items():
            mine = both.filter(teacher=name).select("prompt_id")
            wanted = TABLE.filter(pl.col("parallel") | pl.col("prompt_id").is_in(mine["prompt_id"].to_list()))
            rows = generate_responses(wanted, name, teacher, tmp_path, server.speed())
            score_quality(TABLE, rows, tmp_path, judge, QualitySpeed(server.speed()))
    assert plan(tmp_path, two, made={"persyn": both}, quality=judge)["judge"]["judge"]["calls"] == [0, 0]


def test_a_judge_is_in_the_plan_the_budget_and_the_ledger(tmp_path: Path) -> None:
    """Its calls then lie within what was planned, are paid once, and have their price."""
    judge = JudgeSettings(model="judge", max_tokens=30, max_error_share=1.0)
    quality = QualitySettings(methods={"instruction": "judge"}, judge=judge)
    prices = Prices(teachers={"judge": TokenPrice(input=1e6, output=1e6)})
    changes: dict[str, Any] = {"quality": quality, "prices": prices}
    strategies, parallel = {"strong": STRATEGIES["strong"]}, TABLE.filter("parallel")
    cold = plan(tmp_path, strategies, **changes)
    assert cold["judge"]["judge"]["calls"] == [30, 60]
    assert cold["total"]["all"]["calls"] == [30 + 20 + 30, 30 + 20 + 60]
    assert not list(tmp_path.iterdir()), "planning writes nothing"
    needed = plan(tmp_path, strategies, **changes, budget=Budget(max_tokens=10**6))["budget"]["needed"]
    without = plan(tmp_path, strategies, prices=prices, budget=Budget(max_tokens=10**6))["budget"]["needed"]
    assert needed[0] > without[0]
    assert needed[1] > without[1]
    with stub_teacher(
        say=lambda asked: "Score: 5" if "number 1" in asked or "[Reminder]" in asked else "Hm."
    ) as server:
        speed = server.speed()
        for name, teacher in TEACHERS.items():
            generate_responses(parallel, name, teacher, tmp_path, speed)
        responses = pl.concat([generate_responses(parallel, n, t, tmp_path, speed) for n, t in TEACHERS.items()])
        warm = plan(tmp_path, strategies, **changes)
        before = server.counts["ok"]
        for _ in range(2):
            score_quality(parallel, responses, tmp_path, quality, QualitySpeed(speed))
        calls = server.counts["ok"] - before
    spent = judge_ledger(TABLE, [responses, responses], tmp_path, quality)
    assert spent is not None
    assert spent["calls"] == calls > 10
    assert warm["judge"]["judge"]["calls"] == [10, 20], "the stub's teachers respond alike: ten questions"
    assert holds(warm["judge"]["judge"], spent)
    assert plan(tmp_path, strategies, **changes)["judge"]["judge"]["calls"] == [0, 0]
    ledger = build_ledger(TABLE, responses, {"strong": responses.filter(teacher="a")}, prices, spent)
    assert ledger["judge"] == spent
    assert ledger["money"]["spent"] == spent["prompt_tokens"] + spent["response_tokens"]
    assert "spent on the judge" in ledger_text(ledger)
    notes: dict[str, Any] = {"refused": [], "precomputed": [], "prompts": cold["prompts"] | {"from": "a file"}}
    assert "the judge's verdicts, at most two a response" in plan_text(cold | notes)


def test_verdicts_on_prompts_that_go_to_two_teachers_are_in_the_plan(tmp_path: Path) -> None:
    judge = JudgeSettings(model="judge", max_tokens=30)
    quality = QualitySettings(methods={"instruction": "judge"}, judge=judge)
    two: dict[str, Rule] = {"persyn": Persyn(rule="persyn", second_below=0.1)}
    unknown = plan(tmp_path, two, quality=quality)["judge"]["judge"]
    assert unknown["calls"] == [30, 60 + 2 * 2 * 20], "perhaps none, at most two a response of what is not parallel"
    routes = known_routes(TABLE, list("abc"), {"strong": STRATEGIES["strong"]}, {})["strong"]
    second = routes[:8].with_columns(teacher=pl.lit("b"))
    made = {"persyn": pl.concat([routes, second.cast(routes.schema)])}
    known = plan(tmp_path, two, quality=quality, made=made)["judge"]["judge"]
    outside = sum(not parallel for parallel in TABLE.join(second, on="prompt_id", how="semi")["parallel"])
    assert known["calls"] == [30, 60 + 2 * 2 * outside]
    assert plan(tmp_path, {"persyn": Persyn(rule="persyn")}, quality=quality)["judge"]["judge"]["calls"] == [30, 60]
