"""Reward model: a sequence-classification model scores each response; the store keeps the scores."""

import functools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

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
TEMPLATE_BYTES = 1024
"""What a chat template may write of itself: a conversation shorter than max_length by this many bytes fits."""
logger = logging.getLogger(__name__)


class RewardModelSettings(Settings):
    """A sequence-classification model with one label that scores a conversation."""

    model: Annotated[str, Field(min_length=1)]
    """`packaged:<name>`, a local folder or a hub id."""
    revision: Commit | None = None
    """40-hex commit of a hub id."""
    max_length: Annotated[int, Field(ge=1)] = 4096
    """Tokens of a conversation that are read at most."""
    too_long: Literal["cut_middle", "fail"] = "cut_middle"
    """What becomes of a conversation with more tokens. cut_middle: the middle of its response is left out, so that its
    beginning and its end are scored; a warning counts these rows. fail: nothing is scored."""


@dataclass(frozen=True)
class Reading:
    """A conversation as a reward model reads it."""

    key: str
    """Of its score in the store."""
    ids: Sequence[int] | None
    """None where the score is stored."""
    num_tokens: int
    """Before anything was cut."""


def reward_model_scores(
    rows: pl.DataFrame, folder: Path, settings: RewardModelSettings, counts: dict[str, Any] | None = None
) -> list[float]:
    """The logit of a one-label sequence-classification model on each rendered conversation, computed once.

    Args:
        rows: columns prompt and response.
        folder: the response store.
        counts: receives {responses, cut: those whose middle was left out}.

    Raises:
        InputError: a prompt leaves no room for its response, or a conversation is too long and too_long is fail.
    """
    identity = model_identity(settings.model, settings.revision)
    store = Store(folder / slug(identity))
    conversations = [as_messages(p) + assistant_message(r) for p, r in rows.select("prompt", "response").rows()]
    readings = _read(conversations, identity, store, settings)
    _tell_cut(readings, settings, counts if counts is not None else {})
    scores: dict[str, float] = {}
    missing = [reading for reading in readings if reading.ids is not None]
    score = _reward_model(settings.model, settings.revision) if missing else None
    with tqdm(total=len(readings), initial=len(readings) - len(missing), desc="reward model", unit="response") as bar:
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            made = {reading.key: score(reading.ids) for reading in chunk if reading.ids} if score else {}
            sizes = {reading.key: reading.num_tokens for reading in chunk}
            finite = {key: value for key, value in made.items() if math.isfinite(value)}
            store.put({key: {"quality": value, "num_tokens": sizes[key]} for key, value in finite.items()})
            scores |= made
            bar.update(len(chunk))
    return [row["quality"] if (row := store.get(reading.key)) else scores[reading.key] for reading in readings]


def _read(
    conversations: Sequence[list[Message]], identity: str, store: Store, settings: RewardModelSettings
) -> list[Reading]:
    """How each conversation is read. Those whose score is stored are encoded only where earlier versions, which cut
    the end of a response, did not note its tokens: such a score serves if the conversation fits.
    """
    limit = settings.max_length
    tokenizer = functools.cache(lambda: with_chat_template(load_tokenizer(settings.model, settings.revision)))
    readings = []
    for messages in conversations:
        asked = {"model": identity, "messages": messages, "max_length": limit}
        whole, cut = response_key(**asked), response_key(**asked, too_long="cut_middle")
        stored, stored_cut = store.get(whole), store.get(cut)
        size = sum(len(message["content"].encode()) for message in messages) + TEMPLATE_BYTES
        known = (stored or {}).get("num_tokens", size)
        if stored_cut:
            readings.append(Reading(cut, None, stored_cut["num_tokens"]))
        elif stored and known <= limit:
            readings.append(Reading(whole, None, known))
        else:
            ids = encode_conversation(tokenizer(), messages)
            if len(ids) > limit:
                readings.append(Reading(cut, _cut_middle(tokenizer(), messages, ids, settings), len(ids)))
            else:
                readings.append(Reading(whole, None if stored else ids, len(ids)))
    return readings


def _cut_middle(
    tokenizer: Any, messages: list[Message], ids: Sequence[int], settings: RewardModelSettings
) -> list[int]:
    """`ids` without the middle of the response: the prompt and the ends of turns, which a conversation with an empty
    response has too, stay."""
    empty = encode_conversation(tokenizer, messages[:-1] + assistant_message(""))
    start = _shared(ids, empty)
    end = len(ids) - min(_shared(ids[::-1], empty[::-1]), len(empty) - start)
    kept = settings.max_length - start - (len(ids) - end)
    if kept < 2:
        raise InputError(
            f"a prompt has {start + len(ids) - end} tokens under the reward model and quality.reward_model.max_length "
            f"is {settings.max_length}, which leaves no room for its response; raise it or set prompts.max_characters"
        )
    head = start + (kept + 1) // 2
    return [*ids[:head], *ids[end - kept // 2 :]]


def _shared(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two texts share at their start."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _tell_cut(readings: Sequence[Reading], settings: RewardModelSettings, counts: dict[str, Any]) -> None:
    sizes = [reading.num_tokens for reading in readings]
    too_long = [size for size in sizes if size > settings.max_length]
    counts |= {"responses": len(sizes), "cut": len(too_long)}
    if not too_long:
        return
    message = (
        f"{len(too_long)} of {len(sizes)} responses ({len(too_long) / len(sizes):.1%}) are longer than "
        f"quality.reward_model.max_length {settings.max_length} (the longest has {max(too_long)} tokens with its "
        f"prompt)"
    )
    if settings.too_long == "fail":
        raise InputError(f"{message}; raise it, or set quality.reward_model.too_long: cut_middle")
    logger.warning("%s: the middle of each is left out", message)


def _reward_model(model: str, revision: str | None) -> Callable[[Sequence[int]], float]:
    import torch
    from transformers import AutoModelForSequenceClassification

    scorer = load_model(AutoModelForSequenceClassification, model, revision)
    if scorer.config.num_labels != 1:
        raise InputError(f"{model} gives {scorer.config.num_labels} scores a text; a reward model must give 1")

    @torch.inference_mode()
    def score(ids: Sequence[int]) -> float:  # one by one, so that a score cannot depend on its batch
        return scorer(torch.tensor([list(ids)], device=scorer.device)).logits.float().item()

    return score
