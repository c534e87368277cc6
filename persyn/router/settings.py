"""The section `router` of params.yaml."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from persyn.errors import InputError


@dataclass(frozen=True)
class Settings:
    """What router is trained, how, and on what it is measured.

    Raises:
        InputError: a value is not legal.
    """

    model: str
    """Its backbone: `packaged:<name>`, a local folder or a hub id."""
    revision: str | None = None
    """40-hex commit of a hub id."""
    light: Mapping[str, Any] | None = None
    """The arguments of fit_light_router: a frozen encoder and one linear layer. None fine-tunes the backbone; learning
    rate, epochs, batch size, LoRA and validation concern only that."""
    loss: str = "pairwise"
    """pairwise (Bradley-Terry, the paper's) or listwise (Plackett-Luce on the ranking by reward)."""
    by_margin: bool = False
    """Whether a pair weighs as much as its margin."""
    learning_rate: float = 4e-6
    epochs: float = 1
    batch_size: int = 16
    """Prompts an update; all pairs of a prompt come with it."""
    max_length: int = 512
    """Tokens of a prompt that the router reads, from its start."""
    lora: Mapping[str, Any] | None = None
    """The arguments of student.lora_config, or None to train every weight."""
    validation: float = 0.0
    """Share of the training prompts on whose regret training stops early; 0 trains all epochs."""
    patience: int = 3
    """Epochs that the regret may go without falling."""
    holdout: float = 0.2
    """Share of the parallel prompts that only measure the router: the same ones whatever `num_train` is."""
    num_train: int | None = None
    """How many of the others it is trained on; None takes all."""
    neighbours: int = 5
    """Prompts that the kNN control asks."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.loss not in ("pairwise", "listwise"):
            raise InputError(f"router.loss is {self.loss!r}; it must be pairwise or listwise")
        if self.loss == "listwise" and self.by_margin:
            raise InputError("router.by_margin weighs pairs, loss: listwise has none; leave one of them out")
        if self.light is not None and (self.lora is not None or self.validation):
            raise InputError("router.light is fitted in closed form; leave router.lora and router.validation out")
