"""A key in the environment is found nowhere else: after a full run, a crash, a kill and a run as verbose as can be."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from ruamel.yaml import YAML

from tests.support.stub import stub_teacher
from tests.support.tiny import tiny_params, tiny_project

CANARY = "sk-canary-7f3a9b2c4d5e6f708192"


def test_the_key_stays_in_the_environment(tmp_path: Path) -> None:
    params = tiny_params("unused")
    stub = {"model": "stub", "license": "x", "backend": "openai", "sampling": {"max_tokens": 20}}
    params["teachers"], params["strategies"] = {"stub": stub}, {"strong": {"rule": "strong", "teacher": "stub"}}
    project = tiny_project(tmp_path / "project", params)
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PERSYN_STORE": str(tmp_path / "store"), "PERSYN_CACHE": str(tmp_path / "cache"), "PATH": binaries}
    loud = {"OPENAI_LOG": "debug", "PERSYN_TRACEBACK": "1", "HTTPX_LOG_LEVEL": "trace"}
    environment = os.environ | own | {"TEACHER_KEY": CANARY}
    dvc = [sys.executable, "-m", "dvc"]
    said = ""

    def run(*command: str, status: int, **more: str) -> None:
        nonlocal said
        done = subprocess.run(
            [*dvc, *command], cwd=project, env=environment | more, capture_output=True, text=True, check=False
        )
        said += done.stdout + done.stderr
        assert done.returncode == status, done.stderr

    def set_up(url: str, max_error_share: float) -> None:
        params["speed"]["openai"] = {"base_url": url, "api_key_env": "TEACHER_KEY", "max_attempts": 1}
        params["responses"]["max_error_share"] = max_error_share
        YAML().dump(params, project / "params.yaml")

    run("init", "--no-scm", status=0)
    with stub_teacher({"500": 0.5, "html": 0.2}) as server:
        set_up(server.url, 0.0)
        run("repro", "-vv", "responses@stub", status=255, **loud)  # fails, with a traceback, as loud as it can
        assert "Traceback" in said
    with stub_teacher(delay=1.0) as server:
        set_up(server.url, 0.0)
        with subprocess.Popen(
            [*dvc, "repro", "responses@stub"], cwd=project, env=environment, start_new_session=True
        ) as killed:
            while not server.in_flight:
                time.sleep(0.05)
            os.killpg(killed.pid, signal.SIGKILL)
    with stub_teacher() as server:
        set_up(server.url, 0.0)
        run("repro", "-v", "responses@stub", status=0)
        assert {headers["authorization"] for headers in server.headers_seen} == {f"Bearer {CANARY}"}
    shutil.rmtree(project / "persyn")
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 20
    assert [path for path in files if CANARY.encode() in path.read_bytes()] == []
    assert CANARY not in said
