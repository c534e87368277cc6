"""Experiments: `persyn report` finds those of DVC and tells them beside the run; it is one file and a few lines."""

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from persyn.cli import app
from persyn.errors import InputError
from persyn.project.experiments import read_experiments
from tests.support.pages import rows

PIPELINE = """
stages:
  router:
    cmd: python made.py
    deps: [made.py]
    params: [student, rewards, router]
    outs: [{metrics/allocation/persyn.json: {cache: false}}, {metrics/evaluation/persyn.json: {cache: false}}]
"""
MADE = """
import json
import re
from pathlib import Path
alpha = float(re.search('alpha"?: ([0-9.]+)', Path("params.yaml").read_text())[1])
made = {
    "allocation": {"prompts": 10, "entropy": 0.5, "share": {"a": alpha, "b": 1 - alpha}},
    "evaluation": {"sums": {"accuracy": {"value": alpha / 2, "stderr": None, "n": 4}}},
}
for name, content in made.items():
    Path("metrics", name).mkdir(parents=True, exist_ok=True)
    Path("metrics", name, "persyn.json").write_text(json.dumps(content))
"""
PARAMS = {
    "teachers": {"a": {"model": "m"}, "b": {"model": "m"}},
    "strategies": {"persyn": {"rule": "persyn"}},
    "student": {"model": "small"},
    "rewards": {"alpha": 0.5},
    "router": {"epochs": 1},
}


def call(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A profile in a repository, with one stage of DVC's."""
    profile = tmp_path / "profiles" / "tiny"
    (profile / "metrics").mkdir(parents=True)
    monkeypatch.chdir(profile)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "none"))
    for name in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{name}_NAME", "test")
        monkeypatch.setenv(f"GIT_{name}_EMAIL", "test@localhost")
    call("git", "init", str(tmp_path))
    call("dvc", "init", "--subdir")
    call("dvc", "config", "core.analytics", "false")
    for name, text in {"dvc.yaml": PIPELINE, "made.py": MADE, "params.yaml": json.dumps(PARAMS)}.items():
        Path(name).write_text(text)
    call("dvc", "repro")
    call("git", "add", ":/")
    call("git", "commit", "-m", "first")
    return profile


def test_experiments_are_shown_beside_the_run(project: Path) -> None:
    for name, changed in {
        "more-alpha": ["rewards.alpha=0.75"],
        "both": ["rewards.alpha=0.25", "router.epochs=2"],
    }.items():
        call("dvc", "exp", "run", "-n", name, *(word for change in changed for word in ("-S", change)))
        call("git", "checkout", "--force", "HEAD")
    Path("../other").mkdir()
    Path("../other/file").write_text("a later commit has no experiment of its own")
    call("git", "add", ":/")
    call("git", "commit", "-m", "second")
    result = CliRunner().invoke(app, ["report"])
    assert result.exit_code == 0, result.output
    page = Path("metrics/reports/report.html").read_text()
    assert ["tiny", "small", "—", "0.50", "0.250"] in rows(page)
    assert ["more-alpha", "small", "—", "0.75", "0.375"] in rows(page)
    assert ["both", "small", "router.epochs", "0.25", "0.125"] in rows(page)
    assert "more-alpha: alpha 0.75 a 75%" in page
    assert "could not be read" not in page
    then = CliRunner().invoke(app, ["report", "--rev", "more-alpha", "--out", "then.html"])
    assert then.exit_code == 0, then.output
    page = Path("then.html").read_text()
    assert "<h1>tiny at more-alpha</h1>" in page
    assert ["tiny at more-alpha", "small", "—", "0.75", "0.375"] in rows(page)


def test_an_experiment_whose_parameters_are_damaged_is_named(project: Path) -> None:
    def git(*command: str) -> str:
        return subprocess.run(["git", *command], check=True, capture_output=True, text=True).stdout.strip()

    head = git("rev-parse", "HEAD")
    for name, text in {"lost": "{", "more": json.dumps(PARAMS | {"rewards": {"alpha": 0.9}})}.items():
        Path("params.yaml").write_text(text)
        git("add", "params.yaml")
        commit = git("commit-tree", git("write-tree"), "-p", head, "-m", name)
        git("update-ref", f"refs/exps/{head[:2]}/{head[2:]}/{name}", commit)
    git("reset", "--hard")
    [found], note = read_experiments()
    assert (found.name, found.section("rewards")) == ("more", {"alpha": 0.9})
    assert found.metric("allocation")["persyn"]["share"]["a"] == 0.5
    assert "lost" in note


def test_the_command_tells_the_story_and_writes_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    missing = CliRunner().invoke(app, ["report"])
    assert "has no params.yaml here" in str(missing.exception)
    Path("params.yaml").write_text("teachers: {a: {model: m}}\nstrategies: {persyn: {rule: persyn}}\n")
    result = CliRunner().invoke(app, ["report", "--sample", "3"])
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len(lines) == 8
    assert lines[-1].startswith("Where to look next: metrics/reports/report.html (0.0 MB")
    page = Path("metrics/reports/report.html").read_text()
    assert "experiments could not be read" in page
    assert "not made yet: <code>dvc repro prompts</code>" in page
    refused = CliRunner().invoke(app, ["report", "--out", "params.yaml/report.html"])
    assert isinstance(refused.exception, InputError)
    assert "cannot be written" in str(refused.exception)
