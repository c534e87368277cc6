"""Report: its numbers are those of the tables; it stands hostile names, missing parts and many teachers."""

import html
import re
from html.parser import HTMLParser
from typing import Any

import polars as pl
import pytest
from markupsafe import Markup
from matplotlib.figure import Figure

from persyn.comparison import compare_strategies
from persyn.cost import build_ledger
from persyn.project.snapshot import Snapshot, Table, Tables
from persyn.report import build_report
from persyn.report.charts import forest
from persyn.report.experiments import alpha_section
from persyn.report.overview import fewer, lanes, verdict
from persyn.report.page import teacher_looks
from persyn.report.results import comparison_section, money_of
from persyn.report.routing import router_section
from persyn.report.story import story
from persyn.routes import allocation
from tests.support.invented import invented
from tests.support.pages import rows

HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "{{ 7*7 }}",
    "$x^2$",
    "_hidden",
    "</style></script><b>",
    "a\x00\x1b[31m\u202eb",
]


class Reader(HTMLParser):
    """Every tag with its attributes, and the text of the page outside scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text, self.inside = "", ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.inside = tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.inside not in ("script", "style"):
            self.text += f" {data.strip()} " if data.strip() else ""


@pytest.fixture(scope="module")
def run() -> Snapshot:
    return invented(["ann", "ben", "eve"], ["persyn", "strong", "random"], ["sums", "words"])


@pytest.fixture(scope="module")
def page(run: Snapshot) -> str:
    return build_report(run)


def test_its_numbers_are_those_of_the_tables(run: Snapshot, page: str) -> None:
    found, cost = rows(page), run.metric("cost")
    text = " ".join(Reader(page).text.split())
    chosen = run.routes["persyn"]["teacher"].to_list()
    assert ["persyn", "40", *(str(chosen.count(name)) for name in ("ann", "ben", "eve"))] in found
    spent, cached = (str(cost["routed"]["persyn"][part]["calls"]) for part in ("spent", "cached"))
    assert ["persyn", "persyn", "40", spent, cached, "39", "1 empty", "1,000", "400"] in found
    assert f"prompts read {43} " in text
    assert f"responses {60} of 3 teachers" in text
    assert f"pairs {run.pairs.height} " in text  # type: ignore[union-attr]
    means = run.metric("rewards")["teachers"]["eve"]
    [eve] = [row for row in found if row[0] == "eve" and len(row) == 5 and "%" in row[-1]]
    assert eve[1:4] == [f"{means[of]:.3f}".replace("-", "\u2212") for of in ("quality", "learnability", "reward")]
    difference = run.metric("comparison")["random"]["sums"]["accuracy"]
    [random] = [row for row in found if row[:3] == ["sums", "accuracy", "random"]]
    assert random[3] == difference["verdict"]
    assert random[6].startswith(f"{difference['difference']:+.3f} (")
    assert f"{run.metric('router')['regret']:.3f}" in text
    ratio = cost["saved"]["persyn"]["response_tokens"]
    assert f"{ratio:.2f} times fewer response tokens" in text


def test_the_ledger_is_money_where_there_are_prices(run: Snapshot, page: str) -> None:
    assert "No teacher has a price" in page
    prices = {
        "currency": "EUR",
        "teachers": {"ann": {"input": 1e6, "output": 2e6}, "ben": {"input": 0.0, "output": 1e6}},
    }
    priced = build_report(run.replace(params={**run.params, "prices": prices}))
    made = pl.concat([*run.responses.values(), *run.routed.values()]).unique(["prompt_id", "teacher"])
    asked, said = pl.col("num_prompt_tokens"), pl.col("num_response_tokens")
    paid = made.filter(teacher="ann").select((asked + 2 * said).sum()).item()
    paid += made.filter(teacher="ben").select(said.sum()).item()
    assert f"At the prices given: {paid:,.2f} EUR spent; generate-then-select would take " in priced
    assert "Without a price, and left out: eve." in priced
    [together] = [row for row in rows(priced) if row[0] == "all together, with the parallel set"]
    assert together[-1] == f"{paid:,.2f}"
    assert len([row for row in rows(priced) if row[0] == "persyn" and len(row) == len(together)]) == 1


def test_the_verdict_says_no_more_than_the_numbers(run: Snapshot) -> None:
    cell = {"difference": 0.1, "interval": [-0.1, 0.3], "mde": 0.2, "n": 16, "p": 0.3, "p_holm": 0.3}
    within, differs = cell | {"verdict": "within noise"}, cell | {"verdict": "differs", "difference": -0.4}
    assert "No verdict yet" in verdict(None)
    assert "no other strategy to compare persyn with" in verdict({})
    one = verdict({"strong": {"sums": {"accuracy": within}}})
    assert one == (
        "persyn minus strong, on sums: the difference is within noise (16 items a task; the smallest true "
        "difference likely to be found is 0.20)."
    )
    two = verdict({"strong": {"sums": {"accuracy": within}, "words": {"accuracy": differs}}})
    assert "below strong on words (accuracy \u22120.400" in two
    assert "the other 1 of 2 differences are within noise" in two
    assert "within noise" not in verdict({"strong": {"sums": {"accuracy": differs}}})
    same = cell | {"verdict": "identical", "mde": None, "interval": None, "difference": 0.0, "identical": True}
    assert verdict({"strong": {"sums": {"accuracy": same}}}) == (
        "persyn minus strong, on sums: the comparison has the same score for every item (16 items a task)."
    )
    mixed = verdict({"strong": {"sums": {"accuracy": same, "loose": within}}})
    assert "1 of 2 differences are within noise; in 1 every item has the same score" in mixed
    few = {"strong": {"sums": {"accuracy": within | {"mde": None, "n": 4}}}}
    assert "(4 items a task; so few cannot show any difference)" in verdict(few)


def test_hit_at_3_of_three_teachers_is_not_shown(run: Snapshot) -> None:
    """It is 1 however the router chooses."""
    card = run.metric("router")
    text = str(router_section(run))
    assert ("Hit@3" in text) == (len(card["share"]) > 3)
    three = {**card, "share": {"a": 0.5, "b": 0.5, "c": 0.0}, "oracle_share": {"a": 0.5, "b": 0.5, "c": 0.0}}
    for hit in (1.0, None):
        hits = {"hit_at_3": hit, "hit_at_3_oracle": hit}
        controls = {name: of | hits for name, of in card["controls"].items()}
        metrics = {**run.metrics, "router": three | hits | {"controls": controls}}
        page = str(router_section(run.replace(metrics=metrics)))
        assert "Hit@1" in page
        assert "Hit@3" not in page


def test_its_first_line_says_whether_routing_is_worth_anything(run: Snapshot, page: str) -> None:
    card = run.metric("router")
    first = page.partition("</h1>")[2].partition("</p>")[0]
    assert "Routing is worth +0.050 [+0.010, +0.090] of reward over" in first
    assert "noise floor: same choice by routers of two halves" in page
    over = card["over_majority"] | {"verdict": "identical"}
    one = card | {"trust": {"trust": 0.0}, "collapsed": True, "over_majority": over}
    page = build_report(run.replace(metrics={**run.metrics, "router": one}), sample=0)
    assert "Routing is not shown to be worth anything" in page
    assert "no, it chose one on purpose" in page
    assert "It has collapsed" not in page
    before = {name: value for name, value in card.items() if name not in ("trust", "learnable", "noise_floor")}
    page = build_report(run.replace(metrics={**run.metrics, "router": before}), sample=0)
    assert "Routing is" not in page
    assert "noise floor" not in page


def test_equal_runs_give_equal_pages(run: Snapshot, page: str) -> None:
    assert build_report(run) == page


def test_charts_are_told_apart_and_described(page: str) -> None:
    tags = Reader(page).tags
    ids = [attrs["id"] for _, attrs in tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r"url\(#([^)]+)\)", page)) | set(re.findall(r'href="#([\w-]+)"', page))
    assert used <= set(ids)
    plots = [attrs for tag, attrs in tags if tag == "svg"]
    assert len(plots) == 10
    assert all(attrs["role"] == "img" and len(attrs["aria-label"] or "") > 20 for attrs in plots)


def test_nothing_is_fetched_and_no_script_but_the_browsers_may_run(page: str) -> None:
    tags = Reader(page).tags
    [policy] = [attrs["content"] or "" for tag, attrs in tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert policy.count("sha256-") == 1
    assert sum(tag == "script" and not attrs for tag, attrs in tags) == 1
    for tag, attrs in tags:
        assert tag not in ("link", "img", "iframe", "object", "embed", "base")
        assert not any(name.startswith("on") for name in attrs), (tag, attrs)
        assert all((attrs.get(name) or "#").startswith("#") for name in ("href", "src", "xlink:href")), (tag, attrs)


def test_hostile_names_are_text() -> None:
    run = invented(HOSTILE, ["persyn", *HOSTILE], [*HOSTILE, "plain"], source=HOSTILE[0])
    broken = {"duplicate " + HOSTILE[0]: 3}
    run.metrics["prompts"]["dropped"] = broken
    page = build_report(run.replace(name=HOSTILE[0], experiments_note=HOSTILE[0]))
    reader = Reader(page)
    assert not [tag for tag, _ in reader.tags if tag in ("img", "b")]
    for name in HOSTILE[:5]:
        assert html.unescape(name) in reader.text
    assert "{{ 7*7 }}" in page
    assert "49 " not in re.findall(r"<figcaption>.*?</figcaption>", page)[0]
    assert not set("\x00\x1b\u202e") & set(page)
    assert re.search(r"<text[^>]*>\$x\^2\$", page), "no formula is made of a name"


def test_the_untuned_student_and_finished_models_stand_in_the_comparison_and_nowhere_else(run: Snapshot) -> None:
    samples = {**run.samples, "untuned": run.samples["random"], "gemma": run.samples["strong"]}
    scores = run.metric("evaluation")
    beside = {"untuned": scores["random"], "gemma": scores["strong"]}
    metrics = {**run.metrics, "beside": beside, "comparison": compare_strategies(samples)}
    found = comparison_section(run.replace(metrics=metrics))
    assert {row[2] for row in found.tables[0].rows} == {"persyn", "strong", "random", "untuned", "gemma"}
    assert "untuned is no strategy, but the student before any tuning" in found.lead
    assert "Finished models, not trained here: gemma." in found.lead
    assert not found.missing
    assert all("were cut: persyn 0.0%, strong 10.0%, random 20.0%, untuned 20.0%" in note for note in found.notes)
    assert found.notes
    assert comparison_section(run.replace(metrics={**run.metrics, "beside": None})).missing == ["beside"]
    assert {row[0] for row in lanes(run.replace(metrics=metrics)).rows} == {"persyn", "strong", "random"}


@pytest.fixture
def unpainted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts are not drawn, which takes most of the time."""
    for module in ("bars", "charts"):
        monkeypatch.setattr(f"persyn.report.{module}.render", lambda *arguments: Markup("<svg></svg>"))


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("stage", ["prompts", "quality", "rewards", "pairs", "router", "allocation", "dataset"])
def test_a_run_that_ended_early_has_a_page(run: Snapshot, stage: str) -> None:
    """Only what comes before the stage is there."""
    order = ["prompts", "responses", "quality", "learnability", "defects", "rewards", "pairs", "router"]
    order += ["allocation", "routes", "routed", "dataset", "training", "evaluation", "samples", "comparison", "cost"]
    kept = order[: order.index(stage)]
    fields = {name: getattr(run, name) for name in kept if hasattr(run, name)}
    metrics = {name: run.metrics[name] for name in kept if name in run.metrics}
    page = build_report(Snapshot(run.params, name="early", metrics=metrics, **fields))
    named = {"allocation": "routes", "dataset": "evaluation"}.get(stage, stage)
    assert f"not made yet: <code>dvc repro {named}</code>" in page
    assert "No verdict yet" in page


@pytest.mark.usefixtures("unpainted")
def test_every_single_part_may_be_missing(run: Snapshot) -> None:
    parts = {name: part for name, part in vars(Snapshot).items() if isinstance(part, Table)}
    assert len(parts) == 13
    for name, part in parts.items():
        nothing: Any = {} if isinstance(part, Tables) else None
        assert "</html>" in build_report(run.replace(**{name: nothing}), sample=5)
    for name in run.metrics:
        assert "</html>" in build_report(run.replace(metrics={**run.metrics, name: None}), sample=5)


def changed(run: Snapshot, alpha: float, student: str = "student/model", **others: Any) -> dict[str, Any]:
    """The run's parameters, but for these."""
    return {**run.params, "rewards": {"alpha": alpha}, "student": {"model": student}, **others}


def test_many_teachers_and_strategies_fit() -> None:
    teachers = [f"organisation/model-{number}-instruct" for number in range(19)]
    strategies = ["persyn", *(f"strategy_{number}" for number in range(9))]
    run = invented(teachers, strategies, ["ifeval", "gsm8k", "truthfulqa"], count=400)
    same = {kind: run.metric(kind) for kind in ("allocation", "evaluation")}
    runs = [
        Snapshot(changed(run, 0.0), name="exp-0", metrics=same),
        Snapshot(changed(run, 0.2, "other"), name="exp-1", metrics=same),
    ]
    page = build_report(run.replace(experiments=runs))
    assert len(page.encode()) < 3e6
    looks = {(look.colour, look.hatch) for look in teacher_looks(run).values()}
    assert len(looks) == 19, "no two teachers look alike"
    assert "exp-1: alpha 0.2, other" in page
    assert ["exp-0", "student/model", "—", "0.00"] in [row[:4] for row in rows(page)]


@pytest.mark.usefixtures("unpainted")
def test_a_teacher_without_scores_leaves_the_rest_of_the_page(run: Snapshot) -> None:
    more = {**run.params, "teachers": {**run.params["teachers"], "zoe": {"model": "m"}}}
    page = build_report(run.replace(params=more), sample=5)
    assert "This cannot be drawn: none of 20 prompts has both scores of every teacher" in html.unescape(page)
    wrong = build_report(run.replace(params={**run.params, "rewards": {"alpha": 0.4, "beta": 1}}), sample=5)
    assert "This cannot be drawn: rewards.beta is not a parameter" in html.unescape(wrong)


@pytest.mark.usefixtures("unpainted")
def test_persyn_alone_is_a_whole_run() -> None:
    page = build_report(invented(["ann", "ben"], ["persyn"], ["sums"]), sample=5)
    assert "There is no other strategy" not in page
    assert "no other strategy to compare persyn with" in page
    assert "not made yet" not in page


@pytest.mark.usefixtures("unpainted")
def test_two_teachers_of_a_prompt_count_for_both(run: Snapshot) -> None:
    """The first half of the prompts is answered by ann too, where another had them alone."""
    routes = run.routes["persyn"]
    second = routes.head(20).filter(pl.col("teacher") != "ann").with_columns(teacher=pl.lit("ann"))
    both = pl.concat([routes, second]).sort("prompt_id", "teacher")
    allocations = {**run.metric("allocation"), "persyn": allocation(both, ["ann", "ben", "eve"])}
    metrics = {**run.metrics, "allocation": allocations}
    page = build_report(run.replace(routes={**run.routes, "persyn": both}, metrics=metrics), sample=0)
    counts = [str((both["teacher"] == name).sum()) for name in ("ann", "ben", "eve")]
    assert ["persyn", "40", *counts] in rows(page)
    by_source = [row for row in rows(page) if row[0].endswith(" · s")]
    assert [sum(int(row[column]) for row in by_source) for column in range(1, 5)] == [40, *map(int, counts)]
    assert "counts for both" in page


@pytest.mark.usefixtures("unpainted")
def test_what_experiments_differ_in_is_said(run: Snapshot) -> None:
    """A teacher that this run has not, and other epochs: no effect of alpha."""
    other = {"persyn": {"prompts": 40, "entropy": 0.3, "share": {"ann": 0.1, "cy": 0.9}}}
    epochs = changed(run, 0.8, sft={"epochs": 5}, speed={"student": {}})
    evaluation = {"evaluation": run.metric("evaluation")}
    runs = [Snapshot(epochs, name="longer", metrics={"allocation": other, **evaluation})]
    shown = run.replace(experiments=runs)
    page = build_report(shown, sample=0)
    assert ["longer", "student/model", "sft.epochs", "0.80"] in [row[:4] for row in rows(page)]
    assert "differ from it in alpha alone" not in page
    legend = re.findall(r'<ul class="legend">.*?</ul>', page, re.DOTALL)
    assert any("cy" in names for names in legend)
    alone = Snapshot(changed(run, 0.8), name="alone", metrics=evaluation)
    assert "differ from it in alpha alone" in build_report(run.replace(experiments=[alone]), sample=0)
    assert "</html>" in build_report(Snapshot(run.params, experiments=[Snapshot({}, name="x")]))


@pytest.mark.usefixtures("unpainted")
def test_teachers_with_anchors_are_told_apart(run: Snapshot) -> None:
    assert run.rewards is not None
    few = pl.concat([run.rewards.filter(pl.col("teacher") != "eve"), run.rewards.filter(teacher="eve").head(5)])
    params = {**run.params, "teachers": {**run.params["teachers"], "eve": {"model": "m", "anchors": 5}}}
    page = build_report(run.replace(rewards=few, params=params), sample=0)
    assert "are scored on so many of the 20 prompts only: eve (5)" in page
    assert "answered by every teacher but eve, by anchors" in page
    assert "Without eve: teachers with anchors are placed beside the router" in page


def test_the_student_itself_is_in_the_ledger_and_nowhere_else(run: Snapshot) -> None:
    """A run that also asked the student, beside the run that did not: what it cost differs, and nothing else."""
    as_me = pl.lit("me").alias("teacher")
    responses = {**run.responses, "me": run.responses["ann"].with_columns(as_me)}
    quality = {**run.quality, "me": run.quality["ann"].with_columns(as_me, quality=pl.lit(0.0))}
    defects = run.need("defects")
    params = {**run.params, "quality": {"methods": {"instruction": "checkers", "math": "math_verify"}}}
    counts = run.metric("defects")
    cost = build_ledger(run.need("prompts"), pl.concat(responses.values()), run.routed, student="me")
    asked = run.replace(
        params={**params, "teachers": {**params["teachers"], "me": {"model": "m", "is_student": True}}},
        responses=responses,
        quality=quality,
        defects=pl.concat([defects, defects.filter(teacher="ann").with_columns(as_me)]),
        metrics={**run.metrics, "cost": cost, "defects": {**counts, "me": counts["ann"]}},
    )
    plain, page = (build_report(each) for each in (run.replace(params=params), asked))
    new = [line for line in page.splitlines() if line not in plain.splitlines()]
    assert [row for row in rows(page) if row not in rows(plain) and "me" in row] == [["me", "20", "180", "200", "10.0"]]
    assert not [line for line in new if re.search(r"\bme\b", line) and "<td" not in line and "<th" not in line]
    assert "responses 60 of 3 teachers" in " ".join(Reader(page).text.split())
    assert story(asked)[0].startswith("Cost of persyn: ")
    assert "to 3 teachers and the student, " in story(asked)[0]
    section = alpha_section(asked)
    assert section.tables == alpha_section(run).tables
    rewarded = {**asked.params, "rewards": {"alpha": 0.4, "unsolved": 5.0}}
    assert alpha_section(asked.replace(params=rewarded)).tables[0].rows != section.tables[0].rows, "quality decides"
    prices = {"prices": {"teachers": {"me": {"input": 0, "output": 1e6}}}}
    assert money_of(asked.replace(params={**asked.params, **prices}), cost)["spent"] == 200


def test_a_chart_of_four_metrics_has_no_empty_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    cells = [(f"task-{number}", "accuracy", "strong", 0.1, 0.0, 0.2, "within noise") for number in range(4)]
    columns = ["task", "metric", "strategy", "difference", "low", "high", "verdict"]
    figure = Figure()
    monkeypatch.setattr("persyn.report.charts.render", lambda name, title, size, paint: paint(figure))
    forest("forest", "four", pl.DataFrame(cells, schema=columns, orient="row"))
    assert [axes.get_title().startswith("task") for axes in figure.axes if axes.get_visible()] == [True] * 4


def test_fewer_is_not_said_of_as_many() -> None:
    words = [fewer(ratio, "calls") for ratio in (1.5, 1.001, 0.5)]
    assert words == ["1.50 times fewer calls", "as many calls", "2.00 times more calls"]


def test_the_validation_loss_is_told_where_it_was_measured(run: Snapshot) -> None:
    measured = run.training["strong"].with_columns(eval_loss=pl.when(pl.col("step") > 1).then(0.5 / pl.col("step")))
    shown = run.replace(training={**run.training, "strong": measured})
    found = {row[0]: row[-2:] for row in rows(build_report(shown, sample=0)) if row[1:2] == ["1,000"]}
    assert found["strong"] == ["0.250", "0.001"]
    assert found["persyn"] == ["—", "—"]
