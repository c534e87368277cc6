"""Generation: prompts + a teacher -> that teacher's responses, through the store and one Backend protocol."""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import polars as pl
from tqdm import tqdm

from persyn.chat import Message, assistant_message, user_message
from persyn.schemas import RESPONSES, InputError, check_keys
from persyn.store import Store, response_key


@dataclass(frozen=True)
class Sampling:
    """How a teacher's tokens are drawn."""

    max_tokens: int
    """Response tokens at most; a longer answer is cut and marked `length`."""
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    seed: int = 0


@dataclass(frozen=True)
class Teacher:
    """One entry of `teachers` in params.yaml: a model and everything that shapes its answers."""

    model: str
    """`packaged:<name>`, a local folder, or a hub id."""
    sampling: Mapping[str, Any]
    """The fields of Sampling."""
    license: str
    backend: str
    """A key of BACKENDS."""
    revision: str | None = None
    """40-hex commit of a hub id."""
    system: str | None = None
    """System prompt."""
    examples: Sequence[Mapping[str, str]] = field(default_factory=list)
    """Worked examples {prompt, response} shown before each prompt: how a base model is told what to do."""
    trust_remote_code: bool = False

    def messages(self, prompt: str) -> list[Message]:
        """What the teacher is shown for `prompt`."""
        shown = [{"role": "system", "content": self.system}] if self.system else []
        for example in self.examples:
            shown += user_message(example["prompt"]) + assistant_message(example["response"])
        return shown + user_message(prompt)


@dataclass(frozen=True)
class Generation:
    """One answer."""

    response: str
    finish_reason: str
    """stop: ended by itself; length: cut at max_tokens; error: no answer."""
    num_prompt_tokens: int
    num_response_tokens: int


class Backend(Protocol):
    """An engine that answers conversations."""

    def __init__(self, teacher: Teacher, **speed: Any) -> None:
        """`speed` holds knobs that change how fast, never what, is answered."""

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield every conversation's Generation once, by position, in batches as they are done.

        `keys` name the conversations: what is drawn for one must depend on its key and the seed, not on its batch.

        Raises:
            InputError: before any generation, if a conversation does not fit the model's context.
        """


BACKENDS = {"transformers": "persyn.generation.transformers:TransformersBackend"}


def generate_responses(
    prompts: pl.DataFrame, name: str, teacher: Teacher, store: Store, speed: Mapping[str, Any]
) -> pl.DataFrame:
    """Answer every prompt by one teacher; ask the backend only for what the store does not hold.

    Args:
        prompts: columns prompt_id and prompt.
        name: the teacher's key in params.yaml.
        speed: the backend's speed knobs.

    Returns:
        RESPONSES, one row a prompt.
    """
    check_keys(f"teachers.{name}.sampling", teacher.sampling, Sampling)
    sampling = Sampling(**teacher.sampling)
    conversations = [teacher.messages(prompt) for prompt in prompts["prompt"].to_list()]
    keys = [
        response_key(model=teacher.model, revision=teacher.revision, messages=messages, sampling=asdict(sampling))
        for messages in conversations
    ]
    missing = [position for position, key in enumerate(keys) if store.get(key) is None]
    with tqdm(total=len(keys), initial=len(keys) - len(missing), desc=f"responses of {name}", unit="prompt") as bar:
        if missing:
            engine = _backend(teacher)
            check_keys(f"speed.{teacher.backend}", speed, engine)
            backend = engine(teacher, **speed)
            asked = [conversations[position] for position in missing], [keys[position] for position in missing]
            for answers in backend.generate(*asked, sampling):
                store.put({keys[missing[position]]: asdict(answer) for position, answer in answers.items()})
                bar.update(len(answers))
    rows = pl.DataFrame([store.get(key) for key in keys], schema=dict(list(RESPONSES.items())[2:]))
    return prompts.select("prompt_id", teacher=pl.lit(name)).hstack(rows).select(RESPONSES.names())


def _backend(teacher: Teacher) -> type[Backend]:
    if teacher.backend not in BACKENDS:
        raise InputError(f"backend {teacher.backend!r} is not one of {', '.join(BACKENDS)}")
    module, _, name = BACKENDS[teacher.backend].partition(":")
    return getattr(importlib.import_module(module), name)
