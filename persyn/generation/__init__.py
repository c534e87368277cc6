"""Generation: a teacher, how it is asked, and the Backend protocol that every engine speaks."""

import hashlib
import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from persyn.chat import Message, assistant_message, stop_strings, user_message
from persyn.errors import InputError, check_keys

TRAINING = ("allowed", "conditional", "forbidden", "unknown")


@dataclass(frozen=True)
class Sampling:
    """How a teacher's tokens are drawn."""

    max_tokens: int
    """Response tokens at most; a longer answer is cut and marked `length`."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0

    @property
    def drawn(self) -> dict[str, Any]:
        """What decides the tokens, but for where they are cut."""
        if self.temperature == 0:
            return {"temperature": 0}
        return {"temperature": self.temperature, "top_p": self.top_p, "seed": self.seed}

    def drawn_for(self, key: str) -> dict[str, Any]:
        """`drawn` for an engine that takes a seed a request: 31 bits that depend on what is asked, not on its batch."""
        if self.temperature == 0:
            return self.drawn
        seed = int.from_bytes(hashlib.sha256(f"{self.seed}:{key}".encode()).digest()[:4]) >> 1
        return {**self.drawn, "seed": seed}


@dataclass(frozen=True)
class Teacher:
    """One entry of `teachers` in params.yaml: a model, everything that shapes its answers, and their terms.

    Raises:
        InputError: `training` is none of TRAINING.
    """

    model: str
    """`packaged:<name>`, a local folder, a hub id, or what a server calls its model."""
    sampling: Mapping[str, Any]
    """The fields of Sampling."""
    license: str
    backend: str
    """A key of BACKENDS."""
    training: str = "unknown"
    """Whether its outputs may train other models: one of TRAINING."""
    terms: str | None = None
    """The condition on that and where it stands, in one line."""
    revision: str | None = None
    """40-hex commit of a hub id."""
    system: str | None = None
    """System prompt."""
    examples: Sequence[Mapping[str, str]] = field(default_factory=list)
    """Worked examples {prompt, response} shown before each prompt: how a base model is told what to do."""
    trust_remote_code: bool = False
    family: str | None = None
    """Family of models, where the strategy family_strong is used."""
    anchors: int | None = None
    """How many parallel prompts it answers, to be placed beside the trained router by them; None answers all."""
    precomputed: Mapping[str, Any] | None = None
    """The fields of Precomputed: a data set of responses it has already given, which are used instead of asking it."""

    def __post_init__(self) -> None:
        if self.training not in TRAINING:
            raise InputError(
                f"training of teacher {self.model} is {self.training!r}; it must be one of {', '.join(TRAINING)}"
            )

    def messages(self, prompt: str) -> list[Message]:
        """What the teacher is shown for `prompt`."""
        shown = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples:
            shown += user_message(example["prompt"]) + assistant_message(example["response"])
        return shown + user_message(prompt)


@dataclass(frozen=True)
class Generation:
    """One answer, or why there is none."""

    response: str
    finish_reason: str
    """stop: ended by itself; length: cut at max_tokens; error: no answer."""
    num_prompt_tokens: int = 0
    num_response_tokens: int = 0
    error: str = ""
    """`<kind>: <reason>`, where finish_reason is error."""


class Backend(Protocol):
    """An engine that answers conversations."""

    def __init__(self, teacher: Teacher, **speed: Any) -> None:
        """`speed` holds knobs that change how fast, never what, is answered."""

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield every conversation's Generation once, by position, in batches as they are done.

        `keys` name the conversations: what is drawn for one must depend on its key and the seed, not on its batch.
        A conversation that cannot be answered, after as many attempts as make sense, is yielded as an error.

        Raises:
            InputError: before any generation, if a conversation does not fit the model's context.
        """

    def close(self) -> None:
        """Give back memory, processes and connections. It answers no more."""


BACKENDS = {
    "transformers": "persyn.generation.transformers:TransformersBackend",
    "vllm": "persyn.generation.vllm:VLLMBackend",
    "openai": "persyn.generation.openai:OpenAIBackend",
}


def load_backend(teacher: Teacher, speed: Mapping[str, Any]) -> Backend:
    """The teacher's engine, with these speed knobs; imported only where something is asked.

    Raises:
        InputError: no such backend, a knob that it does not have, or it is not installed.
    """
    module, _, name = BACKENDS[teacher.backend].partition(":")
    try:
        engine = getattr(importlib.import_module(module), name)
    except ModuleNotFoundError as error:
        raise InputError(
            f"backend {teacher.backend} needs {error.name}, which is not installed; run "
            f"`pip install 'persyn[{teacher.backend}]'` (on a machine without a GPU: persyn[{teacher.backend}-cpu])"
        ) from error
    check_keys(f"speed.{teacher.backend}", speed, engine)
    return engine(teacher, **speed)


def check_context(prompts: Sequence[Sequence[int]], max_tokens: int, context: int | None, model: str) -> None:
    """Raise InputError if one of the prompts, with `max_tokens` more, exceeds the model's context of so many tokens."""
    too_long = [len(prompt) for prompt in prompts if context and len(prompt) + max_tokens > context]
    if too_long:
        raise InputError(
            f"{len(too_long)} prompts do not fit {model}: the longest has {max(too_long)} tokens, which with "
            f"max_tokens {max_tokens} exceeds its context of {context}; lower max_tokens or set prompts.max_characters"
        )


def read_text(tokenizer: Any, ids: Sequence[int]) -> tuple[str, bool]:
    """The text of a response's token ids, cut where a stop string begins, and whether there was one."""
    text = tokenizer.decode(ids, skip_special_tokens=True)
    found = False
    for stop in stop_strings(tokenizer):
        text, separator, _ = text.partition(stop)
        found = found or bool(separator)
    return text.strip(), found
