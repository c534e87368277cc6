"""Reward model: a sequence-classification model scores each response; the store keeps the scores."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import polars as pl
from pydantic import Field
from tqdm import tqdm

from persyn.chat import encode_conversation, with_chat_template
from persyn.errors import InputError
from persyn.messages import Message, as_messages, assistant_message
from persyn.models import load_model, load_tokenizer, model_identity
from persyn.settings import Commit, Settings
from persyn.store import Store, response_key, slug

CHUNK = 32
"""Scores of a reward model that are stored at once."""


class RewardModelSettings(Settings):
    """A sequence-classification model with one label that scores a conversation."""

    model: Annotated[str, Field(min_length=1)]
    """`packaged:<name>`, a local folder or a hub id."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    max_length: Annotated[int, Field(ge=1)] = 4096
    """Tokens of a conversation that are read, from its start."""


def reward_model_scores(rows: pl.DataFrame, folder: Path, settings: RewardModelSettings) -> list[float]:
    """The logit of a one-label sequence-classification model on each rendered conversation, computed once.

    Args:
        rows: columns prompt and response.
        folder: the response store.
    """
    model, revision, max_length = settings.model, settings.revision, settings.max_length
    identity = model_identity(model, revision)
    store = Store(folder / slug(identity))
    conversations = [as_messages(p) + assistant_message(r) for p, r in rows.select("prompt", "response").rows()]
    keys = [response_key(model=identity, messages=messages, max_length=max_length) for messages in conversations]
    scores: dict[str, float] = {}
    missing = [(key, messages) for key, messages in zip(keys, conversations, strict=True) if not store.get(key)]
    score = _reward_model(model, revision, max_length) if missing else None
    with tqdm(total=len(keys), initial=len(keys) - len(missing), desc="reward model", unit="response") as bar:
        for start in range(0, len(missing), CHUNK):
            chunk = {key: score(messages) for key, messages in missing[start : start + CHUNK]} if score else {}
            store.put({key: {"quality": value} for key, value in chunk.items() if math.isfinite(value)})
            scores |= chunk
            bar.update(len(chunk))
    return [row["quality"] if (row := store.get(key)) else scores[key] for key in keys]


def _reward_model(model: str, revision: str | None, max_length: int) -> Callable[[list[Message]], float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    tokenizer = with_chat_template(load_tokenizer(model, revision))
    scorer = load_model(AutoModelForSequenceClassification, model, revision)
    if scorer.config.num_labels != 1:
        raise InputError(f"{model} gives {scorer.config.num_labels} scores a text; a reward model must give 1")

    @torch.inference_mode()
    def score(messages: list[Message]) -> float:  # one by one, so that a score cannot depend on its batch
        ids = encode_conversation(tokenizer, messages)[:max_length]
        return scorer(torch.tensor([ids], device=scorer.device)).logits.float().item()

    return score
