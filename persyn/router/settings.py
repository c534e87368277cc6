"""The section `router` of params.yaml."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from persyn.models import LoraSettings
from persyn.settings import Commit, Misfit, Seed, Settings


class LightSettings(Settings):
    """A frozen encoder and one linear layer."""

    layers: Annotated[int, Field(ge=0)] = 0
    """Number of layers of the encoder to use; 0 is its word embeddings."""
    l2: Annotated[float, Field(ge=0)] = 1e-3
    """L2 penalty on the coefficients of the standardised features."""


class RouterSettings(Settings):
    """The section `router`: the model of the router, its training and its measurement."""

    model: Annotated[str, Field(min_length=1)]
    """Its backbone: `packaged:<name>`, a local folder or a hub id."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    light: LightSettings | None = None
    """Fits a frozen encoder and one linear layer; null fine-tunes the backbone. Learning rate, epochs, batch size, LoRA
    and validation apply only to fine-tuning."""
    loss: Literal["pairwise", "listwise"] = "pairwise"
    """pairwise (Bradley-Terry, the paper's) or listwise (Plackett-Luce on the ranking by reward)."""
    by_margin: bool = False
    """Whether to weigh a pair by its margin."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-6
    """Learning rate, constant over the training."""
    epochs: Annotated[float, Field(gt=0)] = 1
    """Passes over the training prompts."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts per update, each with all of its pairs."""
    max_length: Annotated[int, Field(ge=1)] = 512
    """The router reads at most this many tokens of a prompt, from its start."""
    lora: LoraSettings | None = None
    """Trains a LoRA adapter; null trains every weight."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training prompts kept for early stopping by their regret; 0 trains all epochs."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Training stops after this many epochs in which the regret has not fallen."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the parallel prompts that only measure the router; they do not depend on `num_train`."""
    num_train: Annotated[int, Field(ge=1)] | None = None
    """How many of the other parallel prompts train it; null takes all."""
    neighbours: Annotated[int, Field(ge=1)] = 5
    """Number of neighbours of the kNN control."""
    seed: Seed = 0
    """Seed of the head's first weights and of the order of prompts."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.loss == "listwise" and self.by_margin:
            raise Misfit("by_margin", "is true and weighs pairs, but the listwise loss has none: leave one out")
        if self.light is not None and (self.lora is not None or self.validation):
            raise Misfit("light", "is given, which is fitted in closed form; leave lora and validation out")
        return self
