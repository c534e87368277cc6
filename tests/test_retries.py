"""What the dataset requires: wrong answers are replaced by the next teacher's or left out, at the price foreseen."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from persyn import schemas
from persyn.cli import app
from persyn.cost import Prices, TokenPrice, build_ledger
from persyn.dataset import DatasetSettings, build_dataset
from persyn.dataset.card import build_card, count_origins
from persyn.defects import Policies, find_defects
from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.terms import Licenses
from persyn.planning import ANY, build_plan
from persyn.planning.known import known_routes
from persyn.planning.retries import Checks, fit_scores, tried_pairs
from persyn.planning.text import ledger_text, plan_text
from persyn.project.params import check_params
from persyn.quality import QualitySettings, score_quality
from persyn.responses import generate_responses
from persyn.routed import KEYS, Asking, Retries, asked_routes, collect_rounds, retry_failed
from persyn.routes import Persyn, Pool, Strong, build_routes
from persyn.schemas import DEFECTS, REWARDS, ROUTES, read_table, write_table
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table, responses_table, texts_of

SAMPLING = Sampling(max_tokens=30)
TEACHERS = {
    name: Teacher(model=f"stub-{name}", license="x", training="allowed", backend="openai", sampling=SAMPLING)
    for name in "abc"
}
SUMS = [f"What is {number} + 1?" for number in range(24)]
PROMPTS = pl.concat(
    [
        prompts_table(SUMS, "math", [str(number + 1) for number in range(24)]),
        prompts_table(["Say something.", "Say more."]),
    ]
).with_columns(parallel=pl.Series([number < 6 for number in range(24)] + [False, False]))
"""24 sums, 6 of them parallel, and two other prompts."""
QUALITY = QualitySettings(methods={"math": "math_verify", "instruction": "checkers"})
REQUIRE = DatasetSettings(require={"math": 1.0}, retries=2)


def right(teacher: str, number: int) -> bool:
    """a is right about no sum, b about those of odd numbers, c about those that 4 divides."""
    return {"a": False, "b": number % 2 == 1, "c": number % 4 == 0}[teacher]


def answer(asked: Mapping[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    text, teacher = asked["messages"][-1]["content"], asked["model"].removeprefix("stub-")
    said = "Well."
    if text in SUMS:
        number = SUMS.index(text)
        said = f"The answer is \\boxed{{{number + (1 if right(teacher, number) else 3)}}}."
    sent["choices"][0] |= {"finish_reason": "stop", "message": {"role": "assistant", "content": said}}
    sent["usage"] = {"prompt_tokens": 7, "completion_tokens": 5, "total_tokens": 12}
    return sent


@dataclass
class Run:
    """The parallel set, and all sums routed to a."""

    server: StubServer
    folder: Path
    parallel: pl.DataFrame
    routes: pl.DataFrame

    def __post_init__(self) -> None:
        self.speed = dict.fromkeys(TEACHERS, self.server.speed())

    def score(self, responses: pl.DataFrame) -> pl.DataFrame:
        return score_quality(PROMPTS, responses, self.folder, QUALITY)

    def routed(
        self, settings: DatasetSettings = REQUIRE, budget: Budget | None = None, rows: int | None = None
    ) -> pl.DataFrame:
        """The responses, with so many prompts in memory."""
        ordered = PROMPTS.sort("prompt_id")
        each = [ordered[start : start + (rows or 99)] for start in range(0, ordered.height, rows or 99)]
        parts = [(part, self.parallel.join(part, on="prompt_id", how="semi")) for part in each]
        retries = Retries(*(settings.retries, settings.require, Policies()), lambda _, responses: self.score(responses))
        with TemporaryDirectory() as scratch:
            terms = TEACHERS, Licenses(), self.folder, self.speed
            asking = Asking(lambda: parts, *terms, {"budget": budget}, Path(scratch))
            first = asking.ask(self.routes.select(KEYS), "routed")
            tables = [self.routes[start : start + 5] for start in range(0, self.routes.height, 5)]
            return pl.concat(collect_rounds(retry_failed(asking, lambda: tables, first, retries)))

    def dataset(self, routed: pl.DataFrame, settings: DatasetSettings = REQUIRE) -> tuple[pl.DataFrame, dict[str, Any]]:
        how = Policies(), TEACHERS, Licenses(), settings, self.routes, self.score
        return build_dataset(PROMPTS, routed, *how)

    def plan(
        self, *seen: str, routes: Mapping[str, pl.DataFrame] | None = None, tried: Sequence[pl.DataFrame] = ()
    ) -> dict[str, Any]:
        flaws = find_defects(PROMPTS, self.parallel), Policies()
        scored = {name: fit_scores(self.score(self.parallel.filter(teacher=name)), *flaws) for name in seen}
        strategies = {"persyn": Persyn(rule="persyn")}
        known = {"persyn": self.routes} if routes is None else routes
        money = Prices(teachers={"b": TokenPrice(input=1e6, output=1e6)})
        checks = Checks(QUALITY, REQUIRE, scored, tried)
        return build_plan(PROMPTS, TEACHERS, strategies, known, self.folder, money, Budget(), checks)


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    with stub_teacher() as server:
        server.dialect = answer
        asked = PROMPTS.filter("parallel")
        each = [generate_responses(asked, name, one, tmp_path, server.speed()) for name, one in TEACHERS.items()]
        pool = Pool(
            list("abc"),
            REWARDS.to_frame(),
            lambda prompts, method: np.tile([3.0, 2.0, 1.0], (prompts.height, 1)),
            {},
            with_next=True,
        )
        routes = build_routes(PROMPTS, pool, Persyn(rule="persyn"))
        server.counts.clear()
        server.bodies_seen.clear()
        yield Run(server, tmp_path, pl.concat(each), routes)


def asked_of(server: StubServer, name: str) -> list[int]:
    """The numbers of the sums that a teacher was asked for."""
    texts = [body["messages"][-1]["content"] for body in server.bodies_seen if body["model"] == f"stub-{name}"]
    return sorted(SUMS.index(text) for text in texts if text in SUMS)


@pytest.mark.parametrize("rows", [None, 5])
def test_exactly_the_failing_prompts_are_asked_again_and_no_wrong_answer_is_kept(run: Run, rows: int | None) -> None:
    """Everything goes to a, which is always wrong; b is asked next, then c where b is wrong too."""
    routed = run.routed(rows=rows)
    assert asked_of(run.server, "a") == asked_of(run.server, "b") == list(range(6, 24))
    assert asked_of(run.server, "c") == [number for number in range(6, 24) if number % 2 == 0]
    assert run.server.counts["ok"] == 18 + 2 + 18 + 9, "the two other prompts are not asked again"
    dataset, counts = run.dataset(routed)
    of_sums = routed.join(PROMPTS.filter(domain="math"), on="prompt_id", how="semi")
    assert run.score(of_sums.join(dataset, on=["prompt_id", "teacher"], how="semi"))["quality"].min() == 1
    kept = dict(zip(texts_of(PROMPTS), PROMPTS["prompt_id"], strict=True))
    who = dict(dataset.select("prompt_id", "teacher").iter_rows())
    for number, text in enumerate(SUMS):
        assert who.get(kept[text]) == ("b" if number % 2 else "c" if number % 4 == 0 else None)
    assert [who[kept[text]] for text in texts_of(PROMPTS)[24:]] == ["a", "a"]
    assert counts["dropped"] == {"require": 24 + 12 + 6}
    found = {"prompts": 24, "at_once": 0, "retried": 18, "dropped": 6, "unretried": 0}
    assert counts["require"] == {"least": {"math": 1.0}, **found}
    asked = asked_routes(run.routes, routed)
    assert asked.height == routed.height == 26 + 24 + 12
    assert asked_routes(run.routes.drop("next"), routed).height == 26


def test_without_retries_what_falls_short_is_dropped(run: Run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "persyn")
    settings = DatasetSettings(require={"math": 1.0})
    routed = run.routed(settings)
    dataset, counts = run.dataset(routed, settings)
    assert (dataset.height, counts["dropped"]) == (2, {"require": 24})
    assert "2 of 26 responses are kept; dropped: require 24. Of 24 prompts" in caplog.text
    cleaning = {"read": 26, "kept": 26, "dropped": {}}
    card = build_card("persyn", count_origins(PROMPTS, dataset), counts, TEACHERS, cleaning)
    assert "kept; dropped: require 24." in card
    assert "math 1: of 24 prompts, 0 had it at once, 0 from a teacher asked later, 24 are left out." in card
    free, counts = run.dataset(routed, DatasetSettings())
    assert free.height == 26
    assert "require" not in counts


def test_the_ledger_is_what_the_plan_foresaw(run: Run) -> None:
    """a is wrong about all six parallel sums, b about three, c about four."""
    before = run.plan("a", "b", "c")
    assert before["expected"] == {"persyn": 18 + 18 * 3 / 6}
    blind = run.plan()
    assert blind["expected"] == {"persyn": None}
    assert blind["retries"]["persyn"]["b"]["calls"] == blind["retries"]["persyn"]["c"]["calls"] == [0, 18]
    unrouted = run.plan("a", "b", "c", routes={})
    assert unrouted["retries"]["persyn"][ANY]["calls"] == [0, 2 * 18], "of two more teachers, for sums not parallel"
    routed = run.routed()
    prices = Prices(teachers={"b": TokenPrice(input=1e6, output=1e6)})
    ledger = build_ledger(PROMPTS, run.parallel, {"persyn": routed}, prices, routes={"persyn": run.routes})
    paid = ledger["retries"]["persyn"]
    assert paid["spent"] == {"calls": 27, "prompt_tokens": 27 * 7, "response_tokens": 27 * 5}
    assert before["expected"]["persyn"] == paid["spent"]["calls"]
    assert paid["cached"]["calls"] == 6 + 3
    assert paid["money"] == 18 * (7 + 5)
    for name, calls in (("b", 18), ("c", 9)):
        planned = before["retries"]["persyn"][name]
        assert planned["calls"][0] <= calls <= planned["calls"][1]
        assert planned["response_tokens"][0] <= 5 * calls <= planned["response_tokens"][1]
    assert before["total"]["retries"]["calls"][0] <= 27 <= before["total"]["retries"]["calls"][1]
    fewer = before["generate_then_select"]["times_fewer_calls"]["persyn"]
    assert fewer[0] <= ledger["saved"]["persyn"]["calls"] <= fewer[1]
    assert run.plan("a", "b", "c")["retries"]["persyn"]["c"]["calls"] == [0, 9], "not known before the dataset"
    tried = [tried_pairs(run.routes, routed, run.dataset(routed)[0])]
    again = run.plan("a", "b", "c", tried=tried)
    assert (again["retries"], again["expected"]) == ({"persyn": {}}, {"persyn": 0.0})
    assert "of it on retries of persyn (24 prompts, USD 216.00)" in ledger_text(ledger)
    plain = build_ledger(PROMPTS, run.parallel, {"persyn": routed}, prices)
    assert "retries" not in plain
    assert plain["total"] == ledger["total"], "retries are in the total"
    told = plan_text(before | {"refused": [], "precomputed": [], "prompts": before["prompts"] | {"from": "a file"}})
    assert "routed@persyn, retries" in told
    assert "fall short of dataset.require: persyn 27.0." in " ".join(told.split())


@pytest.mark.parametrize("rows", [None, 5])
def test_a_spent_budget_ends_the_retries_and_is_told(
    run: Run, rows: int | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "persyn")
    run.routed(DatasetSettings(require={"math": 1.0}))
    spent = Budget().spent(run.folder)
    most = SAMPLING.max_tokens + 16 + len(SUMS[-1])
    routed = run.routed(budget=Budget(max_tokens=spent + 12 * 7 + most), rows=rows)
    paid = run.server.counts["ok"] - 20
    assert 7 <= paid < 27
    assert "no further teacher is paid for" in caplog.text
    _, counts = run.dataset(routed)
    left = counts["require"]["unretried"]
    assert 0 < left < 24
    assert f"{left} of 24 prompts are left without a further try: the budget is spent" in caplog.text
    assert f"{left} prompts that are left out were not asked again as often as dataset.retries allows" in caplog.text
    assert counts["require"]["at_once"] == 0
    run.server.counts.clear()
    whole = run.dataset(run.routed(rows=rows))[1]["require"]
    assert (whole["unretried"], run.server.counts["ok"]) == (0, 27 - paid), "a larger budget goes on"


def test_a_response_that_is_unfit_is_replaced_though_it_is_right(run: Run) -> None:
    def cut(asked: Mapping[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
        sent = answer(asked, sent)
        if asked["model"] == "stub-b":
            sent["choices"][0]["finish_reason"] = "length"
        return sent

    run.server.dialect = cut
    routed = run.routed()
    assert asked_of(run.server, "c") == list(range(6, 24)), "defects.length is drop"
    dropped = run.dataset(routed)[1]["dropped"]
    assert dropped["length"] == 18
    assert set(run.dataset(routed)[0].join(PROMPTS.filter(domain="math"), on="prompt_id", how="semi")["teacher"]) == {
        "b",
        "c",
    }


def test_the_plan_foresees_what_is_right_but_unfit(run: Run) -> None:
    """As above: b, cut in all its responses, is replaced by c for each of 18 sums."""
    cut = pl.when(teacher="b").then(pl.lit("length")).otherwise("finish_reason")
    run.parallel = run.parallel.with_columns(finish_reason=cut.cast(schemas.FINISH_REASONS))
    plan = run.plan("a", "b", "c")
    assert plan["expected"] == {"persyn": 18 + 18}
    assert plan["retries"]["persyn"]["c"]["calls"][1] == 18


def test_of_two_chosen_teachers_the_better_goes_before_later_ones() -> None:
    prompts = prompts_table(["What is 1 + 1?"], "math", ["2"])
    identity = prompts["prompt_id"][0]
    rows = [(identity, name, strength, None, ["c"]) for name, strength in (("a", 2.0), ("b", 1.0))]
    routes = pl.DataFrame(rows, schema={**ROUTES, "next": pl.List(pl.String)}, orient="row")
    write = lambda name, text: responses_table(prompts, name, [text])  # noqa: E731
    wrong, good = "It is \\boxed{3}.", "It is \\boxed{2}."
    score = lambda table: score_quality(prompts, table, Path("no store"), QUALITY)  # noqa: E731
    how = Policies(), TEACHERS, Licenses(), REQUIRE, routes, score
    for texts, kept, dropped in (
        ((wrong, good, good), "b", {"require": 1, "second": 1}),
        ((good, good, wrong), "a", {"require": 1, "second": 1}),
        ((wrong, wrong, good), "c", {"require": 2}),
    ):
        table = pl.concat([write(name, text) for name, text in zip("abc", texts, strict=True)])
        dataset, counts = build_dataset(prompts, table, *how)
        assert (dataset["teacher"].to_list(), counts["dropped"]) == ([kept], dropped)


def test_routes_name_the_next_teachers_only_where_retries_need_them(tmp_path: Path) -> None:
    means = {"a": 1.0, "b": 3.0, "c": 2.0}
    rewards = [(identity, *(name, 0.0, 0.0, mean)) for identity in PROMPTS["prompt_id"] for name, mean in means.items()]
    table = pl.DataFrame(rewards, schema=REWARDS, orient="row")
    strengths = lambda prompts, method: np.tile([1.0, 0.0, 2.0], (prompts.height, 1))  # noqa: E731
    pool = Pool(list("abc"), table, strengths, {}, with_next=True)
    for rule, chosen, later in (
        (Persyn(rule="persyn"), "c", ["a", "b"]),
        (Persyn(rule="persyn", exclude=["a"]), "c", ["b"]),
        (Strong(rule="strong", teacher="c"), "c", ["b", "a"]),
    ):
        routes = build_routes(PROMPTS, pool, rule)
        assert routes["teacher"].to_list() == [chosen] * 26
        assert routes["next"].to_list() == [later] * 26
    both = build_routes(PROMPTS, pool, Persyn(rule="persyn", second_below=5.0))
    assert both.height == 52
    assert both["next"].to_list() == [["b"]] * 52
    write_table(both, tmp_path / "routes.parquet", ROUTES)
    assert read_table(tmp_path / "routes.parquet", ROUTES).columns == [*ROUTES.names(), "next"]
    named = {"x": Strong(rule="strong", teacher="c")}
    assert known_routes(PROMPTS, list("abc"), named, {"x": routes})["x"].equals(routes)
    plain = build_routes(PROMPTS, Pool(list("abc"), table, strengths, {}), Strong(rule="strong", teacher="c"))
    assert plain.equals(routes.drop("next"))


def test_settings_that_make_no_sense_are_named() -> None:
    with pytest.raises(ValueError, match="retries is 2, but require names no domain"):
        DatasetSettings.parse({"retries": 2}, "dataset")
    with pytest.raises(ValueError, match=r"require.*maths"):
        DatasetSettings.parse({"require": {"maths": 1.0}}, "dataset")
    params = YAML(typ="safe", pure=True).load(Path(__file__).parent.parent / "params.yaml")
    params["dataset"], params["rewards"]["gate"] = {"require": {"code": 1.0}}, {"code": 1.0}
    with pytest.raises(InputError) as error:
        check_params(params)
    assert [str(line).split(",")[0] for line in error.value.args] == [
        "params.yaml: dataset.require names code",
        "params.yaml: rewards.gate names code",
    ]


def test_the_stages_ask_again_and_the_commands_tell_the_price(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "persyn")
    Path("data/raw").mkdir(parents=True)
    sums = [{"prompt": text, "answer": str(number + 1)} for number, text in enumerate(SUMS)]
    Path("data/raw/sums.jsonl").write_text("\n".join(map(json.dumps, sums)))

    def stage(name: str, *arguments: str) -> None:
        import_module(f"stages.{name}").main(*arguments)

    with stub_teacher() as server:
        server.dialect = answer
        params = YAML(typ="safe", pure=True).load(Path(__file__).parent.parent / "params.yaml")
        fields = {"license": "x", "training": "allowed", "backend": "openai", "sampling": {"max_tokens": 30}}
        params["teachers"] = {name: {**fields, "model": f"stub-{name}"} for name in "abc"}
        source = {"path": "sums.jsonl", "domain": "math", "reference": "answer", "license": "MIT"}
        params["prompts"] = {"num_parallel": 6, "sources": [source], "decontaminate": []}
        params["strategies"] = {"persyn": {"rule": "strong", "teacher": "a"}}
        params["dataset"] = {"require": {"math": 1.0}, "retries": 2}
        params["speed"] = {"openai": {"base_url": server.url}}
        YAML().dump(params, Path("params.yaml"))
        stage("prompts", "data/raw", "data/prompts.parquet", "metrics/prompts.json")
        for name in "abc":
            files = f"data/responses/{name}.parquet", f"data/quality/{name}.parquet"
            stage("responses", name, "data/prompts.parquet", files[0])
            stage("quality", name, "data/prompts.parquet", *files)
        asked = read_table("data/prompts.parquet", schemas.PROMPTS).filter("parallel")["prompt_id"]
        means = {"a": 0.0, "b": 3.0, "c": 2.0}
        rewards = [(identity, *(name, 0.0, 0.0, mean)) for identity in asked for name, mean in means.items()]
        write_table(pl.DataFrame(rewards, schema=REWARDS, orient="row"), "data/rewards.parquet", REWARDS)
        write_table(pl.DataFrame(schema=DEFECTS), "data/defects.parquet", DEFECTS)
        tables = "data/rewards.parquet", "models/router", "data/responses", "data/defects.parquet"
        routed = "data/routes/persyn.parquet", "metrics/allocation/persyn.json"
        stage("routes", "persyn", "data/prompts.parquet", *tables, *routed)
        planned = json.loads(CliRunner().invoke(app, ["plan", "--json"]).stdout)
        before = server.counts["ok"]
        paths = "data/routes/persyn.parquet", "data/responses", "data/routed/persyn.parquet"
        stage("routed", "data/prompts.parquet", *paths)
        paid = server.counts["ok"] - before - 18
        made = "data/dataset/persyn.parquet", "metrics/dataset/persyn.json", "data/cards/persyn.md"
        stage("dataset", "persyn", "data/prompts.parquet", "metrics/prompts.json", paths[0], paths[2], *made)
        stage("cost", "data/prompts.parquet", "data/responses", "data/routes", "data/routed", "metrics/cost.json")
        after = json.loads(CliRunner().invoke(app, ["plan", "--json"]).stdout)
        told = CliRunner().invoke(app, ["ledger"]).stdout
    cost = json.loads(Path("metrics/cost.json").read_text())
    assert cost["retries"]["persyn"]["spent"]["calls"] == paid > 18
    uses = planned["retries"]["persyn"].values()
    assert sum(use["calls"][0] for use in uses) <= paid <= sum(use["calls"][1] for use in uses)
    assert abs(planned["expected"]["persyn"] - paid) < 9
    assert (after["expected"], after["total"]["all"]["calls"]) == ({"persyn": 0.0}, [0, 0])
    assert "of it on retries of persyn (24 prompts)" in told
    counts = json.loads(Path("metrics/dataset/persyn.json").read_text())
    assert counts["kept"] == counts["require"]["retried"] == 18
    assert "18 from a teacher asked later, 6 are left out" in Path("data/cards/persyn.md").read_text()
    assert "24 of 24 prompts fall short of dataset.require; 24 are given to another teacher" in caplog.text
