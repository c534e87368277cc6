"""Requests: the conversations that a teacher gets, with the keys of their responses in the store."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from persyn.generation import Backend, Generation, Sampling, Teacher
from persyn.generation.batch_notes import FOLDER, open_notes
from persyn.generation.batches import Batches, Job
from persyn.generation.budget import Budget
from persyn.generation.precomputed import precomputed_suffix
from persyn.messages import Message
from persyn.models import adapter_folder, model_identity
from persyn.store import Store, paid_tokens, response_key, slug
from persyn.thinking import split_thought

RARE = {"final", "estimated", "said", "lost_prompt_tokens", "lost_response_tokens"}
"""Fields of a Generation that a row has only where they say something."""


@dataclass(frozen=True)
class Request:
    """A conversation that needs a response, and a key made of everything that decides the response."""

    key: str
    conversation: list[Message]
    precomputed: str = ""
    """The key of the precomputed response, if the teacher has a data set of them."""


def teacher_identity(teacher: Teacher) -> str:
    """model_identity, and what else makes the teacher another model, where it is set: its adapter (the sha256 of the
    folder's files), how it is quantised, its host.

    Raises:
        InputError: the model or the adapter is missing.
    """
    identity = model_identity(teacher.model, teacher.revision)
    if teacher.adapter:
        identity += f"+adapter:{model_identity(str(adapter_folder(teacher.adapter)), None)}"
    for name in ("quantization", "host"):
        if value := getattr(teacher, name):
            identity += f"+{name}:{value}"
    return identity


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
    identity = teacher_identity(teacher)
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
    return Store(folder / slug(teacher_identity(teacher)))


def notes_folder(folder: Path, teacher: Teacher) -> Path:
    """The folder of the teacher's notes of batches, which is there once it was asked in batches."""
    return folder / slug(teacher_identity(teacher)) / FOLDER


def stored_response(store: Store, request: Request, sampling: Sampling) -> dict[str, Any] | None:
    """The stored row for `request` under `sampling`, or None. Generated responses win over precomputed ones."""
    for key in filter(None, (request.key, request.precomputed)):
        whole = store.get(key)
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
    batches = getattr(backend, "batches", None)
    if batches and (batches.makes or open_notes(store.folder / FOLDER)):
        yield from _from_batches(requests, batches, sampling, store, budget or Budget())
        requests = [] if batches.makes else still_open(requests, store, sampling)
    for wave in (budget or Budget()).waves(store.folder.parent, requests, sampling.max_tokens):
        conversations, keys = [request.conversation for request in wave], [request.key for request in wave]
        for batch in backend.generate(conversations, keys, sampling):
            rows = {keys[index]: _row(generation) for index, generation in batch.items()}
            store.put({_stored_under(store, key, row, sampling): row for key, row in rows.items()})
            yield rows


def _from_batches(
    requests: Sequence[Request], batches: Batches, sampling: Sampling, store: Store, budget: Budget
) -> Iterator[dict[str, dict[str, Any]]]:
    """As generate_rows, through batches. Results of requests that are no longer made are stored, and not yielded."""
    asked = {request.key: request for request in requests}

    def unanswered() -> list[str]:
        store.refresh()
        return [request.key for request in still_open(list(asked.values()), store, sampling)]

    def wave(keys: list[str]) -> list[str]:
        waves = budget.waves(store.folder.parent, [asked[key] for key in keys], sampling.max_tokens)
        return [request.key for request in next(waves)]

    conversations = {key: request.conversation for key, request in asked.items()}
    job = Job(store.folder, conversations, sampling, unanswered, wave, unlimited=budget.max_tokens is None)
    for found in batches.generate(job):
        limit = sampling.changed(max_tokens=found.max_tokens)
        rows = {key: _row(generation) | {"batch": found.batch} for key, generation in found.generations.items()}
        new = {key: row for key, row in rows.items() if not _has(store, key, row, found.max_tokens)}
        store.put({_stored_under(store, key, row, limit): row for key, row in new.items()})
        yield {
            key: row
            for key, row in rows.items()
            if key in asked and (row["finish_reason"] == "error" or stored_response(store, asked[key], sampling))
        }


def _has(store: Store, key: str, row: Mapping[str, Any], max_tokens: int) -> bool:
    """Whether a run that was killed before it noted so has stored this row of a batch already."""
    kept = [store.get(key), store.get(f"{key}:{max_tokens}"), *failures(store, key)]
    return any(one is not None and one.get("batch") == row["batch"] for one in kept)


def _row(generation: Generation) -> dict[str, Any]:
    row = {name: _whole(value) for name, value in vars(generation).items() if value or name not in RARE}
    return row | {"created": datetime.now(UTC).isoformat(timespec="seconds")}


def _whole(value: Any) -> Any:
    """A text without halves of a cut surrogate pair; other values as they are."""
    return value.encode("utf-8", "replace").decode() if isinstance(value, str) else value


def _stored_under(store: Store, key: str, row: Mapping[str, Any], sampling: Sampling) -> str:
    """The key of a response's row: `key` serves any max_tokens that the response fits, `key:<max_tokens>` only this.
    An error that asking again cannot change holds for this max_tokens; any other is a record that serves nobody.
    """
    if row["finish_reason"] == "error" and not row.get("final"):
        # The first row of a key would hide a later one, which was paid for too.
        return error_key(key, len(failures(store, key)) + 1 if sum(paid_tokens(row)) else 1)
    whole = row["finish_reason"] == "stop" and row["num_response_tokens"] <= sampling.max_tokens
    return key if whole and not store.get(key) else f"{key}:{sampling.max_tokens}"


def error_key(key: str, number: int) -> str:
    """Where the store has the record of a request's `number`-th failure."""
    return f"{key}:error" if number == 1 else f"{key}:error:{number}"


def failures(store: Store, key: str) -> list[dict[str, Any]]:
    """The stored records of a request's failures."""
    rows = (store.get(error_key(key, number)) for number in itertools.count(1))
    return [row for row in itertools.takewhile(lambda row: row is not None, rows) if row is not None]


def lost_tokens(store: Store, request: Request, row: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and response tokens that were paid for a request and are in no response: of attempts before the one that
    became `row`, and of all its failures of earlier runs.
    """
    asked, said = row.get("lost_prompt_tokens", 0), row.get("lost_response_tokens", 0)
    for failure in failures(store, request.key):
        more = paid_tokens(failure)
        asked, said = asked + more[0], said + more[1]
    return asked, said
