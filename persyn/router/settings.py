"""The section `router` of params.yaml."""

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from persyn.settings import Commit, Misfit, Seed, Settings
from persyn.training.lora import LoraSettings

Method = Literal["blend", "regression", "knn", "source", "linear", "finetuned"]
BRADLEY_TERRY: tuple[Method, ...] = ("linear", "finetuned")
"""The methods that learn from pairs; the others predict rewards."""


class RouterSettings(Settings):
    """The section `router`: the model of the router, its training and its measurement."""

    renamed: ClassVar = {"light": "method (`method: linear`, with layers and l2 beside it)"}

    model: Annotated[str, Field(min_length=1)]
    """Its backbone: `packaged:<name>`, a local folder or a hub id."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    method: Method = "regression"
    """How it learns which teacher to choose. finetuned is the paper's: the backbone with a head of one Bradley-Terry
    strength a teacher, trained on the pairs. linear: a Bradley-Terry layer on the frozen backbone's states. regression
    (ridge), knn (nearest prompts) and source (means of the prompt's source) predict every teacher's reward; blend is
    the source's means plus the average of regression and knn on what these leave."""
    beside: list[Method] = Field(default_factory=list)
    """Other methods to train on the same prompts and to measure beside it. A strategy can route by them:
    `{rule: persyn, router: knn}`."""
    shrink: bool = True
    """Whether what the prompt adds to the teachers' means is shrunk, and routing falls back to the one best teacher
    where cross-validation inside the training prompts supports no gain; false trusts the method, as the paper does."""
    folds: Annotated[int, Field(ge=2)] = 10
    """Parts of that cross-validation; the method is trained once more for each."""
    layers: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)] | None = None
    """Layers of the frozen backbone that all methods but finetuned read; null is a quarter of the way up and the last.
    0 is its word embeddings, which route 50,000 prompts in a minute without a GPU, but tell less."""
    components: Annotated[int, Field(ge=1)] = 20
    """Principal components of these layers' states that regression and knn look at."""
    neighbours: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] = Field(
        default_factory=lambda: [30, 60, 120]
    )
    """Numbers of nearest prompts whose means knn averages, each at most a quarter of the training prompts."""
    penalties: Annotated[list[Annotated[float, Field(gt=0)]], Field(min_length=1)] = Field(
        default_factory=lambda: [3.0, 10.0, 30.0]
    )
    """L2 penalties of the ridge regressions that regression averages. A prompt's features have length 1."""
    l2: Annotated[float, Field(ge=0)] = 0.1
    """L2 penalty on the coefficients of method linear, on standardised features. Among real teachers 0.001 loses to one
    teacher for all, 0.1 does not."""
    loss: Literal["pairwise", "listwise"] = "pairwise"
    """Of methods linear and finetuned: pairwise (Bradley-Terry, the paper's) or listwise (Plackett-Luce on the ranking
    by reward)."""
    by_margin: bool = False
    """Whether to weigh a pair by its margin."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-6
    """Learning rate of method finetuned, constant over the training."""
    epochs: Annotated[float, Field(gt=0)] = 1
    """Passes over the training prompts (finetuned)."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Prompts per update, each with all of its pairs (finetuned)."""
    max_length: Annotated[int, Field(ge=1)] = 512
    """The router reads at most this many tokens of a prompt, from its start."""
    lora: LoraSettings | None = None
    """Trains a LoRA adapter; null trains every weight (finetuned)."""
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the training prompts kept for early stopping by their regret; 0 trains all epochs (finetuned)."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Training stops after this many epochs in which the regret has not fallen."""
    holdout: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the parallel prompts that only measure the router; they do not depend on `num_train`."""
    num_train: Annotated[int, Field(ge=1)] | None = None
    """How many of the other parallel prompts train it; null takes all."""
    seed: Seed = 0
    """Seed of the head's first weights, of the order of prompts and of the folds."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if self.loss == "listwise" and self.by_margin:
            raise Misfit("by_margin", "is true and weighs pairs, but the listwise loss has none: leave one out")
        if "finetuned" not in (self.method, *self.beside) and (self.lora is not None or self.validation):
            raise Misfit("method", f"is {self.method}, which trains no backbone; leave lora and validation out")
        if self.method in self.beside:
            raise Misfit("beside", f"names {self.method}, which is the method itself; leave it out")
        return self

    def for_method(self, method: Method) -> Self:
        """The same settings for another method. What only fine-tuning reads is kept for it alone."""
        only: dict[str, Any] = {} if method == "finetuned" else {"lora": None, "validation": 0.0}
        return self.changed(method=method, beside=[], **only)
