import json
import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner

from persyn.cli import app, main
from persyn.errors import InputError
from persyn.planning.known import known_routes
from persyn.routes import Strong
from persyn.schemas import PROMPTS, ROUTES, read_table, write_table
from persyn.store import Store, store_folder
from tests.support.stub import StubServer, stub_teacher
from tests.support.tiny import ROOT

ROW: dict[str, Any] = {"response": "x", "finish_reason": "stop", "num_prompt_tokens": 3, "num_response_tokens": 2}


@pytest.fixture
def journal() -> Path:
    """Of a store with one model, two answers and one failure."""
    rows = {
        "a": ROW,
        "b:2": ROW | {"finish_reason": "length"},
        "c:error": {"finish_reason": "error"},
        "d": {"quality": 1},
    }
    Store(store_folder() / "model-12345678").put(rows)
    [journal] = (store_folder() / "model-12345678").glob("j*-*.log")
    return journal


def test_stats_say_what_was_paid_for(journal: Path) -> None:
    result = CliRunner().invoke(app, ["store", "stats"])
    assert result.exit_code == 0
    counts = "1 answers, 1 cut at max_tokens, 1 failed, 1 scores, 0 taken from elsewhere"
    assert result.stdout == f"model-12345678: {counts}, 6 prompt tokens, 4 response tokens\n"


def test_verify_finds_damage_and_gc_clears_it(journal: Path) -> None:
    run = CliRunner().invoke
    assert run(app, ["store", "verify"]).exit_code == 0
    journal.write_bytes(journal.read_bytes()[:-1])
    damaged = run(app, ["store", "verify"])
    assert damaged.exit_code == 1
    assert "3 rows in 3 records in 1 journals, 0 answered twice, 1 damaged" in damaged.output
    assert f"damaged: {journal} bytes" in damaged.output
    assert "3 rows kept, 1 journals merged into 1, 1 damaged records dropped" in run(app, ["store", "gc"]).stdout
    assert run(app, ["store", "verify"]).exit_code == 0


def test_a_store_that_is_not_there_is_one_clear_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sys, "argv", ["persyn", "store", "stats", "--store", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match="error: there is no store at"):
        main()


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StubServer]:
    """A folder with 12 prompts, two teachers behind a stub, and nothing run."""
    monkeypatch.chdir(tmp_path)
    Path("data/raw").mkdir(parents=True)
    lines = [json.dumps({"prompt": f"Tell story number {number}."}) for number in range(12)]
    Path("data/raw/p.jsonl").write_text("\n".join(lines))
    with stub_teacher() as server:
        params = YAML(typ="safe", pure=True).load(ROOT / "params.yaml")
        teacher = {"model": "stub", "license": "x", "backend": "openai", "sampling": {"max_tokens": 40}}
        params["teachers"] = {"a": teacher, "b": {**teacher, "system": "Be brief."}}
        params["prompts"] = {"num_parallel": 6, "sources": [{"path": "p.jsonl"}], "decontaminate": []}
        params["strategies"] = {"strong": {"rule": "strong", "teacher": "a"}, "persyn": {"rule": "persyn"}}
        params["quality"] = {"methods": {"instruction": "judge"}, "judge": {"model": "stub"}}
        params["budget"] = {"max_tokens": 2000}
        params["prices"] = {"teachers": {"a": {"input": 1, "output": 2}}}
        params["speed"] = {"openai": {"base_url": server.url}}
        YAML().dump(params, Path("params.yaml"))
        yield server


def test_plan_asks_nobody_but_for_a_probe(project: StubServer) -> None:
    cold = CliRunner().invoke(app, ["plan"])
    assert cold.exit_code == 0, cold.output
    assert project.counts["ok"] == 0
    assert "12 prompts (from the raw files), 6 parallel" in cold.stdout
    assert " seen yet of a, b" in cold.stdout
    assert "No price given for b" in cold.stdout
    assert "budget.max_tokens 2,000: 2,000 left, the plan needs " in cold.stdout
    assert " judge" in cold.stdout
    probed = CliRunner().invoke(app, ["plan", "--probe", "4", "--json"])
    assert probed.exit_code == 0, probed.output
    assert project.counts["ok"] == 8
    found = json.loads(probed.stdout)
    assert found["seen"] == {"a": 4, "b": 4}
    assert found["responses"]["a"]["calls"] == [2, 2]
    assert found["budget"]["left"] < 2000
    again = CliRunner().invoke(app, ["plan", "--probe", "4"])
    assert again.exit_code == 0
    assert project.counts["ok"] == 8, "a probe is paid for once"


def test_a_probe_tells_the_errors_of_all_teachers(project: StubServer) -> None:
    project.faults = {"401": 1.0}
    result = CliRunner().invoke(app, ["plan", "--probe", "4"])
    assert isinstance(result.exception, InputError)
    assert [line.split(":")[0] for line in result.exception.args] == ["a", "b"]
    assert all("responds with status 401" in line for line in result.exception.args)


def test_generate_without_prompts_names_the_command(project: StubServer) -> None:
    result = CliRunner().invoke(app, ["generate"])
    assert "data/prompts.parquet does not exist; run `dvc repro prompts`" in str(result.exception)
    other = CliRunner().invoke(app, ["generate", "--prompts", "other.parquet"])
    assert "other.parquet does not exist" in str(other.exception)
    assert "repro prompts" not in str(other.exception)


def test_ledger_prints_the_bill_at_todays_prices(project: StubServer) -> None:
    for name in "ab":
        import_module("stages.prompts").main("data/raw", "data/prompts.parquet", "metrics/prompts.json")
        import_module("stages.responses").main(name, "data/prompts.parquet", f"data/responses/{name}.parquet")
    prompts = read_table("data/prompts.parquet", PROMPTS)
    routes = known_routes(prompts, ["a", "b"], {"strong": Strong(rule="strong", teacher="a")}, {})["strong"]
    for name in ("strong", "persyn"):
        write_table(routes, f"data/routes/{name}.parquet", ROUTES)
        paths = f"data/routes/{name}.parquet", "data/responses", f"data/routed/{name}.parquet"
        import_module("stages.routed").main("data/prompts.parquet", *paths)
    result = CliRunner().invoke(app, ["ledger"])
    assert result.exit_code == 0, result.output
    assert ["spent", "18"] in [line.split()[:2] for line in result.stdout.splitlines()]
    assert "no price given for b" in result.stdout


def test_help_says_it_all_without_loading_anything() -> None:
    program = "import sys, persyn.cli; assert not {'torch', 'polars', 'openai'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True)
    for command in (["--help"], ["store", "--help"], ["plan", "--help"], ["ledger", "--help"]):
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0
        assert "store" in result.stdout or "data" in result.stdout


def test_it_runs_as_a_module_and_its_mistakes_are_one_line(tmp_path: Path) -> None:
    """As the rehearsal starts it."""
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    command = [sys.executable, "-m", "persyn.cli", "report"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert "error: workspace has no params.yaml here; run the command in the folder of a project\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_planning_loads_no_model(project: StubServer) -> None:
    program = (
        "import sys; sys.argv = ['persyn', 'plan']; import persyn.cli\n"
        "try: persyn.cli.main()\n"
        "finally: assert not {'torch', 'transformers', 'openai', 'vllm'} & set(sys.modules)"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, env=environment)
