"""`persyn generate` without a name: served teachers side by side, others in turn, one budget, one signal for all."""

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML
from typer.testing import CliRunner, Result

from persyn.cli import app
from persyn.errors import InputError
from persyn.generation import BACKENDS, Generation, Sampling, Teacher
from persyn.generation.budget import Budget, SharedBudget
from persyn.generation.concurrency import START
from persyn.generation.threads import side_by_side
from persyn.generation.transformers import TransformersSpeed
from persyn.responses import generate_responses
from persyn.schemas import PROMPTS, RESPONSES, ROUTES, read_table, write_table
from persyn.store import shelves, store_folder, verify
from stages.responses import main as responses
from stages.routed import main as routed
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table
from tests.support.tiny import tiny_params

NAMES = ["far", "further", "farthest"]
TEXTS = [f"Tell story number {number}." for number in range(20)]
Project = dict[str, Any]


class FakeLocal:
    """A local engine that repeats the last message; it notes which engines are open at once."""

    Speed = TransformersSpeed
    opened: list[str] = []  # noqa: RUF012 (emptied by the fixture)

    def __init__(self, teacher: Teacher, speed: TransformersSpeed) -> None:
        if teacher.model.endswith("nowhere"):
            raise InputError("does not start")
        FakeLocal.opened.append(teacher.model)

    def generate(self, conversations: Any, keys: Any, sampling: Sampling) -> Iterator[dict[int, Generation]]:
        yield {n: Generation(messages[-1]["content"], "stop", 3, 3) for n, messages in enumerate(conversations)}

    def close(self) -> None:
        FakeLocal.opened.append("closed")


@pytest.fixture
def servers() -> Iterator[dict[str, StubServer]]:
    with ExitStack() as stack:
        yield {name: stack.enter_context(stub_teacher(delay=0.05)) for name in NAMES}


@pytest.fixture
def project(tmp_path: Path, servers: dict[str, StubServer], monkeypatch: pytest.MonkeyPatch) -> Project:
    """Three served teachers, one with 4 anchors, and two local ones; of 20 prompts 8 are parallel; the others are
    routed to the first two served ones and the first local one.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(BACKENDS, "transformers", f"{__name__}:FakeLocal")
    FakeLocal.opened.clear()
    params: Project = tiny_params("none")
    entry: Project = {"license": "x", "training": "allowed", "sampling": {"max_tokens": 40}}
    served: dict[str, Project] = {name: {"model": name, "backend": "openai", **entry} for name in NAMES}
    local = {name: {"model": str(tmp_path / name), "backend": "transformers", **entry} for name in ("near", "nearer")}
    served["farthest"]["anchors"] = 4
    params |= {"teachers": served | local, "strategies": {"random": {"rule": "random"}}}
    params["speed"]["teachers"] = {name: {"base_url": server.url} for name, server in servers.items()}
    YAML().dump(params, Path("params.yaml"))
    for name in local:
        Path(name).mkdir()
        Path(name, "model.safetensors").write_text(name)
    prompts = prompts_table(TEXTS)
    prompts = prompts.with_columns(parallel=pl.Series([number < 8 for number in range(20)])).sort("prompt_id")
    write_table(prompts, "data/prompts.parquet", PROMPTS)
    teachers = pl.Series([*["far"] * 4, *["further"] * 4, *["near"] * 4])
    rest = prompts.filter(~pl.col("parallel")).select("prompt_id")
    empty = pl.lit(None, pl.Float64)
    write_table(rest.with_columns(teacher=teachers, strength=empty, margin=empty), "data/routes/random.parquet", ROUTES)
    # Of a strategy that is in params.yaml no more:
    old = prompts.select("prompt_id", teacher=pl.lit("farthest"), strength=empty, margin=empty)
    write_table(old, "data/routes/old.parquet", ROUTES)
    return params


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["generate", *arguments])


def asked(servers: dict[str, StubServer]) -> dict[str, int]:
    return {name: server.counts["ok"] for name, server in servers.items()}


def test_every_teacher_is_asked_and_dvc_repro_then_asks_nothing(
    project: Project, servers: dict[str, StubServer]
) -> None:
    found = run()
    assert found.exit_code == 0, found.exception
    assert asked(servers) == {"far": 12, "further": 12, "farthest": 4}
    assert FakeLocal.opened == [project["teachers"]["near"]["model"], "closed", *FakeLocal.opened[2:]]
    assert len(FakeLocal.opened) == 4
    for name in project["teachers"]:
        assert f"{name}: shard 0/1 has " in found.stdout
        responses(name, "data/prompts.parquet", f"data/responses/{name}.parquet")
    routed("data/prompts.parquet", "data/routes/random.parquet", "data/responses", "data/routed/random.parquet")
    assert read_table("data/routed/random.parquet", RESPONSES).height == 12
    assert asked(servers) == {"far": 12, "further": 12, "farthest": 4}
    assert len(FakeLocal.opened) == 4


def test_shares_of_all_teachers_together_ask_everything_once(servers: dict[str, StubServer], project: Project) -> None:
    for part in range(3):
        assert run("--shard", f"{part}/3").exit_code == 0
    assert asked(servers) == {"far": 12, "further": 12, "farthest": 4}


def test_a_teacher_that_fails_stops_no_other_and_all_errors_are_told(
    servers: dict[str, StubServer], project: Project
) -> None:
    servers["far"].faults = {"401": 1.0}
    project["speed"]["teachers"]["farthest"]["api_key_env"] = "NO_SUCH_KEY"
    project["teachers"]["near"]["model"] = str(Path.cwd() / "nowhere")
    YAML().dump(project, Path("params.yaml"))
    found = run()
    assert isinstance(found.exception, InputError)
    assert [mistake.partition(":")[0] for mistake in found.exception.args] == ["far", "farthest", "near"]
    assert "401" in found.exception.args[0]
    assert "NO_SUCH_KEY" in found.exception.args[1]
    assert asked(servers) == {"far": 0, "further": 12, "farthest": 0}
    assert "nearer: shard 0/1 has 8 of 8 responses" in found.stdout


@pytest.mark.parametrize("share", [True, False])
def test_teachers_at_once_do_not_overspend_together(share: bool, tmp_path: Path) -> None:
    """Control: budgets that know nothing of each other do."""
    prompts, limit = prompts_table(TEXTS), 2500
    whole = SharedBudget(max_tokens=limit) if share else None
    budgets = [whole.part() if whole else Budget(max_tokens=limit) for _ in range(8)]

    def ask(number: int) -> None:
        teacher = Teacher(model=f"m{number}", license="x", backend="openai", sampling=Sampling(max_tokens=60))
        try:
            generate_responses(prompts, f"t{number}", teacher, tmp_path, server.speed(), budgets[number])
        finally:
            if whole:
                budgets[number].close()  # type: ignore[attr-defined]

    with stub_teacher(delay=0.02) as server:
        errors = side_by_side({f"t{number}": lambda number=number: ask(number) for number in range(8)})  # type: ignore[misc]
    spent = Budget(max_tokens=limit).spent(tmp_path)
    assert all("exceed budget.max_tokens" in str(error) for error in errors.values()) or not share
    assert sum(verify(shelf)[0].rows for shelf in shelves(tmp_path)) == server.counts["ok"]
    assert (limit - 2 * (60 + 16 + len(TEXTS[-1])) < spent <= limit) if share else spent > 1.5 * limit


def test_a_share_of_the_budget_that_is_not_used_up_is_left_to_the_others(tmp_path: Path) -> None:
    whole = SharedBudget(max_tokens=100)
    one, other = whole.part(), whole.part()
    assert one.reserve(tmp_path, [30] * 9) == 1, "half of 100 each"
    assert other.reserve(tmp_path, [30] * 9) == 2, "the rest"
    threading.Timer(0.1, other.close).start()
    assert one.reserve(tmp_path, [80] * 9) == 1, "waited for the other to end"
    with pytest.raises(InputError, match=r"0 of 100 tokens are spent; the next of 9 responses could take 101"):
        one.reserve(tmp_path, [101] * 9)


def test_teachers_of_one_model_take_turns_and_pay_once(servers: dict[str, StubServer], project: Project) -> None:
    project["teachers"]["further"]["model"] = project["teachers"]["far"]["model"]
    project["speed"]["teachers"]["further"] = project["speed"]["teachers"]["far"]
    YAML().dump(project, Path("params.yaml"))
    assert run().exit_code == 0
    assert asked(servers) == {"far": 16, "further": 0, "farthest": 4}, "8 parallel and 2 x 4 routed prompts"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_one_signal_drains_every_teacher(number: int, servers: dict[str, StubServer], project: Project) -> None:
    for server in servers.values():
        server.delay = 3.0
    command = [sys.executable, "-m", "persyn.cli", "generate"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while any(server.in_flight < 3 for server in servers.values()):  # the first call of each is alone
            assert process.poll() is None
            time.sleep(0.05)
        process.send_signal(number)
        errors = process.communicate()[1]
    assert process.returncode == 128 + number, errors
    assert "run the same command to continue" in errors
    calls = asked(servers)
    assert max(calls.values()) <= 1 + START + 1 < 12, "the first, what was in flight, and none of the 12 after that"
    rows = sum(verify(shelf)[0].rows for shelf in shelves(store_folder()))
    assert rows == sum(calls.values()), "none of those in flight is lost"
    assert "Traceback" not in errors
