import json
import logging
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from persyn.cli import app
from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.openai import OpenAISpeed
from persyn.generation.terms import Licenses, check_terms, refused_teachers
from persyn.project.params import check_params
from persyn.routed import build_routed
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_table, write_table
from persyn.store import store_folder
from stages.responses import main as responses
from tests.support.tables import prompts_table, responses_table, stub_teachers
from tests.support.tiny import tiny_params


def test_a_forbidden_teacher_is_named_with_its_terms_and_what_to_do() -> None:
    teachers = stub_teachers("ab") | stub_teachers("c", "forbidden", "no competing models (Terms, 2c)")
    with pytest.raises(InputError, match=r"teachers.c \(model-c\).*\(no competing models \(Terms, 2c\)\)") as raised:
        check_terms(teachers, Licenses())
    assert "name it in licenses.allow_forbidden" in str(raised.value)
    assert "\n" not in str(raised.value)
    check_terms(teachers, Licenses(allow_forbidden=["c"]))
    assert refused_teachers(teachers, Licenses()) == ["c"]
    assert refused_teachers(teachers, Licenses(allow_forbidden=["c"])) == []


def test_what_nobody_looked_up_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "persyn"):
        check_terms(stub_teachers("ab", "unknown") | stub_teachers("c") | stub_teachers("d", "conditional"), Licenses())
    [record] = caplog.records
    assert record.getMessage().startswith("a, b: whether the outputs may train other models is unknown")


def test_the_terms_of_the_student_itself_do_not_matter(caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is trained on what it responds."""
    for training in ("forbidden", "unknown"):
        itself = {name: teacher.changed(is_student=True) for name, teacher in stub_teachers("m", training).items()}
        with caplog.at_level(logging.WARNING, "persyn"):
            check_terms(stub_teachers("a") | itself, Licenses())
    assert not caplog.records


def test_mistakes_are_named() -> None:
    params = tiny_params("m")
    entry = params["teachers"]["gpt-4"] = {**params["teachers"]["smollm2-terse"], "training": "alowed"}
    with pytest.raises(InputError, match=r"teachers\.gpt-4\.training is 'alowed'; it must be one of allowed, condit"):
        check_params(params)
    del entry["training"]
    for names, message in (
        (["gpt4"], r"\.0 names 'gpt4', which is no teacher; did you mean gpt-4"),
        ("gpt-4", " is 'gpt-4'; it must be a list"),
    ):
        params["licenses"]["allow_forbidden"] = names
        with pytest.raises(InputError, match=rf"licenses\.allow_forbidden{message}"):
            check_params(params)
    assert Teacher.parse(entry, "teachers.gpt-4").training == "unknown"


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """params.yaml with teachers a and b behind a server that is not there; b is forbidden. 4 parallel prompts."""
    monkeypatch.chdir(tmp_path)
    entry = {"model": "m", "license": "x", "backend": "openai", "sampling": {"max_tokens": 4}}
    prompts = [{"prompt": f"Tell story number {number}."} for number in range(4)]
    Path("data/raw").mkdir(parents=True)
    Path("data/raw/p.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    write_table(prompts_table([row["prompt"] for row in prompts]), "data/prompts.parquet", PROMPTS)
    params = tiny_params("m") | {
        "teachers": {"a": entry | {"training": "allowed"}, "b": entry | {"training": "forbidden", "terms": "2c"}},
        "prompts": {"num_parallel": 4, "sources": [{"path": "p.jsonl"}], "decontaminate": []},
        "strategies": {"persyn": {"rule": "persyn"}},
        "quality": {"methods": {"instruction": "judge"}, "judge": {"model": "j"}},
        "responses": {"max_error_share": 1.0},
        "speed": {"openai": {"base_url": "http://127.0.0.1:9/v1", "max_outage": 0, "max_attempts": 1}},
    }
    YAML().dump(params, Path("params.yaml"))
    return params


def test_nothing_is_asked_of_a_forbidden_teacher(project: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"^teachers.b .*\(2c\)"):
        responses("b", "data/prompts.parquet", "b.parquet")
    refused = CliRunner().invoke(app, ["generate", "--teacher", "b"])
    assert refused.exit_code != 0
    assert "teachers.b" in refused.output + str(refused.exception)
    with pytest.raises(InputError, match=r"^teachers.b "):
        CliRunner().invoke(app, ["plan", "--probe", "1"], catch_exceptions=False)
    assert not store_folder().exists()


def test_precomputed_responses_of_a_forbidden_teacher_are_read_and_no_dataset_holds_them(
    project: dict[str, Any], chat_model: str, caplog: pytest.LogCaptureFixture
) -> None:
    texts = [f"Tell story number {number}." for number in range(4)]
    rows = [json.dumps({"prompt": text, "response": f"Once: {text}"}) for text in texts]
    project["teachers"]["b"] |= {
        "model": chat_model,
        "sampling": {"max_tokens": 200},
        "precomputed": {"path": "b.jsonl"},
    }
    YAML().dump(project, Path("params.yaml"))
    Path("b.jsonl").write_text("\n".join(rows[:3]))
    missing = r"teachers.b.precomputed: 1 of 4 prompts have no response in b.jsonl, first \w{16}, .*it is not asked"
    with pytest.raises(InputError, match=missing):
        responses("b", "data/prompts.parquet", "b.parquet")
    with pytest.raises(InputError, match=missing):
        CliRunner().invoke(app, ["generate", "--teacher", "b"], catch_exceptions=False)
    assert not Path("b.parquet").exists()
    Path("b.jsonl").write_text("\n".join(rows))
    responses("b", "data/prompts.parquet", "b.parquet")
    table = read_table("b.parquet", RESPONSES)
    assert table["response"].sort().to_list() == [f"Once: {text}" for text in texts]
    plan = CliRunner().invoke(app, ["plan"]).stdout
    assert "The stage dataset will refuse precomputed responses: the terms of b forbid" in plan
    assert "A run is refused" not in plan
    teachers, prompts = check_params(project).teachers, prompts_table(texts)
    with pytest.raises(InputError, match=r"^teachers.b .*\(2c\)"):
        build_dataset(prompts, table, Policies(), teachers, Licenses(), DatasetSettings())


def test_planning_says_who_is_refused_and_refuses_nobody(project: dict[str, Any]) -> None:
    said = "A run is refused: the terms of b forbid training other models"
    plan = CliRunner().invoke(app, ["plan"])
    assert plan.exit_code == 0, plan.output
    assert said in plan.stdout
    project["licenses"]["allow_forbidden"] = ["b"]
    YAML().dump(project, Path("params.yaml"))
    assert said not in CliRunner().invoke(app, ["plan"]).stdout


def test_routes_to_a_forbidden_teacher_ask_nothing_new(tmp_path: Path) -> None:
    prompts, teachers = prompts_table(["one", "two"]), stub_teachers("a", "forbidden") | stub_teachers("b")
    routes = pl.DataFrame([(name, "a", None, None) for name in prompts["prompt_id"]], schema=ROUTES, orient="row")
    known = responses_table(prompts, "a", ["x", "y"])
    arguments = teachers, Licenses(), tmp_path, dict.fromkeys(teachers, OpenAISpeed(base_url="http://127.0.0.1:9/v1"))
    assert build_routed(prompts, routes, known, *arguments).height == 2, "what is there already asks nobody"
    with pytest.raises(InputError, match=r"^teachers.a "):
        build_routed(prompts, routes, known[:1], *arguments)
    assert not list(tmp_path.iterdir())
