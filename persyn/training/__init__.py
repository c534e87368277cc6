"""Training: code shared by fine-tuning the router and the student. `trainer` trains, `monitors` reports."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from persyn.settings import Settings

if TYPE_CHECKING:
    from persyn.training.monitors import Live

Monitor = Literal["dvclive", "tensorboard", "wandb"]


class TrainingSpeed(Settings):
    """How a training runs and where it is monitored; the result is the same."""

    device_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Rows in one forward pass at most; null takes the whole batch."""
    launch: str | None = None
    """A config file of accelerate, such as configs/accelerate/ddp.yaml, to run the stage in several processes."""
    report_to: Monitor | list[Monitor] | None = "dvclive"
    """Where the training can be monitored while it runs: dvclive (files below metrics/live for `dvc plots show`),
    tensorboard (event files there), wandb (Weights & Biases, with its own login), or a list of them."""


@dataclass(frozen=True)
class Session:
    """Where and how one training runs; the result is the same."""

    scratch: Path | None = None
    """A folder for the checkpoints of this training alone; None takes a temporary one."""
    device_batch_size: int | None = None
    """Rows in one forward pass at most; None takes the whole batch."""
    live: "Live | None" = None
    """Receives its curves while it runs."""
