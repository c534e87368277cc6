"""Learnability: how well a response fits the untuned student. A prompt is read once for all."""

import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import polars as pl
from pydantic import Field

from persyn.chat import count_altered, encode_parts, with_chat_template
from persyn.errors import InputError
from persyn.messages import as_messages, assistant_message
from persyn.models import Student, default_precision, load_causal_lm, load_tokenizer, model_identity
from persyn.models.shares import ScoringSpeed, agree, divide, work_in_shares
from persyn.schemas import LEARNABILITY, row_key
from persyn.settings import Settings, Thinking
from persyn.store import Store, response_key, slug
from persyn.thinking import split_thought

if TYPE_CHECKING:
    import torch

    from persyn.learnability.logprobs import Branch

logger = logging.getLogger(__name__)


class LearnabilitySettings(Settings):
    """The section `learnability`. Higher is better by every method."""

    method: Literal["mean_logprob", "rank_surprisal", "local"] = "mean_logprob"
    """mean_logprob: r_l(y, theta) = (1/|y|) * sum_t log p_theta(y_t | y_<t, x), in nats a token (PerSyn, Eq. 1).
    rank_surprisal: -sum_t min(rank_t, max_rank) / sum_t -log p(y_t) (arXiv 2601.14249, where the ratio is better when
    lower); rank_t is 1 for the student's likeliest token. local: mean log p, each step of the response given only the
    `window` tokens before it (after arXiv 2510.03988, which cuts steps at sentences)."""
    max_rank: Annotated[int, Field(ge=1)] = 100
    """Larger ranks are clipped to this one (rank_surprisal)."""
    step: Annotated[int, Field(ge=1)] = 32
    """Tokens of a step (local)."""
    window: Annotated[int, Field(ge=1)] = 64
    """Tokens before a step that the student sees (local)."""
    of: Literal["answer", "thought", "both"] | None = None
    """Which tokens of a response are scored: those of its answer, of its thought, or of both. null: those that the
    student is trained on, the answer where `student.thinking` is none, both where it is keep."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """A response is scored on its first `max_tokens` tokens, by every method; null scores all that
    `student.max_length` leaves."""

    @property
    def decides(self) -> dict[str, Any]:
        """The parameters that the score of given tokens depends on. `max_tokens` only says which tokens are scored."""
        knobs = {"mean_logprob": [], "rank_surprisal": ["max_rank"], "local": ["step", "window"]}[self.method]
        return {"method": self.method, **{knob: getattr(self, knob) for knob in knobs}}

    def most(self, room: int) -> int:
        """Tokens of a response that are scored at most, where `student.max_length` leaves `room` of them."""
        return room if self.max_tokens is None else min(room, self.max_tokens)

    def branches(self, prompt: list[int], responses: Sequence[list[int]]) -> "tuple[list[int], list[Branch]]":
        """The tokens that all branches share, and the branches."""
        if self.method != "local":
            return prompt[:-1], [(index, prompt[-1:], response) for index, response in enumerate(responses)]
        steps = []
        for index, response in enumerate(responses):
            whole = prompt + response
            for start in range(len(prompt), len(whole), self.step):
                context = whole[max(0, start - self.window) : start]
                steps.append((index, context, whole[start : start + self.step]))
        return [], steps

    def reduce(self, logprobs: "torch.Tensor", ranks: "torch.Tensor") -> float:
        """The score of a response from its tokens' log-probabilities and ranks, both (R,)."""
        if self.method == "rank_surprisal":
            return -(ranks.clamp(max=self.max_rank).double().sum() / -logprobs.double().sum()).item()
        return logprobs.double().mean().item()


class LearnabilitySpeed(ScoringSpeed):
    """How fast the student scores responses; the scores are the same."""

    batch_tokens: Annotated[int, Field(ge=1)] | None = None
    """Tokens in one forward pass at most (one response at least), of several prompts; null is 512 on a CPU, where
    longer rows only add attention, and 4,096 on a GPU, or 16,384 where more than five million are scored."""


def score_learnability(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    student: Student,
    method: LearnabilitySettings,
    folder: Path,
    speed: LearnabilitySpeed | None = None,
) -> pl.DataFrame:
    """Score every response under the student.

    The response tokens are those the student would be trained on (chat.encode_completion), or the part of them that
    `method.of` names. A response that exceeds
    `method.max_tokens`, or with its prompt `student.max_length`, is scored on its first tokens and marked `truncated`;
    the log counts these. An empty one is scored on its end-of-turn token,
    however it ended: that is all the student could learn from it. Errors have no score, nor has a response without a
    thought where the thought is scored. A score that is not finite is left out with a warning.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of any number of teachers.
        folder: the response store, which keeps every score, so that only new responses are scored.
        speed: None takes its defaults.

    Returns:
        LEARNABILITY.

    Raises:
        InputError: a prompt alone fills `max_length`.
    """
    written = responses.filter(pl.col("finish_reason") != "error")
    rows = written.join(prompts, on="prompt_id", how="left", validate="m:1").sort(row_key(written)).to_dicts()
    where = (student.model, student.revision, student.trust_remote_code)
    tokenizer = with_chat_template(load_tokenizer(*where), student.date)
    shown = (as_messages(row["prompt"]) + assistant_message(row["response"]) for row in rows)
    count_altered(tokenizer, shown, f"student {student.model}")
    encoded = [_scored_tokens(tokenizer, row, student.thinking, method.of) for row in rows]
    if silent := sum(not response for _, response in encoded):
        logger.info("%d of %d responses have no thought, so they have no score", silent, len(rows))
    rows = [row for row, (_, response) in zip(rows, encoded, strict=True) if response]
    encoded = [(context, response) for context, response in encoded if response]
    _check_lengths(rows, encoded, student.max_length)
    kept = [(prompt, response[: method.most(student.max_length - len(prompt))]) for prompt, response in encoded]
    truncated = [len(all_of) > len(scored) for (_, all_of), (_, scored) in zip(encoded, kept, strict=True)]
    if any(truncated):
        logger.info("%d of %d responses are scored on their first tokens only", sum(truncated), len(rows))
    identity, precision = model_identity(student.model, student.revision), default_precision()
    keys = [response_key(model=identity, **method.decides, precision=precision, scored=row) for row in kept]
    store = Store(folder / slug(identity))
    missing = {key: row for key, row in zip(keys, kept, strict=True) if not store.get(key)}
    if missing:
        _score_missing(missing, where, method, store, speed or LearnabilitySpeed())
    table = {
        "prompt_id": [row["prompt_id"] for row in rows],
        "teacher": [row["teacher"] for row in rows],
        "learnability": [(store.get(key) or {}).get("learnability") for key in keys],
        "num_tokens": [len(response) for _, response in kept],
        "truncated": truncated,
    }
    scores = pl.DataFrame(table, schema=LEARNABILITY)
    if "sample" in responses.columns:
        scores = scores.with_columns(sample=pl.Series([row["sample"] for row in rows], dtype=pl.Int64))
    return scores.drop_nulls("learnability")


def _score_missing(
    rows: dict[str, tuple[list[int], list[int]]],
    where: tuple[str, str | None, bool],
    method: LearnabilitySettings,
    store: Store,
    speed: LearnabilitySpeed,
) -> None:
    """Score `rows` into the store; a prompt is in one share with all of its responses."""
    by_prompt: dict[tuple[int, ...], list[str]] = {}
    for key, (prompt, _) in rows.items():
        by_prompt.setdefault(tuple(prompt), []).append(key)
    weights = {prompt: len(prompt) + sum(len(rows[key][1]) for key in keys) for prompt, keys in by_prompt.items()}
    parts = divide(weights, speed.ray.workers if speed.ray else speed.processes)
    shares = [{key: rows[key] for prompt in part for key in by_prompt[prompt]} for part in parts]
    work_in_shares(partial(_score_share, where, method, store.folder, speed), shares, speed, "learnability")
    store.refresh()


def _score_share(
    where: tuple[str, str | None, bool],
    method: LearnabilitySettings,
    folder: Path,
    speed: LearnabilitySpeed,
    rows: dict[str, tuple[list[int], list[int]]],
) -> None:
    """Score what the store still lacks of these rows."""
    from persyn.learnability.scoring import score_missing

    store = Store(folder)
    missing = {key: rows[key] for key in agree([key for key in rows if not store.get(key)])}
    if missing:
        model = load_causal_lm(*where, **speed.placement)
        score_missing(model, missing, method, store, speed.batch_tokens, total=len(rows))


def _scored_tokens(
    tokenizer: Any, row: dict[str, Any], thinking: Thinking, of: str | None
) -> tuple[list[int], list[int]]:
    """Token ids of what the student has read before, and of what is scored."""
    reasoning = row.get("reasoning")
    of = of or ("both" if thinking == "keep" else "answer")
    form: Thinking = thinking if of == "answer" else "keep"
    in_thought = form == "keep" and bool(reasoning) and not row["response"]
    finished = row["finish_reason"] == "stop" or not (row["response"] or in_thought)
    context, thought, answer = encode_parts(tokenizer, row["prompt"], row["response"], finished, reasoning, form)
    if of == "both":
        return context, thought + answer
    has_thought = reasoning or split_thought(row["response"]).reasoning
    return (context + thought, answer) if of == "answer" else (context, thought if has_thought else [])


def _check_lengths(rows: Sequence[dict[str, Any]], encoded: list[tuple[list[int], list[int]]], max_length: int) -> None:
    for row, (prompt, _) in zip(rows, encoded, strict=True):
        if len(prompt) >= max_length:
            raise InputError(
                f"prompt {row['prompt_id']} of {row['teacher']}: the prompt alone has {len(prompt)} tokens under the "
                f"student, student.max_length is {max_length}; raise it or lower prompts.max_characters"
            )
