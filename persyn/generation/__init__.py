"""Generation: prompts + a teacher -> that teacher's responses, through the store and one Backend protocol."""

import importlib
import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import polars as pl
from tqdm import tqdm

from persyn.chat import Message, assistant_message, user_message
from persyn.models import model_identity
from persyn.schemas import RESPONSES, InputError, check_keys
from persyn.store import Store, response_key, slug

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True)
class Teacher:
    """One entry of `teachers` in params.yaml: a model and everything that shapes its answers."""

    model: str
    """`packaged:<name>`, a local folder, a hub id, or what a server calls its model."""
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
    family: str | None = None
    """Family of models, where the strategy family_strong is used."""
    anchors: int | None = None
    """How many parallel prompts it answers, to be placed beside the trained router by them; None answers all."""

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


BACKENDS = {
    "transformers": "persyn.generation.transformers:TransformersBackend",
    "openai": "persyn.generation.openai:OpenAIBackend",
}


def generate_responses(
    prompts: pl.DataFrame,
    name: str,
    teacher: Teacher,
    folder: Path,
    speed: Mapping[str, Any],
    *,
    max_error_share: float = 0.0,
) -> pl.DataFrame:
    """Answer every prompt by one teacher; ask the backend only for what the store does not hold.

    An answer that ended by itself serves every max_tokens it fits; one that was cut serves only the max_tokens it was
    cut at, so a larger one asks again for just those. An error is stored as a record of what happened, and asked again.

    Args:
        prompts: columns prompt_id and prompt.
        name: the teacher's key in params.yaml.
        folder: the response store.
        speed: the backend's speed knobs.
        max_error_share: share of the prompts that may remain without an answer.

    Returns:
        RESPONSES, one row a prompt.

    Raises:
        InputError: more than `max_error_share` failed. All answers are in the store by then.
    """
    check_keys(f"teachers.{name}.sampling", teacher.sampling, Sampling)
    if teacher.backend not in BACKENDS:
        raise InputError(f"teachers.{name}.backend is {teacher.backend!r}; it must be one of {', '.join(BACKENDS)}")
    sampling = Sampling(**teacher.sampling)
    identity = model_identity(teacher.model, teacher.revision)
    conversations = [teacher.messages(prompt) for prompt in prompts["prompt"].to_list()]
    keys = [response_key(model=identity, messages=messages, **sampling.drawn) for messages in conversations]
    store = Store(folder / slug(identity))
    failed: dict[int, dict[str, Any]] = {}
    if _unanswered(store, keys, sampling):
        with store.exclusive():
            asked = _unanswered(store, keys, sampling)
            store.check_space(2 * len(asked) * (1000 + 8 * sampling.max_tokens))
            if asked:
                failed = _ask(name, _backend(teacher, speed), sampling, conversations, keys, store, asked)
    rows = [stored_answer(store, key, sampling) or failed[position] for position, key in enumerate(keys)]
    _check_errors(name, prompts, rows, max_error_share)
    fields = dict(list(RESPONSES.items())[2:])
    table = pl.DataFrame([{field: row[field] for field in fields} for row in rows], schema=fields)
    return prompts.select("prompt_id", teacher=pl.lit(name)).hstack(table).select(RESPONSES.names())


def stored_answer(store: Store, key: str, sampling: Sampling) -> dict[str, Any] | None:
    """The row that answers `key` under `sampling`, if there is one."""
    whole = store.get(key)
    fits = whole is not None and whole["num_response_tokens"] <= sampling.max_tokens
    return whole if fits else store.get(f"{key}:{sampling.max_tokens}")


def _stored_under(store: Store, key: str, generation: Generation, sampling: Sampling) -> str:
    """The key of an answer's row: `key` itself serves any max_tokens the answer fits, `key:<max_tokens>` that one."""
    if generation.finish_reason == "error":
        return f"{key}:error"
    whole = generation.finish_reason == "stop" and generation.num_response_tokens <= sampling.max_tokens
    return key if whole and not store.get(key) else f"{key}:{sampling.max_tokens}"


def _unanswered(store: Store, keys: Sequence[str], sampling: Sampling) -> list[int]:
    return [position for position, key in enumerate(keys) if not stored_answer(store, key, sampling)]


def _ask(
    name: str,
    backend: Backend,
    sampling: Sampling,
    conversations: Sequence[Sequence[Message]],
    keys: Sequence[str],
    store: Store,
    asked: Sequence[int],
) -> dict[int, dict[str, Any]]:
    """Have the conversations at `asked` answered and stored. Returns the rows that failed, by position."""
    failed, done = {}, 0
    chosen = [conversations[position] for position in asked], [keys[position] for position in asked]
    bar = tqdm(total=len(keys), initial=len(keys) - len(asked), desc=f"responses of {name}", unit="prompt")
    try:
        for batch in backend.generate(*chosen, sampling):
            rows = {}
            for index, generation in batch.items():
                row = asdict(generation) | {"created": datetime.now(UTC).isoformat(timespec="seconds")}
                row["response"] = generation.response.encode("utf-8", "replace").decode()  # a cut surrogate pair
                rows[_stored_under(store, keys[asked[index]], generation, sampling)] = row
                if generation.finish_reason == "error":
                    failed[asked[index]] = row
            store.put(rows)
            done += len(batch)
            bar.update(len(batch))
    except KeyboardInterrupt:
        logger.warning("%s: %d of %d prompts are in the store", name, len(keys) - len(asked) + done, len(keys))
        raise
    finally:
        bar.close()
    return failed


def _check_errors(name: str, prompts: pl.DataFrame, rows: list[dict[str, Any]], max_error_share: float) -> None:
    reasons = {
        identity: row["error"]
        for identity, row in zip(prompts["prompt_id"], rows, strict=True)
        if row["finish_reason"] == "error"
    }
    finished = Counter(row["finish_reason"] for row in rows)
    logger.info("%s: %d prompts = %s", name, len(rows), " + ".join(f"{n} {why}" for why, n in sorted(finished.items())))
    if not reasons:
        return
    kinds = dict(Counter(reason.partition(":")[0] for reason in reasons.values()))
    first, reason = next(iter(reasons.items()))
    message = f"{len(reasons)} of {len(rows)} prompts of {name} have no answer ({kinds}); first {first}: {reason}"
    if len(reasons) > max_error_share * len(rows):
        raise InputError(
            f"{message}. That is more than responses.max_error_share {max_error_share}; run again to ask only those "
            f"again, or raise it"
        )
    logger.warning("%s", message)


def _backend(teacher: Teacher, speed: Mapping[str, Any]) -> Backend:
    """The teacher's engine; imported only where something is asked."""
    module, _, name = BACKENDS[teacher.backend].partition(":")
    engine = getattr(importlib.import_module(module), name)
    check_keys(f"speed.{teacher.backend}", speed, engine)
    return engine(teacher, **speed)
