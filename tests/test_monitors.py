"""Live: a training can be watched while it runs, and is none the different for it."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from transformers import TrainerCallback

from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.models import Student
from persyn.pairs import PairSettings, build_pairs
from persyn.router import fit_router
from persyn.student import SftSettings, train_student
from persyn.training import TrainingSpeed
from persyn.training.monitors import Live
from tests.support.planted import TEACHERS, planted, settings
from tests.support.tables import prompts_table, responses_table, stub_teachers, texts_of

PROMPTS = prompts_table([f"Say the word number {i}." for i in range(8)])
RESPONSES = responses_table(PROMPTS, "t", [f"The clock struck {i}." for i in range(8)])
DATASET, _ = build_dataset(PROMPTS, RESPONSES, Policies(), stub_teachers("t"), Licenses(), DatasetSettings())
STEPS = 6


def train(model: str, out: Path, live: Live | None) -> pl.DataFrame:
    """A student, in STEPS steps."""
    student = Student(model=model, license="x", max_length=256)
    settings = SftSettings(learning_rate=5e-3, epochs=3, batch_size=4)
    return train_student(DATASET, student, out, settings, 2, live)


class At(TrainerCallback):
    """Does something once `step` is logged."""

    def __init__(self, step: int, look: Callable[[], None]) -> None:
        self.step, self.look = step, look

    def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
        if state.global_step == self.step:
            self.look()


@dataclass(frozen=True)
class Watched(Live):
    """With someone who looks at the files before the step after `step`."""

    step: int = 0
    look: Callable[[], None] = print

    def callbacks(self) -> list[Any]:
        return [*super().callbacks(), At(self.step, self.look)]


def losses(folder: Path) -> pl.DataFrame:
    return pl.read_csv(folder / "plots" / "metrics" / "loss.tsv", separator="\t")


def events(folder: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows as the loss."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = EventAccumulator(str(folder))
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars("train/loss")]


def test_the_curves_are_there_while_it_trains(base_model: str, tmp_path: Path) -> None:
    seen: list[Any] = []
    live = Watched(tmp_path / "live", ["dvclive", "tensorboard"], 2, lambda: seen.append(losses(tmp_path / "live")))
    curve = train(base_model, tmp_path / "out", live)
    assert curve.height == STEPS
    assert seen[0].rows() == curve.head(2).rows()
    assert losses(tmp_path / "live").rows() == curve.rows()
    assert events(tmp_path / "live") == [(step, pytest.approx(loss, rel=1e-5)) for step, loss in curve.rows()]
    train(base_model, tmp_path / "out", live)
    assert losses(tmp_path / "live").height == STEPS, "a training that begins anew begins new curves"
    assert len(events(tmp_path / "live")) == STEPS


def test_a_training_that_was_cut_short_goes_on_in_the_same_curves(base_model: str, tmp_path: Path) -> None:
    def die() -> None:
        raise RuntimeError("the power is out")

    whole = train(base_model, tmp_path / "whole", None)
    folder, kinds = tmp_path / "live", ["dvclive", "tensorboard"]
    with pytest.raises(RuntimeError, match="power"):
        train(base_model, tmp_path / "out", Watched(folder, kinds, 4, die))
    [checkpoint] = Path(os.environ["PERSYN_CACHE"]).glob("checkpoints/*/checkpoint-*")
    assert checkpoint.name == "checkpoint-4"
    with (folder / "plots" / "metrics" / "loss.tsv").open("a") as file:
        file.write("5\t1.0\n6\t2.0\n6")  # steps that no checkpoint has, the last one torn
    train(base_model, tmp_path / "out", Live(folder, kinds))
    assert losses(folder).rows() == whole.rows()
    assert [step for step, _ in events(folder)] == list(range(1, STEPS + 1))


def test_the_trained_model_is_the_same_to_the_byte(base_model: str, tmp_path: Path) -> None:
    for name, live in (("with", Live(tmp_path / "live", ["dvclive", "tensorboard"])), ("without", None)):
        train(base_model, tmp_path / name, live)
    names = sorted(path.name for path in (tmp_path / "with").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "without").iterdir())
    for name in names:
        assert (tmp_path / "with" / name).read_bytes() == (tmp_path / "without" / name).read_bytes(), name


def test_a_router_is_watched_too(base_model: str, tmp_path: Path) -> None:
    prompts, rewards = planted(33)
    tuned = settings(base_model, method="finetuned", shrink=False, epochs=4)
    tables = prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS, tuned
    watched_router, card, _ = fit_router(*tables, live=Live(tmp_path / "live"))
    curve = losses(tmp_path / "live")
    assert curve["step"].to_list() == list(range(1, curve.height + 1))
    assert curve["loss"][-1] < curve["loss"][0]
    alone, other, _ = fit_router(*tables)
    assert card == other
    texts = texts_of(prompts)
    assert (watched_router.strengths(texts) == alone.strengths(texts)).all()


def test_null_writes_nothing(base_model: str, tmp_path: Path) -> None:
    train(base_model, tmp_path / "out", Live(tmp_path / "live", None))
    assert not (tmp_path / "live").exists()


def test_only_the_main_process_writes(tmp_path: Path) -> None:
    from types import SimpleNamespace

    state = SimpleNamespace(is_world_process_zero=False, global_step=1, is_hyper_param_search=False)
    for callback in Live(tmp_path / "live", ["dvclive", "tensorboard"]).callbacks():
        callback.on_train_begin(None, state, None)
        callback.on_log(None, state, None, logs={"loss": 1.0})
    assert not (tmp_path / "live").exists()


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("dvcliv", r"report_to is 'dvcliv'; .*dvclive, tensorboard, wandb.*list.*null"),
        (["tensorboard", "mlflow"], "report_to.*'mlflow'.*dvclive.*tensorboard.*wandb"),
        (True, "report_to is true; .*dvclive, tensorboard, wandb"),
        ({"wandb": True}, "report_to is .*wandb.*; .*dvclive, tensorboard, wandb"),
    ],
)
def test_an_unknown_one_is_refused(report_to: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainingSpeed.parse({"report_to": report_to}, "speed.student")


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "persyn.training.monitors.find_spec", lambda name: None if name == "wandb" else importlib.util.find_spec(name)
    )
    with pytest.raises(InputError, match="wandb is not installed; run `pip install wandb`, or set it to null"):
        Live("live", ["dvclive", "wandb"])


def test_git_and_dvc_are_left_alone(base_model: str, tmp_path: Path) -> None:
    """In a project, and even with a token of DVC Studio: nothing is written but the curves, nothing is sent."""
    program = (
        "import socket, sys\n"
        "def refuse(*arguments): raise OSError('no network')\n"
        "socket.socket.connect = socket.getaddrinfo = refuse\n"
        "from tests.test_monitors import train\nfrom persyn.training.monitors import Live\nfrom pathlib import Path\n"
        "train(sys.argv[1], Path('out'), Live('metrics/live/student/x'))\n"
    )
    for command in (["git", "init", "-q"], [sys.executable, "-m", "dvc", "init", "-q"]):
        subprocess.run(command, cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("/metrics/live/\n/out/\n/cache/\n")
    before = set(tmp_path.rglob("*"))
    root = Path(__file__).parent.parent
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(root), str(root / "tests")]),
        "DVC_STUDIO_TOKEN": "isat_x",
        "DVC_STUDIO_REPO_URL": "git@example.com:x/y.git",
        "DVC_EXP_BASELINE_REV": "0" * 40,
        "DVC_ROOT": str(tmp_path),
    }
    subprocess.run([sys.executable, "-c", program, base_model], cwd=tmp_path, env=environment, check=True)
    made = {path.relative_to(tmp_path).parts[0] for path in set(tmp_path.rglob("*")) - before}
    assert made == {"metrics", "out", "cache"}
    assert (tmp_path / "metrics/live/student/x/plots/metrics/loss.tsv").is_file()
