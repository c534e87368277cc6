"""Scoring shared among processes and Ray tasks gives the tables of one process, and outlives kills."""

import importlib.util
import os
import signal
import threading
import time
from functools import partial
from pathlib import Path

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.learnability import LearnabilitySettings, LearnabilitySpeed, score_learnability
from persyn.models import Student
from persyn.models.shares import Nodes, ScoringSpeed, divide, work_in_shares
from persyn.quality.reward_model import RewardModelSettings, RewardModelSpeed, reward_model_scores
from tests.support.shares import marks, refuse
from tests.support.tables import prompts_table, responses_table
from tests.test_quality import build_reward_model

TEXTS = [f"Prompt number {n}, " + "with some words " * (n % 4) for n in range(12)]


def tables() -> tuple[pl.DataFrame, pl.DataFrame]:
    prompts = prompts_table(TEXTS)
    written = [responses_table(prompts, name, [f"{name} says {n * n}." for n in range(12)]) for name in ("a", "b")]
    return prompts, pl.concat(written)


def learn(model: str, folder: Path, speed: LearnabilitySpeed | None = None) -> pl.DataFrame:
    return score_learnability(*tables(), Student(model=model, license="x"), LearnabilitySettings(), folder, speed)


def test_shares_are_even_and_hold_every_key_once() -> None:
    weights = {n: n % 7 + 1 for n in range(40)}
    shares = divide(weights, 3)
    assert sorted(key for share in shares for key in share) == list(range(40))
    loads = [sum(weights[key] for key in share) for share in shares]
    assert max(loads) - min(loads) <= 7
    assert shares == divide(weights, 3)
    assert len(divide({"x": 3}, 4)) == 1
    assert divide({}, 4) == []


def test_two_processes_give_the_tables_of_one(base_model: str, tmp_path: Path) -> None:
    expected = learn(base_model, tmp_path / "one")
    found = learn(base_model, tmp_path / "two", LearnabilitySpeed(processes=2))
    assert found.drop("learnability").equals(expected.drop("learnability"))
    assert found["learnability"].to_list() == pytest.approx(expected["learnability"].to_list(), abs=1e-5)


@pytest.mark.slow
def test_two_processes_with_a_reward_model_give_the_scores_of_one(tmp_path: Path) -> None:
    build_reward_model(tmp_path / "model")
    prompts, responses = tables()
    rows, settings = responses.join(prompts, on="prompt_id"), RewardModelSettings(model=str(tmp_path / "model"))
    alone = reward_model_scores(rows, tmp_path / "r1", settings)
    assert reward_model_scores(rows, tmp_path / "r2", settings, RewardModelSpeed(processes=2)) == alone


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="needs ray")
def test_ray_tasks_give_the_tables_of_one_process(base_model: str, tmp_path: Path) -> None:
    expected = learn(base_model, tmp_path / "one")
    found = learn(base_model, tmp_path / "ray", LearnabilitySpeed(ray=Nodes(workers=2, cpus=0.5)))
    assert found["learnability"].to_list() == pytest.approx(expected["learnability"].to_list(), abs=1e-5)


def test_a_killed_process_ends_the_others_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "wait").touch()

    def kill() -> None:
        while len(files := list(tmp_path.glob("pid-*"))) < 2 or not all(file.read_text() for file in files):
            time.sleep(0.05)
        os.kill(int((tmp_path / "pid-2").read_text()), signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match=r"one of 2 scoring processes ended: .*SIGKILL.* in speed\.x\.processes"):
        work_in_shares(partial(marks, tmp_path), [[1], [2]], ScoringSpeed(processes=2), "x")
    killer.join()
    other = int((tmp_path / "pid-1").read_text())
    for _ in range(100):
        if not Path(f"/proc/{other}").exists():
            break
        time.sleep(0.1)
    assert not Path(f"/proc/{other}").exists()
    assert not (tmp_path / "1").exists()


def test_a_refusal_in_a_process_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^share 2 is wrong; mend it$"):
        work_in_shares(refuse, [[1], [2]], ScoringSpeed(processes=2), "x")
