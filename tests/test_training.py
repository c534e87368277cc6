"""One result whatever trains it: one process or two, DDP or FSDP2, at one go or killed and started again."""

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import polars as pl
import pytest
import torch
from ruamel.yaml import YAML
from safetensors.torch import load_file

from persyn.dataset import DatasetSettings, build_dataset
from persyn.defects import Policies
from persyn.errors import InputError
from persyn.generation.terms import Licenses
from persyn.pairs import PairSettings, build_pairs
from persyn.router import load_router
from persyn.schemas import DATASET, PAIRS, PROMPTS, REWARDS, write_table
from persyn.training.trainer import checkpoints, split_batch, training_arguments
from stages import router as router_stage
from stages import student as student_stage
from tests.support.planted import POEM, SUM, TEACHERS, planted
from tests.support.tables import prompts_table, responses_table, stub_teachers

ROOT = Path(__file__).parent.parent
ROUTER_SETTINGS = {"method": "finetuned", "shrink": False, "learning_rate": 3.0e-3, "epochs": 4}
ROUTER_SETTINGS |= {"batch_size": 8, "holdout": 0.25}
SFT = {"learning_rate": 5.0e-3, "epochs": 3, "batch_size": 4, "lora": {"r": 4, "alpha": 8}}
STUDENT = ["dataset.parquet", "out", "curve.csv", "live"]
ROUTER = ["prompts.parquet", "rewards.parquet", "pairs.parquet", "out", "metrics.json", "bins.csv", "live"]
TWO = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
TEACHER = {"model": "m", "license": "x", "backend": "openai", "sampling": {"max_tokens": 8}}
WORKER = str(Path(__file__).parent / "support" / "stage_worker.py")


@pytest.fixture
def project(tmp_path: Path, base_model: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the tables of both stages. 11 rows and 25 training prompts: no two processes share them evenly."""
    monkeypatch.chdir(tmp_path)
    prompts = prompts_table([f"Say the word number {i}." for i in range(11)])
    texts = [f"The clock struck twelve{' again' * i}." for i in range(11)]
    dataset, _ = build_dataset(
        prompts, responses_table(prompts, "t", texts), Policies(), stub_teachers("t"), Licenses(), DatasetSettings()
    )
    write_table(dataset, "dataset.parquet", DATASET)
    prompts, rewards = planted(33)
    write_table(prompts, "prompts.parquet", PROMPTS)
    write_table(rewards, "rewards.parquet", REWARDS)
    write_table(build_pairs(rewards, PairSettings()), "pairs.parquet", PAIRS)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_params(
        student={"model": base_model, "license": "x", "max_length": 256},
        sft=SFT,
        router=ROUTER_SETTINGS | {"model": base_model},
        teachers=dict.fromkeys(TEACHERS, TEACHER),
        strategies={"persyn": {"rule": "persyn"}},
        speed={"student": {"device_batch_size": 2}},
    )
    return tmp_path


def write_params(**sections: Any) -> None:
    """Change sections of params.yaml."""
    path = Path("params.yaml")
    known = YAML(typ="safe", pure=True).load(path)
    with path.open("w") as file:
        YAML().dump(known | sections, file)


def start(command: list[str], **environment: str) -> int:
    """Run a command on the project's code; its exit status."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": paths, **environment}
    return subprocess.run(command, env=environment, capture_output=True, timeout=300).returncode


def curve() -> list[float]:
    return pl.read_csv("curve.csv")["loss"].to_list()


def weights() -> dict[str, torch.Tensor]:
    return load_file("out/model.safetensors")


def kept() -> list[Path]:
    """Checkpoints in the cache."""
    return sorted(Path(os.environ["PERSYN_CACHE"]).glob("checkpoints/**/checkpoint-*"))


def check_same(before: dict[str, torch.Tensor], losses: list[float], tolerance: float = 1e-4) -> None:
    assert curve() == pytest.approx(losses, abs=tolerance)
    after = weights()
    assert after.keys() == before.keys()
    assert max(float((after[name] - before[name]).abs().max()) for name in before) < tolerance


BFLOAT16 = {"dtype": "bfloat16", "validation": 0.2, "eval_steps": 0.2, "early_stopping_patience": 2}
"""A training that measures the loss on two rows of the eleven, which no two forward passes share evenly."""


@pytest.mark.parametrize(
    ("more", "steps"), [({}, 9), pytest.param(BFLOAT16 | {"epochs": 2}, 6, marks=pytest.mark.slow)]
)
def test_a_student_by_two_processes(more: dict[str, Any], steps: int, project: Path) -> None:
    """The stage launches itself with the config file that params.yaml names."""
    write_params(sft={**SFT, **more})
    student_stage.main(*STUDENT)
    losses, before = curve(), weights()
    assert len(losses) == steps
    speed = {"device_batch_size": 2, "launch": str(ROOT / "configs/accelerate/cpu.yaml")}
    write_params(speed={"student": speed})
    measured = pl.read_csv("curve.csv")
    assert start([sys.executable, "-m", "stages.student", *STUDENT]) == 0
    check_same(before, losses, 1e-2 if more else 1e-4)  # bfloat16 rounds to 8 bits
    if more:
        both = [table.drop_nulls() for table in (measured, pl.read_csv("curve.csv"))]
        assert both[0].height == 3
        assert both[1]["step"].equals(both[0]["step"])
        assert both[1]["eval_loss"].to_list() == pytest.approx(both[0]["eval_loss"].to_list(), rel=1e-2)
    assert not kept()


def test_a_router_by_two_processes(project: Path) -> None:
    router_stage.main(*ROUTER)
    card, strengths = json.loads(Path("metrics.json").read_text()), load_router("out", TEACHERS).strengths([SUM, POEM])
    write_params(speed={"router": {"device_batch_size": 2}})
    assert start([*TWO, WORKER, "router", *ROUTER]) == 0
    assert np.allclose(load_router("out", TEACHERS).strengths([SUM, POEM]), strengths, atol=1e-3)
    after = json.loads(Path("metrics.json").read_text())
    assert after["regret"] == card["regret"]
    assert after["controls"]["shuffled"] == card["controls"]["shuffled"]
    assert not kept()


@pytest.mark.parametrize(("more", "last"), [({}, 5), pytest.param(BFLOAT16, 4, marks=pytest.mark.slow)])
def test_a_student_sharded_by_fsdp2(more: dict[str, Any], last: int, project: Path) -> None:
    """And killed within an epoch. The adapter's weights are gathered; what was trained before the kill is kept."""
    write_params(sft={**SFT, **more})
    student_stage.main(*STUDENT)
    losses, before = curve(), weights()
    params = YAML(typ="safe", pure=True).load(ROOT / "configs/accelerate/fsdp2.yaml")["fsdp_config"]
    sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_ON_CPU": "1"}
    sharded |= {
        name.upper(): str(value) if isinstance(value, str) else str(value).lower() for name, value in params.items()
    }
    assert start([*TWO, WORKER, "student", *STUDENT], KILL_AFTER="5", **sharded) != 0
    assert [path.name for path in kept()] == [f"checkpoint-{last}"]
    assert start([*TWO, WORKER, "student", *STUDENT], **sharded) == 0
    check_same(before, losses, 1e-2 if more else 1e-4)
    assert not kept()


@pytest.mark.parametrize(("stage", "argv", "steps"), [("student", STUDENT, 14), ("router", ROUTER, 30)])
def test_one_process_goes_on_after_kill_9(stage: str, argv: list[str], steps: int, project: Path) -> None:
    """The router is killed in its second training: the first is not done again."""
    assert start([sys.executable, WORKER, stage, *argv], KILL_AFTER=str(steps)) == -signal.SIGKILL
    assert not Path("out").exists(), "nothing is written by halves"
    assert len(kept()) == (2 if stage == "router" else 1)
    for last in kept():
        (last.parent / "checkpoint-99").mkdir()  # as a kill leaves it that cuts the writing of a checkpoint
        state = json.loads((last / "trainer_state.json").read_text())
        state["log_history"].insert(0, {"step": 0, "loss": 99.0})
        (last / "trainer_state.json").write_text(json.dumps(state))
    main = {"student": student_stage, "router": router_stage}[stage].main
    main(*argv)
    assert not kept()
    resumed, losses = weights(), curve() if stage == "student" else []
    main(*argv)
    assert all(torch.equal(weights()[name], resumed[name]) for name in resumed)
    assert losses == ([99.0, *curve()] if losses else []), "it was gone on with, and the curve is the same"


@pytest.mark.parametrize("dies", [*(pytest.param(step, marks=pytest.mark.slow) for step in (3, 7)), None])
def test_a_training_with_a_validation_share_goes_on_after_kill_9(
    dies: int | None, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stops where it would have stopped, even if it dies (None) after that: the log in the checkpoint says so."""
    worse = {"learning_rate": 0.3, "batch_size": 2, "epochs": 6, "eval_steps": 0.05, "warmup": 0.0}
    write_params(sft={**SFT, **BFLOAT16, **worse})
    student_stage.main(*STUDENT)
    whole, before = pl.read_csv("curve.csv"), weights()
    assert 7 < whole.height < 30, "it stopped early"
    shutil.rmtree("out")
    if dies:
        assert start([sys.executable, WORKER, "student", *STUDENT], KILL_AFTER=str(dies)) == -signal.SIGKILL
    else:
        with monkeypatch.context() as context:
            context.setattr("persyn.training.trainer.save_trained", Mock(side_effect=InterruptedError))
            with pytest.raises(InterruptedError):
                student_stage.main(*STUDENT)
    assert kept()
    student_stage.main(*STUDENT)
    assert pl.read_csv("curve.csv").equals(whole)
    assert all(torch.equal(weights()[name], before[name]) for name in before)
    assert not kept()


def test_packed_rows_have_the_loss_of_rows_apart(project: Path) -> None:
    """By TRL's chunked loss, packed and not, and by the definition."""
    from persyn.chat import with_chat_template
    from persyn.models import load_causal_lm, load_tokenizer
    from persyn.student import encode_dataset

    params = YAML(typ="safe", pure=True).load(Path("params.yaml"))
    sft, measured = {"learning_rate": 1e-12, "epochs": 1, "warmup": 0.0}, []
    for shape in ({"packing": True, "batch_size": 1}, {"batch_size": 11}):
        write_params(student={**params["student"], "max_length": 1024}, sft={**sft, **shape})
        student_stage.main(*STUDENT)
        measured += curve()
    base = params["student"]["model"]
    model, nats, tokens = load_causal_lm(base), 0.0, 0
    for row in encode_dataset(with_chat_template(load_tokenizer(base)), pl.read_parquet("dataset.parquet")):
        ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"][1:])
        logits = model(ids).logits[0, :-1].detach()
        nats += float(torch.nn.functional.cross_entropy(logits, labels, reduction="sum"))
        tokens += int((labels != -100).sum())
    assert measured == pytest.approx([nats / tokens] * 2, abs=1e-5)


def test_a_model_that_mixes_packed_rows_is_refused() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    from persyn.student import _check_rows_stay_apart

    model = MambaForCausalLM(MambaConfig(vocab_size=50, hidden_size=16, num_hidden_layers=2, state_size=4)).eval()
    with pytest.raises(InputError, match=r"MambaForCausalLM .* set sft.packing to false"):
        _check_rows_stay_apart(model, [{"input_ids": [1, 2, 3, 4]}, {"input_ids": [5, 6, 7]}])


SPLITS = [(8, 4, 1, 4, 2), (8, 3, 1, 2, 4), (8, 64, 1, 8, 1), (8, 4, 2, 4, 1), (12, 4, 2, 3, 2), (7, 4, 1, 1, 7)]


@pytest.mark.parametrize(("batch", "limit", "processes", "device", "accumulation"), SPLITS)
def test_a_batch_keeps_its_size(
    batch: int, limit: int, processes: int, device: int, accumulation: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(processes))
    assert split_batch(batch, limit) == (device, accumulation)
    assert device * accumulation * processes == batch


@pytest.mark.parametrize(
    ("environment", "gpus", "limit", "message"),
    [
        ({}, 0, 0, "both must be 1 or more"),
        ({"WORLD_SIZE": "3"}, 0, 4, "3 processes cannot share evenly; make it a multiple of 3"),
        ({}, 2, 4, "2 GPUs are visible"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, 0, 4, "fsdp_activation_checkpointing is true"),
    ],
)
def test_what_cannot_be_split_or_placed_is_refused(
    environment: dict[str, str], gpus: int, limit: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    with pytest.raises(InputError, match=message):
        training_arguments(Path("x"), 8, limit, 0)


def test_two_runs_of_one_training_do_not_mix() -> None:
    with checkpoints("x") as folder:
        held = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(held)
        with pytest.raises(InputError, match="another process runs the same training"), checkpoints("x"):
            pass
        assert folder.is_dir()
    assert not folder.exists()


FAKE = """
import os, signal, sys, time
print(sys.argv[1:], os.environ["PERSYN_LAUNCHED"], flush=True)
if "wait" in sys.argv:
    time.sleep(60)
sys.exit(7)
"""


@pytest.mark.parametrize("word", ["go", "wait"])
def test_a_stage_launches_itself(word: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its argv and exit status are the launched stage's, and a signal reaches it."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    write_params(speed={"student": {"launch": "a.yaml"}})
    fake = tmp_path / "accelerate" / "commands"
    fake.mkdir(parents=True)
    (fake / "launch.py").write_text(FAKE)
    for package in (fake, fake.parent):
        (package / "__init__.py").touch()
    program = [sys.executable, "-c", "from stages import run; run(print, launched='student')", word]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    missing = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert missing.returncode == 1
    assert "speed.student.launch is 'a.yaml', which does not exist; name a config file" in missing.stderr
    Path("a.yaml").touch()
    with subprocess.Popen(program, env=environment, stdout=subprocess.PIPE, text=True) as stage:
        assert stage.stdout
        assert stage.stdout.readline() == f"['--config_file', 'a.yaml', '-m', 'stages.student', '{word}'] 1\n"
        if word == "wait":
            stage.terminate()
        assert stage.wait(timeout=10) == (7 if word == "go" else 128 + signal.SIGTERM)
    launched = subprocess.run(program, env={**environment, "RANK": "0"}, capture_output=True, text=True)
    assert launched.stdout == f"{word}\n", "a worker does not launch again"
