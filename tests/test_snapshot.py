"""Snapshot: what a project holds is read when it is asked for, once, and by every room from the same place."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.files import write_json
from persyn.project.snapshot import Snapshot, open_snapshot
from persyn.schemas import PROMPTS, ROUTES, write_table
from tests.support.tables import prompts_table, texts_of

PARAMS = {"teachers": {"a": None, "b": {"anchors": 3}}, "strategies": {"persyn": {}, "strong": {}}}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("params.yaml").write_text(json.dumps(PARAMS))
    write_table(prompts_table(["one"]), "data/prompts.parquet", PROMPTS)
    write_table(pl.DataFrame(schema=ROUTES), "data/routes/persyn.parquet", ROUTES)
    write_table(pl.DataFrame(schema=ROUTES), "data/routes/other.parquet", ROUTES)
    write_json({"hit_at_1": 0.5}, "metrics/router.json")
    write_json({"kept": 3}, "metrics/dataset/strong.json")
    Path("metrics/reports/training").mkdir(parents=True)
    Path("metrics/reports/training/strong.csv").write_text("step,loss\n1,0.5\n")
    return tmp_path


def test_the_student_itself_is_asked_and_is_no_teacher() -> None:
    found = Snapshot({"teachers": {"a": {}, "me": {"is_student": True}, "b": None}})
    assert (found.asked, found.teachers, found.student) == (["a", "me", "b"], ["a", "b"], "me")
    other = found.replace(params={"teachers": {"a": {}, "c": {}}})
    assert (other.teachers, other.student) == (["a", "c"], "")


def test_what_is_not_made_is_left_out(project: Path) -> None:
    with open_snapshot() as found:
        assert (found.teachers, found.strategies, found.anchored) == (["a", "b"], ["persyn", "strong"], ["b"])
        assert texts_of(found.need("prompts")) == ["one"]
        assert (list(found.routes), list(found.training), found.responses) == (["persyn"], ["strong"], {})
        assert (found.pairs, found.reliability) == (None, None)
        assert (found.metric("router"), found.metric("cost"), found.metric("cost", None)) == (
            {"hit_at_1": 0.5},
            {},
            None,
        )
        assert found.metric("dataset") == {"strong": {"kept": 3}}
        assert (found.name, found.title) == ("workspace", "demo")
    with open_snapshot(only="strong") as found:
        assert (found.strategies, found.routes, list(found.section("strategies"))) == (
            ["strong"],
            {},
            ["persyn", "strong"],
        )


def test_a_part_is_read_once_and_none_before_it_is_asked_for(project: Path) -> None:
    with open_snapshot() as found:
        assert found.need("prompts") is found.prompts
        Path("metrics/router.json").write_text("{}")
        assert found.metric("router") == {}
        Path("metrics/router.json").unlink()
        assert found.metric("router", None) == {}


@pytest.mark.parametrize(
    ("need", "part", "message"),
    [
        (Snapshot.need, ("pairs",), "data/pairs.parquet of workspace does not exist"),
        (Snapshot.need, ("routes", "strong"), "data/routes/strong.parquet of workspace does not exist"),
        (Snapshot.need_metric, ("cost",), "metrics/cost.json of workspace does not exist"),
        (Snapshot.need_metric, ("dataset", "persyn"), "metrics/dataset/persyn.json of workspace does not exist"),
    ],
)
def test_what_is_needed_is_named(project: Path, need: Any, part: tuple[str, ...], message: str) -> None:
    with open_snapshot() as found, pytest.raises(InputError, match=message):
        need(found, *part)


def test_a_damaged_table_is_an_error_or_a_reason(project: Path) -> None:
    Path("data/rewards.parquet").write_text("x")
    with open_snapshot() as found, pytest.raises(InputError, match="damaged"):
        _ = found.rewards
    with open_snapshot(lenient=True) as found:
        assert (found.rewards, found.pairs) == (None, None)
        damaged, absent = found.missing
        assert damaged.startswith("data/rewards.parquet: damaged")
        assert absent == "data/pairs.parquet: not made yet"


def test_tables_in_memory_need_no_project() -> None:
    found = Snapshot(PARAMS, name="made up", prompts=prompts_table(["one"]))
    assert (found.title, found.commit, found.rewards, found.metric("cost")) == ("made up", None, None, {})
    more = found.replace(metrics={"cost": {"x": 1}})
    assert (more.metric("cost"), found.metric("cost"), more.prompts is found.prompts) == ({"x": 1}, {}, True)
    with pytest.raises(TypeError, match="a Snapshot has no reward"):
        found.replace(reward=None)
    with pytest.raises(InputError, match=r"teachers in params\.yaml of demo is 3"):
        _ = Snapshot({"teachers": 3}).teachers
