"""Reward model: a sequence-classification model scores each response; the store keeps the scores."""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal

import polars as pl
from pydantic import Field
from tqdm import tqdm

from persyn.chat import encode_conversation, with_chat_template
from persyn.errors import InputError
from persyn.messages import Message, as_messages, assistant_message
from persyn.models import load_model, load_tokenizer, model_identity
from persyn.models.shares import ScoringSpeed, agree, divide, is_first, may_try_again, work_in_shares
from persyn.settings import Commit, Settings
from persyn.store import Store, response_key, slug

CHECKED = 64
"""Tokens of a conversation that _reads_itself_only reads, so that it needs little memory."""
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


class RewardModelSpeed(ScoringSpeed):
    """How fast the reward model scores responses; the scores are the same."""

    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one forward pass at most (one response at least); null is one response on a CPU, and on a GPU 4,096
    tokens, or 16,384 where more than five million are scored."""


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
    rows: pl.DataFrame,
    folder: Path,
    settings: RewardModelSettings,
    speed: RewardModelSpeed | None = None,
    counts: dict[str, Any] | None = None,
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
    speed = speed or RewardModelSpeed()
    missing = {reading.key: reading for reading in readings if reading.ids is not None}
    weights = {key: len(reading.ids or ()) for key, reading in missing.items()}
    parts = divide(weights, speed.ray.workers if speed.ray else speed.processes)
    shares = [[missing[key] for key in part] for part in parts]
    work_in_shares(partial(_score_share, settings, store.folder, speed), shares, speed, "reward_model")
    store.refresh()
    return [row["quality"] if (row := store.get(reading.key)) else math.nan for reading in readings]


def _score_share(
    settings: RewardModelSettings, folder: Path, speed: RewardModelSpeed, readings: Sequence[Reading]
) -> None:
    """Score what the store still lacks of these readings. A score that is not finite is not stored."""
    store = Store(folder)
    missing = [readings[n] for n in agree([n for n, of in enumerate(readings) if not store.get(of.key)])]
    if not missing:
        return
    model = _reward_model(settings.model, settings.revision, **speed.placement)
    with tqdm(total=len(missing), desc="reward model", unit="response") as bar:
        for made in _scores(model, missing, speed.batch_tokens):
            finite = [(reading, value) for reading, value in made if math.isfinite(value)]
            if is_first():
                store.put({of.key: {"quality": value, "num_tokens": of.num_tokens} for of, value in finite})
            bar.update(len(made))


def _read(
    conversations: Sequence[list[Message]], identity: str, store: Store, settings: RewardModelSettings
) -> list[Reading]:
    """How each conversation is read. Those whose score is stored are encoded only where earlier versions, which cut
    the end of a response, did not note its tokens: such a score serves if the conversation fits.
    """
    limit = settings.max_length
    tokenizer = cache(lambda: with_chat_template(load_tokenizer(settings.model, settings.revision)))
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


def _reward_model(name: str, revision: str | None, **placement: Any) -> Any:
    from transformers import AutoModelForSequenceClassification

    model = load_model(AutoModelForSequenceClassification, name, revision, **placement)
    if model.config.num_labels != 1:
        raise InputError(f"{name} gives {model.config.num_labels} scores a text; a reward model must give 1")
    return model


def _scores(
    model: Any, readings: Sequence[Reading], batch_tokens: int | None = None
) -> Iterator[list[tuple[Reading, float]]]:
    """Scores, as many at a time as one forward pass gives.

    On a CPU a conversation is read alone, which is as fast, and its score is the same to the last bit whatever is read
    beside it. On a GPU conversations fill a pass, and each sees itself only.
    """
    import torch

    from persyn.models.forest import pack, prepare
    from persyn.models.split import input_device

    lengths = [len(reading.ids or ()) for reading in readings]
    prepared = prepare(model, sum(lengths))
    batch_tokens = batch_tokens or (1 if input_device(model).type == "cpu" else prepared)
    if batch_tokens > 1 and not agree(_reads_itself_only(model, readings)):
        batch_tokens = 1
    passes = [[branch for _, branch in part] for part in pack([(0, lengths)], batch_tokens)][::-1]
    while passes:
        part = [readings[branch] for branch in passes[-1]]
        try:
            values = _read_together(model, part) if len(part) > 1 else [_read_alone(model, part[0])]
        except torch.OutOfMemoryError:
            if len(part) == 1 or not may_try_again():
                raise
            passes[-1:] = [passes[-1][: len(part) // 2], passes[-1][len(part) // 2 :]]
            continue
        passes.pop()
        yield list(zip(part, values, strict=True))


def _read_alone(model: Any, reading: Reading) -> float:
    import torch

    from persyn.models.split import input_device

    with torch.inference_mode():
        return model(torch.tensor([reading.ids], device=input_device(model))).logits.float().item()


def _read_together(model: Any, readings: Sequence[Reading]) -> list[float]:
    """The score of each is that of its last token."""
    import torch

    from persyn.models.forest import branch_states

    with torch.inference_mode():
        states = branch_states(model, [([], [list(reading.ids or ()) for reading in readings])])
        return model.score(torch.stack([of[-1] for of in states])).float().flatten().tolist()


def _reads_itself_only(model: Any, readings: Sequence[Reading]) -> bool:
    """Whether the model scores a conversation in company as alone: it is causal, respects the mask and has a plain
    head on the last token. An encoder does not.
    """
    import torch

    if not isinstance(getattr(model, "score", None), torch.nn.Linear):
        return False
    some = [replace(reading, ids=(reading.ids or ())[:CHECKED]) for reading in readings[:3]]
    alone = [_read_alone(model, reading) for reading in some]
    error = max(abs(a - b) for a, b in zip(alone, _read_together(model, some), strict=True))
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.05 * max(1, *map(abs, alone))
    if not error <= tolerance:
        logger.warning(
            "%s scores conversations %.2g apart in company: they are read alone", type(model).__name__, error
        )
    return error <= tolerance
