"""Profiles: folders that run the same pipeline under parameters of their own, beside the main project."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support.tiny import ROOT, tiny_params, tiny_project

PROFILES = sorted(folder.parent for folder in ROOT.glob("profiles/*/params.yaml"))
LINKED = ("dvc.yaml", ".dvcignore", "stages", "persyn", "tasks", "configs")


@pytest.mark.parametrize("folder", PROFILES, ids=lambda folder: folder.name)
def test_a_shipped_profile_runs_the_code_and_shares_the_cache_of_the_main_project(folder: Path) -> None:
    for name in LINKED:
        assert (folder / name).is_symlink(), name
        assert (folder / name).resolve() == ROOT / name
    config = (folder / ".dvc" / "config").read_text()
    assert [line.strip() for line in config.splitlines() if "dir" in line] == ["dir = ../../../.dvc/cache"]
    assert (folder / ".dvc" / config.split("dir = ")[1].split()[0]).resolve() == ROOT / ".dvc" / "cache"
    assert (folder / ".dvc" / ".gitignore").read_text() == (ROOT / ".dvc" / ".gitignore").read_text()
    assert (folder / "data" / "raw").is_dir()


def run(folder: Path, *words: str) -> str:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, check=False, env={**os.environ, "PATH": path}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_going_from_one_profile_to_another_and_back_runs_nothing_again(tmp_path: Path) -> None:
    params = tiny_params("none")
    main = tiny_project(tmp_path / "main", params)
    shutil.copytree(ROOT / ".dvc", main / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local"))
    shutil.copy(ROOT / "Makefile", main)
    run(main, "git", "init", "-q")
    for name, seed in (("one", 1), ("two", 2)):
        params["prompts"]["seed"] = seed
        YAML().dump(params, tmp_path / f"{name}.yaml")
        run(main, "make", "profile", f"NAME={name}", f"FROM={tmp_path / name}.yaml")
    folders = [main, main / "profiles" / "one", main / "profiles" / "two"]
    assert ["Running stage 'prompts'" in run(folder, "dvc", "repro", "prompts") for folder in folders] == [True] * 3
    assert len({(folder / "data/prompts.parquet").read_bytes() for folder in folders}) == 3
    for folder in (*folders, folders[0]):
        assert "Data and pipelines are up to date" in run(folder, "dvc", "repro", "prompts")
        assert "prompts:\n" not in run(folder, "dvc", "status")
    # What one has made serves the others: the run cache is the main project's.
    again = folders[2] / "params.yaml"
    shutil.copy(tmp_path / "one.yaml", again)
    assert "Running stage" not in run(folders[2], "dvc", "repro", "prompts")
    assert (folders[2] / "data/prompts.parquet").read_bytes() == (folders[1] / "data/prompts.parquet").read_bytes()
    # And a variant beside what is there, as docs/paper.md runs them.
    run(main, "git", "add", "-A")
    run(main, "git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-q", "-m", "profiles")
    assert "Ran experiment" in run(folders[1], "dvc", "exp", "run", "--temp", "-S", "prompts.seed=3", "prompts")
    assert run(main, "git", "status", "--porcelain") == ""
