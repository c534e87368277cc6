"""Monitors: the curves of a training while it runs. They do not change its result."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from persyn.errors import InputError


@dataclass(frozen=True)
class Live:
    """Where a training reports its curves.

    Args:
        folder: for this training alone; it may be missing.
        report_to: dvclive (files below `folder` that `dvc plots` reads), tensorboard (event files in `folder`), wandb
            (Weights & Biases, by its own login), several of them, or None.

    Raises:
        InputError: its package is not installed.
    """

    folder: str | Path
    report_to: str | Sequence[str] | None = "dvclive"

    def __post_init__(self) -> None:
        for kind in self._kinds():
            if find_spec(kind) is None:
                raise InputError(
                    f"speed.<stage>.report_to: {kind} is not installed; run `pip install {kind}`, or set it to null"
                )

    def callbacks(self) -> list[Any]:
        """Callbacks of a Trainer. Only its main process writes. A resumed training continues its curves; a new one
        starts new ones."""
        make = {"dvclive": _dvclive, "tensorboard": _tensorboard, "wandb": _wandb}
        return [make[kind](Path(self.folder)) for kind in self._kinds()]

    def _kinds(self) -> list[Any]:
        if isinstance(self.report_to, list | tuple):
            return list(self.report_to)
        return [] if self.report_to is None else [self.report_to]


def _dvclive(folder: Path) -> Any:
    """Writes DVCLive's files only: its own class Live would read git, write dvc.yaml and report to a server."""
    from dvclive.plots import Metric
    from transformers import TrainerCallback

    class Curves(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.is_world_process_zero:
                for file in (folder / "plots" / Metric.subfolder).glob("*.tsv"):
                    _cut(file, state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **others: Any) -> None:
            if state.is_world_process_zero:
                for name, value in logs.items():
                    if Metric.could_log(value):
                        metric = Metric(name, str(folder / "plots"))
                        metric.step = state.global_step
                        metric.dump(value)

    return Curves()


def _cut(file: Path, last: int) -> None:
    """Remove rows after step `last`, and one that a kill left incomplete: they are written again."""
    header, *rows = file.read_text().splitlines(keepends=True) or [""]
    kept = [row for row in rows if row.endswith("\n") and int(row.split("\t")[0]) <= last]
    if kept:
        file.write_text("".join([header, *kept]))
    else:
        file.unlink()


def _tensorboard(folder: Path) -> Any:
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    class Board(TensorBoardCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            if state.is_world_process_zero:
                if not state.global_step:
                    for file in folder.glob("events.out.tfevents.*"):
                        file.unlink()
                self.tb_writer = SummaryWriter(str(folder), purge_step=state.global_step + 1)
            super().on_train_begin(args, state, control, **others)

    return Board()


def _wandb(folder: Path) -> Any:
    """Folder and name of the run are set by W&B's own environment variables, unless the user has set them."""
    from transformers.integrations import WandbCallback

    folder.mkdir(parents=True, exist_ok=True)
    for name, value in (("WANDB_PROJECT", "persyn"), ("WANDB_NAME", str(folder)), ("WANDB_DIR", str(folder))):
        os.environ.setdefault(name, value)
    return WandbCallback()
