"""The arrows between rooms are kept by import-linter; a forbidden import, put there on purpose, is found."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.tiny import ROOT


def lint(folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint()", "--no-cache"]
    return subprocess.run(command, cwd=folder, env={"PYTHONPATH": str(folder)}, capture_output=True, text=True)


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """The code of persyn and stages, and the contracts, in a folder of their own."""
    for name in ("persyn", "stages"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_the_contracts_are_kept(copy: Path) -> None:
    run = lint(copy)
    assert run.returncode == 0, run.stdout


@pytest.mark.parametrize(
    ("module", "line", "contract"),
    [
        ("persyn/prompts/__init__.py", "import persyn.generation", "A room imports only rooms below it"),
        ("persyn/verifiers/__init__.py", "import persyn.models", "A room imports only rooms below it"),
        ("persyn/rewards.py", "import persyn.project.params", "A room imports only rooms below it"),
        ("persyn/cost.py", "import stages.cost", "persyn knows no stages"),
        ("stages/pairs.py", "import persyn.report", "Stages import the reader of parameters, nouns"),
    ],
)
def test_a_seeded_import_is_found(copy: Path, module: str, line: str, contract: str) -> None:
    file = copy / module
    file.write_text(file.read_text() + f"\n{line}\n")
    run = lint(copy)
    assert run.returncode == 1
    assert f"{contract}" in run.stdout.partition("Broken contracts")[2].replace("\n", " ")


def test_a_new_room_must_have_its_place(copy: Path) -> None:
    (copy / "persyn" / "elsewhere.py").write_text('"""A room that no contract knows."""\n')
    assert lint(copy).returncode == 1


def test_the_top_level_is_small() -> None:
    entries = [path for path in (ROOT / "persyn").iterdir() if path.name != "__pycache__"]
    assert sum(path.is_file() for path in entries) <= 21
    assert sum(path.is_dir() for path in entries) <= 18
