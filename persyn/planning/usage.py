"""Usage: forecasts of what a teacher's responses will take, from its responses in the store."""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl

from persyn.cost import Prices
from persyn.generation import Teacher
from persyn.generation.budget import MESSAGE_TOKENS
from persyn.generation.requests import (
    each_sample,
    notes_folder,
    open_store,
    prepare_requests,
    stored_response,
    teacher_identity,
)
from persyn.messages import Message, as_messages
from persyn.planning.intervals import (
    Interval,
    Use,
    count_parameters,
    gpu_hours,
    predicted_sum,
    response_tokens,
    size_in_name,
    weight_files,
)
from persyn.store import Rows, slug

BYTES_A_TOKEN = (2.0, 6.0)  # of a prompt: digits and markup at one end, plain English at the other
TYPICAL_PROMPT = (60.0, 240.0)  # tokens, if prompts are unknown: half and twice the 120 of Magpie's instructions
LOAD_HOURS = (0.5 / 60, 5 / 60)
GPU_GIGABYTES = 72  # of an H100's 80, for weights of 2 bytes a parameter
RECORD_BYTES = 120  # of a stored row, beside its json


@dataclass(frozen=True)
class Forecast:
    """A teacher, and what is known about its responses."""

    name: str
    teacher: Teacher
    prices: Prices
    shown: np.ndarray
    """(n,), bytes of the conversations that it was shown, for the responses seen."""
    asked: np.ndarray
    """(n,), their prompt tokens."""
    lengths: np.ndarray
    """(n,), their response tokens."""
    row_bytes: float | None = None
    """Mean bytes of a stored response; None if there is none."""

    @property
    def runs_here(self) -> bool:
        return self.teacher.backend != "openai"

    @cached_property
    def size(self) -> float | None:
        """Billions of parameters: from prices.sizes, else from its weights, else from its name."""
        given = self.prices.sizes.get(self.name)
        return given or count_parameters(self.teacher.model) or size_in_name(self.teacher.model)

    @property
    def weights(self) -> float | None:
        """Bytes of its weights: of its files if they are here, else 2 per parameter."""
        files = weight_files(self.teacher.model)
        if files or not self.runs_here:
            return float(sum(file.stat().st_size for file in files))
        return None if self.size is None else 2e9 * self.size

    @property
    def exceeds(self) -> bool:
        """Whether a response took more tokens than its max_tokens."""
        return bool((self.lengths > self.teacher.sampling.max_tokens).any())

    @property
    def load(self) -> Interval:
        """GPU-hours of loading it once: half a minute to five minutes, on as many GPUs as its weights need."""
        if not self.runs_here or self.size is None:
            return 0.0, 0.0
        gpus = math.ceil(2 * self.size / GPU_GIGABYTES)
        return gpus * LOAD_HOURS[0], gpus * LOAD_HOURS[1]

    def use(self, sizes: np.ndarray, loads: int = 1) -> Use:
        """What responses (all samples) to prompts of these bytes (NaN: unknown) take, in `loads` stages."""
        sizes = np.repeat(sizes, self.teacher.samples)
        count = len(sizes)
        if not count:
            return Use()
        asked, said = self._prompt_tokens(sizes), response_tokens(self.lengths, count, self.teacher.sampling.max_tokens)
        hours: Interval | None = None if self.runs_here else (0, 0)
        if self.runs_here and self.size is not None:
            busy = gpu_hours(said, self.size)
            hours = busy[0] + loads * self.load[0], busy[1] + loads * self.load[1]
        disk = 1000.0 * count, 1000.0 * count + 8 * said[1]  # as the store's own check of free space
        if self.row_bytes:
            disk = count * self.row_bytes, count * self.row_bytes
        return Use((count, count), asked, said, hours, disk, self._money(asked, said, hours))

    def _prompt_tokens(self, sizes: np.ndarray) -> Interval:
        messages, count = self.teacher.messages(""), len(sizes)
        own = _shown(messages)  # the system prompt and examples
        if np.isnan(sizes).any():
            low, high = (
                count * (tokens + own / each) for tokens, each in zip(TYPICAL_PROMPT, BYTES_A_TOKEN[::-1], strict=True)
            )
        else:
            shown = sizes + own
            template = MESSAGE_TOKENS * len(messages) * count
            low, high = float(shown.sum()) / BYTES_A_TOKEN[1], float(shown.sum()) / BYTES_A_TOKEN[0] + template
            if len(self.shown) > 2:  # about a + b * bytes; prompts of one kind, routed together, err alike
                known, new = (np.column_stack([np.ones(len(part)), part]) for part in (self.shown, shown))
                closer = predicted_sum(known, self.asked, new, alike=True)
                low, high = max(low, closer[0]), min(high, closer[1])
        return max(low, float(count)), max(high, float(count))

    def _money(self, asked: Interval, said: Interval, hours: Interval | None) -> Interval | None:
        ends = [self.prices.money(self.name, *tokens) for tokens in zip(asked, said, strict=True)]
        if ends[0] is not None and ends[1] is not None:
            return ends[0], ends[1]
        rate = self.prices.gpu_hour
        return (hours[0] * rate, hours[1] * rate) if rate is not None and hours and self.runs_here else None


def look_into_store(
    prompts: pl.DataFrame, teachers: Mapping[str, Teacher], folder: Path, prices: Prices
) -> tuple[dict[str, Forecast], pl.DataFrame]:
    """A Forecast for each teacher, from its own responses to these prompts; and the stored pairs (of which no sample is
    missing): prompt_id, teacher.

    Args:
        prompts: PROMPTS. If they are null, no stored pair is known.
        folder: the response store.
    """
    forecasts, schema = {}, {"prompt_id": pl.String, "teacher": pl.String}
    stored = [pl.DataFrame(schema=schema)]
    for name, teacher in teachers.items():
        found = [] if prompts["prompt"].null_count() else _find_responses(prompts, teacher, folder)
        told = [numbers for _, numbers in found if numbers[1]]  # without prompts that are never answered
        numbers = np.array(told, float).reshape(-1, 4)
        row_bytes = float(numbers[:, 3].mean()) if told else None
        shown, asked, lengths = numbers[:, 0], numbers[:, 1], numbers[:, 2]
        forecasts[name] = Forecast(name, teacher, prices, shown, asked, lengths, row_bytes)
        whole = [one for one, count in Counter(one for one, _ in found).items() if count >= teacher.samples]
        stored.append(pl.DataFrame({"prompt_id": whole, "teacher": [name] * len(whole)}, schema=schema))
    return forecasts, pl.concat(stored)


def batched_pairs(prompts: pl.DataFrame, teachers: Mapping[str, Teacher], folder: Path) -> pl.DataFrame:
    """prompt_id and teacher of the stored responses that came from a batch.

    Args:
        prompts: PROMPTS.
        folder: the response store.
    """
    pairs = list[tuple[str, str]]()
    for name, teacher in teachers.items():
        store = open_store(folder, teacher) if notes_folder(folder, teacher).is_dir() else None
        if store is not None:  # no other teacher was ever asked in batches
            for identity, request in zip(prompts["prompt_id"], prepare_requests(prompts, teacher), strict=True):
                if (stored_response(store, request, teacher.sampling) or {}).get("batch"):
                    pairs.append((identity, name))
    return pl.DataFrame(pairs, schema={"prompt_id": pl.String, "teacher": pl.String}, orient="row")


def _find_responses(
    prompts: pl.DataFrame, teacher: Teacher, folder: Path
) -> list[tuple[str, tuple[int, int, int, int]]]:
    """prompt_id and (bytes shown, prompt tokens, response tokens, bytes stored) of every stored response. Parallel
    prompts are looked up first: if the store holds no more rows than these, the others need no look-up.
    """
    found: list[tuple[str, tuple[int, int, int, int]]] = []
    shelf = folder / slug(teacher_identity(teacher))
    num_rows = len(Rows(shelf))
    if not num_rows:  # opening a store would create it
        return found
    store, own = open_store(folder, teacher), _shown(teacher.messages(""))
    parallel, others = (prompts.filter(part) for part in (pl.col("parallel"), ~pl.col("parallel")))
    for part in (each_sample(parallel, teacher), each_sample(others, teacher)):
        if len(found) == num_rows:
            break
        asked = part["prompt_id"].to_list(), part["prompt"].to_list(), prepare_requests(part, teacher)
        for identity, prompt, request in zip(*asked, strict=True):
            if row := stored_response(store, request, teacher.sampling):
                tokens = row["num_prompt_tokens"], row["num_response_tokens"]
                stored = len(json.dumps(row)) + RECORD_BYTES
                found.append((identity, (own + size_of(prompt), *tokens, stored)))
    return found


def size_of(prompt: str | Sequence[Message]) -> int:
    """Bytes of a prompt. Every further message counts as many more as what a template writes around it may take."""
    messages = as_messages(prompt)
    return _shown(messages) + int(MESSAGE_TOKENS * BYTES_A_TOKEN[0]) * (len(messages) - 1)


def _shown(conversation: Sequence[Message]) -> int:
    """Bytes of a conversation."""
    return sum(len(message["content"].encode()) for message in conversation)
