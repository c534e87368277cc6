"""Tiny tables: PROMPTS, RESPONSES, and the teachers that wrote them."""

from collections.abc import Sequence
from typing import Any

import polars as pl

from persyn.generation import Sampling, Teacher, Training
from persyn.messages import Message, as_messages, as_text
from persyn.prompts import prompt_id
from persyn.schemas import DOMAINS, FINISH_REASONS, PROMPTS, RESPONSES


def prompts_table(
    asked: Sequence[str | list[Message]], domain: str = "instruction", references: list[str | None] | None = None
) -> pl.DataFrame:
    """PROMPTS of these texts or conversations, all parallel."""
    texts = [as_messages(prompt) for prompt in asked]
    return pl.DataFrame(
        {
            "prompt_id": [prompt_id(text) for text in texts],
            "prompt": texts,
            "domain": pl.Series([domain] * len(texts), dtype=DOMAINS),
            "reference": pl.Series(references or [None] * len(texts), dtype=pl.String),
            "source": ["test"] * len(texts),
            "license": ["Apache-2.0"] * len(texts),
            "parallel": [True] * len(texts),
        },
        schema=PROMPTS,
    )


def texts_of(prompts: pl.DataFrame) -> list[str]:
    """The prompts of a table as text."""
    return [as_text(prompt) for prompt in prompts["prompt"].to_list()]


def stub_teachers(names: str, training: Training = "allowed", terms: str | None = None) -> dict[str, Teacher]:
    """A Teacher for every letter of `names`, all under these terms."""
    fields: dict[str, Any] = {"backend": "openai", "training": training, "terms": terms}
    sampling = Sampling(max_tokens=40)
    return {name: Teacher(model=f"model-{name}", license="MIT", sampling=sampling, **fields) for name in names}


def responses_table(
    prompts: pl.DataFrame, teacher: str, texts: list[str], finish: str = "stop", thoughts: list[str] | None = None
) -> pl.DataFrame:
    """RESPONSES of one teacher to these prompts."""
    return pl.DataFrame(
        {
            "prompt_id": prompts["prompt_id"],
            "teacher": [teacher] * len(texts),
            "response": texts,
            "reasoning": pl.Series(thoughts or [None] * len(texts), dtype=pl.String),
            "finish_reason": pl.Series([finish] * len(texts), dtype=FINISH_REASONS),
            "num_prompt_tokens": [10] * len(texts),
            "num_response_tokens": [len(text.split()) for text in texts],
        },
        schema=RESPONSES,
    )
