"""Parameters: every shipped section binds to its code; a misspelling is one clear line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import stages
from persyn.dataset import build_dataset
from persyn.defects import Policies
from persyn.evaluation import evaluate_student
from persyn.generation import Sampling, Teacher, generate_responses
from persyn.models import Student
from persyn.pairs import build_pairs
from persyn.prompts import Source, build_prompts
from persyn.quality import score_quality
from persyn.rewards import build_rewards
from persyn.router import fit_router
from persyn.schemas import InputError
from persyn.student import train_student
from stages import read_params, run

SECTIONS: dict[str, Callable[..., Any]] = {
    "prompts": build_prompts,
    "quality": score_quality,
    "student": Student,
    "responses": generate_responses,
    "defects": Policies,
    "rewards": build_rewards,
    "pairs": build_pairs,
    "router": fit_router,
    "dataset": build_dataset,
    "sft": train_student,
    "evaluation": evaluate_student,
}


@pytest.fixture
def params(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(stages, "PARAMS", tmp_path / "params.yaml")
    return tmp_path / "params.yaml"


def test_every_shipped_section_binds_to_its_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "PARAMS", Path(__file__).parent.parent / "params.yaml")
    for section, accepts in SECTIONS.items():
        assert read_params(section, accepts)
    for name in read_params("teachers"):
        Sampling(**Teacher(**read_params(f"teachers.{name}", Teacher)).sampling)
    for source in read_params("prompts")["sources"] + read_params("prompts")["decontaminate"]:
        Source(**source)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pairs: {min_margn: 0}", r"pairs.min_margn is not a parameter; did you mean min_margin\?"),
        ("pair: {}", r"pairs is missing in .*; did you mean pair\?"),
        ("pairs: 3", "pairs must be a mapping in .*, got 3"),
        ("pairs: {}\npairs: {}", "duplicate key"),
        ("pairs: {", "cannot read"),
        ("pairs: !!python/object/apply:os.system [echo]", "cannot read"),
    ],
)
def test_a_mistake_is_one_clear_line(params: Path, text: str, message: str) -> None:
    params.write_text(text)
    with pytest.raises(InputError, match=message) as raised:
        read_params("pairs", build_pairs)
    assert "\n" not in str(raised.value)


def test_a_missing_parameter_is_named(params: Path) -> None:
    params.write_text("rewards: {}\nteachers: {t: {model: m}}")
    with pytest.raises(InputError, match=r"rewards.alpha is missing"):
        read_params("rewards", build_rewards)
    with pytest.raises(InputError, match=r"teachers.t.sampling is missing"):
        read_params("teachers.t", Teacher)
    with pytest.raises(InputError, match=r"teachers.u is missing in .*; known: t"):
        read_params("teachers.u", Teacher)


def test_run_ends_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def main() -> None:
        raise InputError("got this, need that")

    monkeypatch.setattr("sys.argv", ["stage"])
    with pytest.raises(SystemExit, match="error: got this, need that"):
        run(main)
    monkeypatch.setenv("PERSYN_TRACEBACK", "1")
    with pytest.raises(InputError):
        run(main)
