"""Short versions of the benchmarks that kill, damage and crowd: every line must stay within what is allowed."""

from collections.abc import Iterable
from pathlib import Path

import pytest

from benchmarks.faults import Row, damaged, full_disk, killed, sealed, two_writers, write_prompts
from benchmarks.kills import Project
from benchmarks.kills import killed as killed_everywhere
from tests.support.tiny import build_model


def check(rows: Iterable[Row], lines: int) -> None:
    """Every line of a benchmark's table within what it allows."""
    checked = list(rows)
    assert len(checked) == lines
    assert [row for row in checked if row[2] > row[3]] == []


def test_a_killed_generation_loses_and_repeats_nothing(tmp_path: Path) -> None:
    check(killed(tmp_path, write_prompts(tmp_path / "prompts.parquet", 150), kills=5), lines=5)


def test_damage_is_never_served(tmp_path: Path) -> None:
    check(damaged(tmp_path, flips=200), lines=3)


def test_a_full_disk_and_two_runs_at_once(tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path / "prompts.parquet", 200)
    sealed(tmp_path / "calm", prompts, {})
    check(full_disk(tmp_path, prompts), lines=3)
    check(two_writers(tmp_path, prompts), lines=3)


@pytest.mark.parametrize("command", ["dvc repro", pytest.param("dvc exp run --temp", marks=pytest.mark.slow)])
def test_dvc_killed_in_a_stage_goes_on_where_it_was(tmp_path: Path, command: str) -> None:
    model = build_model(tmp_path / "model")
    calm = Project(tmp_path / "calm", model)
    seconds = calm.undisturbed("defects")
    lock = calm.lock("dvc repro")
    check(killed_everywhere(tmp_path, model, command, seconds, lock, "terse", "defects"), lines=5)
