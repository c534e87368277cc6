"""The shard command, and the scripts in docs/launch that run it, each started as its scheduler would on two shards."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from ruamel.yaml import YAML

from persyn.schemas import PROMPTS, ROUTES, write_table
from persyn.store import shelves, verify
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table
from tests.support.tiny import tiny_params, tiny_project

LAUNCH = Path(__file__).parent.parent / "docs" / "launch"
SHARDS = 2
NAME = "far"


def load(name: str) -> Any:
    return YAML(typ="safe", pure=True).load(LAUNCH / name)


def slurm(shard: int) -> tuple[list[str], dict[str, str]]:
    return ["bash", str(LAUNCH / "slurm.sh")], {
        "TEACHER": NAME,
        "SLURM_ARRAY_TASK_ID": str(shard),
        "SLURM_ARRAY_TASK_COUNT": str(SHARDS),
    }


def skypilot(shard: int) -> tuple[list[str], dict[str, str]]:
    task = load("skypilot.yaml")
    assert set(task["envs"]) == {"TEACHER", "PERSYN_STORE"}
    environment = {"TEACHER": NAME, "SKYPILOT_NODE_RANK": str(shard), "SKYPILOT_NUM_NODES": str(SHARDS)}
    return ["bash", "-c", task["run"]], environment


def kubernetes(shard: int) -> tuple[list[str], dict[str, str]]:
    spec = load("kubernetes.yaml")["spec"]
    [container] = spec["template"]["spec"]["containers"]
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    assert set(environment) == {"TEACHER", "SHARDS", "PERSYN_STORE"}
    assert int(environment["SHARDS"]) == spec["completions"]
    return container["command"], {"TEACHER": NAME, "SHARDS": str(SHARDS), "JOB_COMPLETION_INDEX": str(shard)}


@pytest.fixture
def server() -> Iterator[StubServer]:
    with stub_teacher() as server:
        yield server


@pytest.fixture
def project(tmp_path: Path, server: StubServer) -> Path:
    """A project with a served teacher, 20 prompts of which 8 are parallel, and 6 others routed to it."""
    params = tiny_params("none")
    params["teachers"] = {
        NAME: {"model": "m", "license": "x", "training": "allowed", "backend": "openai", "sampling": {"max_tokens": 40}}
    }
    params["strategies"] = {"random": {"rule": "random"}}
    params["speed"]["openai"] = {"base_url": server.url}
    folder = tiny_project(tmp_path / "project", params)
    prompts = prompts_table([f"Tell story number {number}." for number in range(20)])
    prompts = prompts.with_columns(parallel=pl.Series([number < 8 for number in range(20)])).sort("prompt_id")
    write_table(prompts, folder / "data/prompts.parquet", PROMPTS)
    routed = prompts.filter(~pl.col("parallel")).select("prompt_id")
    teachers = pl.Series([NAME] * 6 + ["another"] * 6)
    routes = routed.with_columns(teacher=teachers, strength=pl.lit(None, pl.Float64), margin=pl.lit(None, pl.Float64))
    write_table(routes, folder / "data/routes/random.parquet", ROUTES)
    binaries = tmp_path / "bin"
    binaries.mkdir()
    (binaries / "srun").write_text('#!/bin/sh\nexec "$@"\n')
    (binaries / "persyn").write_text(
        f'#!/bin/sh\nexec {sys.executable} -c "from persyn.cli import main; main()" "$@"\n'
    )
    for binary in binaries.iterdir():
        binary.chmod(0o755)
    return folder


def start(project: Path, command: list[str], environment: dict[str, str]) -> subprocess.Popen[str]:
    path = f"{project.parent / 'bin'}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(project), **environment}
    return subprocess.Popen(
        command, cwd=project, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


@pytest.mark.parametrize("scheduler", [slurm, skypilot, kubernetes])
def test_shards_together_answer_everything_once(
    scheduler: Callable[[int], tuple[list[str], dict[str, str]]], project: Path, server: StubServer
) -> None:
    runs = [start(project, *scheduler(shard)) for shard in range(SHARDS)]
    said = []
    for run in runs:
        out, errors = run.communicate()
        assert run.returncode == 0, errors
        said.append(int(re.findall(r" has (\d+) of ", out)[0]))
    assert sum(said) == server.counts["ok"] == 14
    assert min(said) > 0
    [shelf] = shelves(Path(os.environ["PERSYN_STORE"]))
    assert verify(shelf)[0].rows == 14


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--teacher", NAME, "--shard", "2/2"], "part 2 of 2: it must be 0 to 1"),
        (["--teacher", NAME, "--shard", "half"], "--shard is 'half'; it must be i/n"),
        (["--teacher", "fra"], "'fra' is not in params.yaml; did you mean far?"),
        (["--teacher", NAME, "--prompts", "none.parquet"], "none.parquet does not exist; run `dvc repro`"),
    ],
)
def test_a_mistake_is_one_clear_line(arguments: list[str], message: str, project: Path) -> None:
    run = start(project, ["persyn", "generate", *arguments], {})
    _, errors = run.communicate()
    assert run.returncode == 1
    assert message in errors
    assert len(errors.strip().splitlines()) == 1
