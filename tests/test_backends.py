"""A new backend: one module and one line in BACKENDS, and params.yaml, its reference and responses know it."""

import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from persyn.errors import InputError
from persyn.generation import BACKENDS
from persyn.project.params import check_params
from persyn.project.reference import build_reference, params_schema
from persyn.responses import generate_responses
from tests.support.pages import blocks
from tests.support.tables import prompts_table
from tests.support.tiny import ROOT


@pytest.fixture
def echo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The backend of docs/howto.md, put in place: a params.yaml that uses it."""
    [module] = [block for block in blocks(ROOT / "docs/howto.md") if block.info == "persyn/generation/echo.py"]
    (tmp_path / "echo_of_the_howto.py").write_text(module.text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "echo_of_the_howto", raising=False)
    monkeypatch.setitem(BACKENDS, "echo", "echo_of_the_howto:EchoBackend")
    params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
    params["teachers"]["echo"] = {"model": "none", "license": "MIT", "backend": "echo", "sampling": {"max_tokens": 3}}
    params["speed"]["echo"] = {"batch_size": 2}
    return params


def test_it_answers_under_its_own_knobs(echo: dict[str, Any], tmp_path: Path) -> None:
    params = check_params(echo)
    speed = params.speed_of("echo")
    assert (type(speed).__name__, speed.batch_size) == ("EchoSpeed", 2)
    echo["speed"]["teachers"] = {"echo": {"batch_size": 1}}
    assert check_params(echo).speed_of("echo").batch_size == 1
    prompts = prompts_table(["Say it", "Say it all over again", "Say no more"])
    table = generate_responses(prompts, "echo", params.teachers["echo"], tmp_path / "store", speed)
    assert sorted(table["response"]) == ["Say it", "Say it all", "Say no more"]


def test_its_knobs_are_checked_and_listed(echo: dict[str, Any]) -> None:
    echo["speed"]["echo"] = {"batch_sise": 2}
    with pytest.raises(InputError, match=r"speed.echo.batch_sise is not a parameter; did you mean batch_size\?"):
        check_params(echo)
    echo["speed"]["echo"] = {"batch_size": "many"}
    echo["speed"]["teachers"] = {"echo": {"batch_size": 0}}
    with pytest.raises(InputError, match=r"speed.echo.batch_size is 'many'; it must be a whole number, 1 or more"):
        check_params(echo)
    echo["speed"]["echo"] = {}
    with pytest.raises(InputError, match=r"speed.teachers.echo.batch_size is 0; it must be a whole number, 1 or more"):
        check_params(echo)
    rows = {f"{part.name}.{row.name}": row for part in build_reference() for row in part.rows}
    assert rows["speed.echo.batch_size"].meaning == "Conversations answered at once."
    assert rows["teachers.<name>.backend"].takes == "one of transformers, vllm, openai, echo"
    assert "echo" in params_schema()["$defs"]["Teacher"]["properties"]["backend"]["enum"]


def test_without_its_line_it_is_unknown(echo: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(BACKENDS, "echo")
    with pytest.raises(InputError, match=r"teachers.echo.backend is 'echo'; it must be one of transformers, vllm, "):
        check_params(echo)
