"""Requests: the conversations that a teacher gets, with the keys of their responses in the store."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from persyn.generation import Backend, Generation, Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.precomputed import precomputed_suffix
from persyn.messages import Message
from persyn.models import model_identity
from persyn.store import Store, response_key, slug
from persyn.thinking import split_thought


@dataclass(frozen=True)
class Request:
    """A conversation that needs a response, and a key made of everything that decides the response."""

    key: str
    conversation: list[Message]
    precomputed: str = ""
    """The key of the precomputed response, if the teacher has a data set of them."""


def each_sample(prompts: pl.DataFrame, teacher: Teacher) -> pl.DataFrame:
    """`prompts` as often as the teacher is asked each, with the number of the `sample`; as they are if that is once."""
    if teacher.samples == 1:
        return prompts
    return prompts.join(pl.DataFrame({"sample": range(teacher.samples)}), how="cross", maintain_order="left_right")


def prepare_requests(prompts: pl.DataFrame, teacher: Teacher) -> list[Request]:
    """A Request for each prompt, in the order of `prompts`, which may have a column `sample`. The first sample has the
    key that a single one has.

    Raises:
        InputError: the teacher's model or its precomputed responses are missing.
    """
    identity = model_identity(teacher.model, teacher.revision)
    conversations = [teacher.messages(prompt) for prompt in prompts["prompt"].to_list()]
    asked = {"model": identity, **teacher.sampling.drawn, **teacher.shaped}
    numbers = prompts["sample"].to_list() if "sample" in prompts.columns else [0] * prompts.height
    later = [{"sample": number} if number else {} for number in numbers]
    keys = [
        response_key(messages=messages, **asked, **sample)
        for messages, sample in zip(conversations, later, strict=True)
    ]
    suffix = precomputed_suffix(teacher)
    return [
        Request(key, messages, f"{key}:{suffix}" if suffix else "")
        for key, messages in zip(keys, conversations, strict=True)
    ]


def open_store(folder: Path, teacher: Teacher) -> Store:
    """The teacher's part of the response store at `folder`."""
    return Store(folder / slug(model_identity(teacher.model, teacher.revision)))


def stored_response(store: Store, request: Request, sampling: Sampling) -> dict[str, Any] | None:
    """The stored row for `request` under `sampling`, or None. Generated responses win over precomputed ones."""
    for whole in (store.get(request.key), store.get(request.precomputed)):
        if whole is not None and whole["num_response_tokens"] <= sampling.max_tokens:
            return whole
    return store.get(f"{request.key}:{sampling.max_tokens}")


def read_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A stored row as the tables have it. Rows of earlier versions hold the thought inside `response`: it is split here
    and the row in the store stays as it is, so that nothing that was paid for is lost.
    """
    if "reasoning" in row or row["finish_reason"] == "error":
        return {"reasoning": None, **row}
    thought = split_thought(row["response"], opened=None)
    parts = {"response": thought.answer, "reasoning": thought.reasoning}
    return {**row, **parts} if thought.closed else {**row, **parts, "finish_reason": "length"}


def still_open(requests: Sequence[Request], store: Store, sampling: Sampling) -> list[Request]:
    """The requests for which the store has no response."""
    return [request for request in requests if not stored_response(store, request, sampling)]


def generate_rows(
    requests: Sequence[Request], backend: Backend, sampling: Sampling, store: Store, budget: Budget | None = None
) -> Iterator[dict[str, dict[str, Any]]]:
    """Generate responses. Yields stored rows, by the key of their request.

    Raises:
        InputError: the next response could exceed the budget.
    """
    for wave in (budget or Budget()).waves(store.folder.parent, requests, sampling.max_tokens):
        conversations, keys = [request.conversation for request in wave], [request.key for request in wave]
        for batch in backend.generate(conversations, keys, sampling):
            rows = {keys[index]: _row(generation) for index, generation in batch.items()}
            store.put({_stored_under(store, key, row, sampling): row for key, row in rows.items()})
            yield rows


def _row(generation: Generation) -> dict[str, Any]:
    row = {name: _whole(value) for name, value in asdict(generation).items()}
    return row | {"created": datetime.now(UTC).isoformat(timespec="seconds")}


def _whole(value: Any) -> Any:
    """A text without halves of a cut surrogate pair; other values as they are."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _stored_under(store: Store, key: str, row: Mapping[str, Any], sampling: Sampling) -> str:
    """The key of a response's row: `key` serves any max_tokens that the response fits, `key:<max_tokens>` only this."""
    if row["finish_reason"] == "error":
        return f"{key}:error"
    whole = row["finish_reason"] == "stop" and row["num_response_tokens"] <= sampling.max_tokens
    return key if whole and not store.get(key) else f"{key}:{sampling.max_tokens}"
