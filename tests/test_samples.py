"""Several samples of a response: each is paid for once, all are scored, the best is taken, and the ledger has all."""

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn import quality
from persyn.cost import Prices, build_ledger
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies, best_samples, find_defects
from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.requests import each_sample, prepare_requests
from persyn.generation.terms import Licenses
from persyn.learnability import LearnabilitySettings, score_learnability
from persyn.planning import build_plan
from persyn.planning.known import known_routes
from persyn.planning.retries import Checks
from persyn.project.snapshot import Snapshot
from persyn.quality import QualitySettings, QualitySpeed, judge_ledger, score_quality
from persyn.quality.judge import JudgeSettings
from persyn.responses import generate_responses
from persyn.rewards import RewardSettings, build_rewards
from persyn.routed import build_routed
from persyn.routes import Rule, Strong
from persyn.routes.budgeted import expected_tokens
from persyn.schemas import LEARNABILITY, PROMPTS, QUALITY, RESPONSES, alike, read_folder, read_table, write_table
from persyn.student import Student
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table

TABLE = prompts_table([f"Tell story number {number}." for number in range(8)], references=["x"] * 8)
TABLE = TABLE.with_columns(parallel=pl.Series([number < 4 for number in range(8)]))
ONE = Teacher(
    model="stub", license="x", training="allowed", backend="openai", sampling=Sampling(max_tokens=70, temperature=1.0)
)
FOUR = ONE.changed(samples=4)
TEACHERS = {"a": FOUR, "b": ONE.changed(model="other")}
METHOD = QualitySettings(methods={"instruction": "checkers"})
KEEP = Policies(empty="keep", repetition="keep", length="keep")
STRATEGIES: dict[str, Rule] = {"strong": Strong(rule="strong", teacher="a")}


@pytest.fixture(autouse=True)
def longest_is_best(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verifier in whose eyes a response is as good as it is long."""
    monkeypatch.setitem(quality.VERIFIERS, "checkers", lambda prompt, response, reference: float(len(response)))


def ask(server: StubServer, folder: Path, prompts: pl.DataFrame = TABLE, teacher: Teacher = FOUR) -> pl.DataFrame:
    return generate_responses(prompts, "a", teacher, folder, server.speed())


def made(server: StubServer, folder: Path) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The responses of both teachers to the parallel set, and those that strong routes."""
    parallel = [
        generate_responses(TABLE.filter("parallel"), name, teacher, folder, server.speed())
        for name, teacher in TEACHERS.items()
    ]
    responses = pl.concat(alike(parallel))
    routes = known_routes(TABLE, list(TEACHERS), STRATEGIES, {})["strong"]
    each = dict.fromkeys(TEACHERS, server.speed())
    return responses, build_routed(TABLE, routes, responses, TEACHERS, Licenses(), folder, each)


def learned(responses: pl.DataFrame) -> pl.DataFrame:
    """LEARNABILITY of these, made up."""
    rows = responses.select("prompt_id", "teacher", learnability=-1.0 / pl.col("num_response_tokens"))
    return rows.with_columns(num_tokens=responses["num_response_tokens"], truncated=False, sample=responses["sample"])


def test_each_sample_is_asked_once_and_the_first_is_a_single_one(tmp_path: Path) -> None:
    with stub_teacher() as server:
        single = ask(server, tmp_path, teacher=ONE)
        assert "sample" not in single.columns
        table = ask(server, tmp_path)
        assert server.counts["ok"] == 32, "the first samples were there"
        assert ask(server, tmp_path).equals(table)
        assert ask(server, tmp_path, teacher=ONE.changed(samples=2)).height == 16
        assert ask(server, tmp_path, teacher=ONE).equals(single)
        assert server.counts["ok"] == 32
    assert table.filter(sample=0).drop("sample").equals(single)
    assert table.group_by("prompt_id").agg(pl.col("response").n_unique())["response"].min() == 4, "drawn anew"
    keys = [request.key for request in prepare_requests(each_sample(TABLE, FOUR), FOUR)]
    assert len(set(keys)) == 32
    assert keys[::4] == [request.key for request in prepare_requests(TABLE, ONE)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"sampling": Sampling(max_tokens=9)},
            r"^samples is 4, but temperature 0 makes all samples alike; it must be 1",
        ),
        ({"precomputed": {"path": "x.jsonl"}}, r"^samples is 4, but it has precomputed responses; it must be 1"),
        ({"samples": 0}, r"^samples is 0; it must be"),
    ],
)
def test_samples_that_could_not_differ_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Teacher.parse({**dict(FOUR), "sampling": dict(FOUR.sampling), **change})


def test_the_best_is_fit_then_good_then_first() -> None:
    rows: list[tuple[str, int, bool, float | None]] = [
        ("p", 0, False, 2.0),
        ("p", 1, True, 9.0),
        ("p", 2, False, 5.0),
        ("p", 3, False, 5.0),
    ]
    rows += [("q", 0, True, 1.0), ("q", 1, True, None), ("r", 0, False, None), ("r", 1, False, -3.0)]
    table = pl.DataFrame(rows, schema=["prompt_id", "sample", "unfit", "quality"], orient="row")
    table = table.with_columns(teacher=pl.lit("a"), number=pl.int_range(pl.len()))
    assert best_samples(table)["number"].to_list() == [2, 4, 7]
    assert best_samples(table.drop("sample")).height == 8, "single ones stay as they are"


def test_the_best_sample_is_taken_on_the_parallel_set_and_in_the_dataset(tmp_path: Path) -> None:
    with stub_teacher() as server:
        responses, routed = made(server, tmp_path)
    scored = score_quality(TABLE, responses, tmp_path, METHOD)
    assert scored.height == responses.height == 4 * 4 + 4
    rewards, _ = build_rewards(
        scored, learned(responses), find_defects(TABLE, responses), list(TEACHERS), KEEP, RewardSettings(alpha=0.3)
    )
    longest = responses.group_by("prompt_id", "teacher").agg(pl.col("response").str.len_chars().max().cast(pl.Float64))
    assert dict(zip(*rewards.filter(teacher="a").select("prompt_id", "quality"), strict=True)) == dict(
        longest.filter(teacher="a").select("prompt_id", "response").rows()
    )
    dataset, counts = build_dataset(
        TABLE,
        routed,
        KEEP,
        TEACHERS,
        Licenses(),
        DatasetSettings(),
        score=lambda some: score_quality(TABLE, some, tmp_path, METHOD),
    )
    assert counts["rows"] == 32
    assert counts["dropped"] == {"sample": 24}
    best = routed.sort(pl.col("response").str.len_chars(), descending=True).unique("prompt_id", keep="first")
    text = dict(best.select("prompt_id", "response").rows())
    assert {row["prompt_id"]: row["completion"][0]["content"] for row in dataset.to_dicts()} == text
    # What the report and `persyn show` see is what was taken.
    run = Snapshot(params={"teachers": {"a": {}, "b": {}}, "strategies": {"strong": {}}}, rewards=rewards)
    tables = {name: responses.filter(teacher=name) for name in TEACHERS}
    scores = {name: scored.filter(teacher=name) for name in TEACHERS}
    learns = {name: learned(responses).filter(teacher=name) for name in TEACHERS}
    run = run.replace(responses=tables, quality=scores, learnability=learns, dataset={"strong": dataset})
    taken = run.taken(responses)
    assert taken.height == 8
    assert taken.filter(teacher="a")["response"].to_list() == [
        text[one] for one in taken.filter(teacher="a")["prompt_id"].to_list()
    ]
    assert dict(run.taken(routed, "strong").select("prompt_id", "response").rows()) == text
    unmade = Snapshot(params=run.params).taken(responses)
    assert unmade.filter(teacher="a").equals(responses.filter(teacher="a", sample=0).drop("sample").sort("prompt_id"))


def test_a_sample_that_is_unfit_is_not_taken(tmp_path: Path) -> None:
    with stub_teacher() as server:
        table = ask(server, tmp_path)
    longest = pl.col("response").str.len_chars() == pl.col("response").str.len_chars().max().over("prompt_id")
    table = table.with_columns(
        finish_reason=pl.when(longest).then(pl.lit("length", RESPONSES["finish_reason"])).otherwise("finish_reason")
    )
    drop = Policies(empty="keep", repetition="keep", length="drop")
    score = lambda some: score_quality(TABLE, some, tmp_path, METHOD)  # noqa: E731
    dataset, counts = build_dataset(TABLE, table, drop, TEACHERS, Licenses(), DatasetSettings(), score=score)
    assert dataset.height == 8
    assert (dataset["finish_reason"] == "stop").all()
    assert counts["dropped"] == {"sample": 24}
    worst = table.with_columns(finish_reason=pl.lit("length", RESPONSES["finish_reason"]))
    with pytest.raises(InputError, match=r"no response is fit to train on \(dropped: {'length': 8}\)"):
        build_dataset(TABLE, worst, drop, TEACHERS, Licenses(), DatasetSettings(), score=score)


def test_the_ledger_and_the_plan_have_every_sample(tmp_path: Path) -> None:
    def plan(**changes: Any) -> dict[str, Any]:
        routes = known_routes(TABLE, list(TEACHERS), STRATEGIES, {})
        how = changes.get("quality", METHOD)
        return build_plan(TABLE, TEACHERS, STRATEGIES, routes, tmp_path, Prices(), Budget(), Checks(how))

    judge = QualitySettings(methods={"instruction": "judge"}, judge=JudgeSettings(model="judge", max_error_share=1.0))
    cold = plan(quality=judge)
    assert cold["responses"]["a"]["calls"] == [16, 16]
    assert cold["responses"]["b"]["calls"] == [4, 4]
    assert cold["routed"]["strong"]["a"]["calls"] == [16, 16]
    assert cold["judge"]["judge"]["calls"] == [20, 2 * (20 + 16)], "the dataset may compare 4 samples of 4 prompts"
    assert cold["scores"]["quality"] == {"judge": 20}
    assert cold["generate_then_select"]["calls"] == [40, 40]
    assert cold["generate_then_select"]["times_fewer_calls"]["strong"] == [40 / 36] * 2
    with stub_teacher(say=None) as server:
        responses, routed = made(server, tmp_path)
        assert server.counts["ok"] == 36
        warm = plan(quality=judge)
        assert warm["total"]["all"]["calls"] == warm["judge"]["judge"]["calls"] == [20, 72]
        score_quality(TABLE, responses, tmp_path, judge, QualitySpeed(server.speed()))
    paid = judge_ledger(TABLE, [responses, routed], tmp_path, judge)
    assert paid is not None
    assert 20 <= paid["calls"] <= 40
    ledger = build_ledger(TABLE, responses, {"strong": routed})
    assert ledger["parallel"]["a"]["calls"] == 16
    assert ledger["total"]["spent"]["calls"] == 36
    assert ledger["total"]["cached"]["calls"] == 16
    assert ledger["routed"]["strong"]["spent"]["calls"] == ledger["routed"]["strong"]["cached"]["calls"] == 16
    assert ledger["generate_then_select"]["calls"] == 40
    assert ledger["saved"]["strong"]["calls"] == round(40 / 36, 4)
    spent = pl.concat([responses, routed]).unique(["prompt_id", "teacher", "sample"])["num_response_tokens"].sum()
    assert ledger["total"]["spent"]["response_tokens"] == spent
    expected = expected_tokens(TABLE, responses, ["a"])[:, 0]
    of_a = responses.filter(teacher="a")["num_response_tokens"].sum()
    assert expected[-1] == pytest.approx(of_a / 4), "all samples of a prompt are paid for"


def test_tables_without_several_samples_are_as_they_were(tmp_path: Path) -> None:
    with stub_teacher() as server:
        table = ask(server, tmp_path / "store", teacher=ONE)
        several = ask(server, tmp_path / "store")
    write_table(table, tmp_path / "one.parquet", RESPONSES)
    write_table(table.with_columns(sample=pl.lit(0, pl.Int64)), tmp_path / "all_first.parquet", RESPONSES)
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "all_first.parquet").read_bytes()
    write_table(several, tmp_path / "tables/a.parquet", RESPONSES)
    write_table(table, tmp_path / "tables/b.parquet", RESPONSES)
    assert read_table(tmp_path / "tables/a.parquet", RESPONSES).equals(several.sort("prompt_id", "teacher", "sample"))
    read = read_folder(tmp_path / "tables", ["a", "b"], RESPONSES)
    assert pl.concat(read.values()).height == 40
    with pytest.raises(InputError, match="unknown sample"):
        write_table(TABLE.with_columns(sample=pl.lit(0)), tmp_path / "prompts.parquet", PROMPTS)
    with pytest.raises(InputError, match="share a key"):
        write_table(pl.concat([several, several]), tmp_path / "twice.parquet", RESPONSES)


def test_every_sample_is_scored_under_the_student(tmp_path: Path, chat_model: str) -> None:
    with stub_teacher() as server:
        table = ask(server, tmp_path, TABLE[:1])
    student = Student(model=chat_model, license="x", max_length=512)
    scores = score_learnability(TABLE, table, student, LearnabilitySettings(), tmp_path)
    assert scores["sample"].to_list() == [0, 1, 2, 3]
    assert scores["learnability"].n_unique() == 4
    write_table(scores, tmp_path / "l.parquet", LEARNABILITY)
    write_table(score_quality(TABLE, table, tmp_path, METHOD), tmp_path / "q.parquet", QUALITY)
    assert read_table(tmp_path / "q.parquet", QUALITY)["sample"].to_list() == [0, 1, 2, 3]
