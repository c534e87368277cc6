"""Learnability: how well a response fits the student before it is tuned. All responses to one prompt share its pass."""

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from persyn.chat import encode_completion, with_chat_template
from persyn.errors import InputError
from persyn.learnability.logprobs import Branch, split_group, token_scores
from persyn.models import Student, load_causal_lm, load_tokenizer, model_identity
from persyn.schemas import LEARNABILITY
from persyn.store import Store, response_key, slug

TOLERANCE = {torch.float32: 1e-3}
"""Nats a token by which the check of a model may find a difference; 0.05 in other precisions than these."""
CHECKED = 64
"""Tokens of prompt and response that the check of a model reads, so that it needs little memory."""
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Method:
    """The section `learnability` of params.yaml. Higher is better by every method.

    Raises:
        InputError: a value is not legal.
    """

    method: str = "mean_logprob"
    """mean_logprob: r_l(y, theta) = (1/|y|) * sum_t log p_theta(y_t | y_<t, x), in nats a token (PerSyn, Eq. 1).
    rank_surprisal: -sum_t min(rank_t, max_rank) / sum_t -log p(y_t) (arXiv 2601.14249, where the ratio is better when
    lower); rank_t is 1 for the student's likeliest token. local: mean log p, each step of the response given only the
    `window` tokens before it (after arXiv 2510.03988, which cuts steps at sentences)."""
    max_rank: int = 100
    step: int = 32
    """Tokens."""
    window: int = 64
    """Tokens."""

    def __post_init__(self) -> None:
        if self.method not in ("mean_logprob", "rank_surprisal", "local"):
            raise InputError(
                f"learnability.method is {self.method!r}; it must be mean_logprob, rank_surprisal or local"
            )
        if min(self.max_rank, self.step, self.window) < 1:
            raise InputError(f"learnability: max_rank, step and window must be 1 or more, got {self}")

    @property
    def decides(self) -> dict[str, Any]:
        """What the score depends on."""
        knobs = {"mean_logprob": [], "rank_surprisal": ["max_rank"], "local": ["step", "window"]}[self.method]
        return {"method": self.method, **{knob: getattr(self, knob) for knob in knobs}}

    def branches(self, prompt: list[int], responses: Sequence[list[int]]) -> tuple[list[int], list[Branch]]:
        """What all branches share, and the branches."""
        if self.method != "local":
            return prompt[:-1], [(index, prompt[-1:], response) for index, response in enumerate(responses)]
        steps = []
        for index, response in enumerate(responses):
            whole = prompt + response
            for start in range(len(prompt), len(whole), self.step):
                context = whole[max(0, start - self.window) : start]
                steps.append((index, context, whole[start : start + self.step]))
        return [], steps

    def reduce(self, logprobs: torch.Tensor, ranks: torch.Tensor) -> float:
        """The score of a response from its tokens' log-probabilities and ranks, both (R,)."""
        if self.method == "rank_surprisal":
            return -(ranks.clamp(max=self.max_rank).double().sum() / -logprobs.double().sum()).item()
        return logprobs.double().mean().item()


def score_learnability(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    student: Student,
    method: Method,
    folder: Path,
    *,
    batch_tokens: int | None = None,
) -> pl.DataFrame:
    """Score every response under the student.

    The response tokens are those the student would be trained on (chat.encode_completion). A response that goes
    past `max_length` is scored on its first tokens and marked `truncated`. An empty one is scored on its end-of-turn
    token, however it ended: that is all the student could learn from it. An error has no score, nor has a response
    whose score is not a finite number (which is warned of).

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of any number of teachers.
        folder: the response store, which keeps every score: a new teacher's responses alone are scored.
        batch_tokens: tokens in one forward pass at most (one response at least); None is 512 on a CPU, where longer
            rows only add attention, and 4096 on a GPU.

    Returns:
        LEARNABILITY.

    Raises:
        InputError: a prompt alone fills `max_length`.
    """
    answered = responses.filter(pl.col("finish_reason") != "error")
    rows = answered.join(prompts, on="prompt_id", how="left", validate="m:1").sort("prompt_id", "teacher").to_dicts()
    where = (student.model, student.revision, student.trust_remote_code)
    tokenizer = with_chat_template(load_tokenizer(*where))
    encoded = [
        encode_completion(
            tokenizer, row["prompt"], row["response"], row["finish_reason"] == "stop" or not row["response"]
        )
        for row in rows
    ]
    _check_lengths(rows, encoded, student.max_length)
    kept = [(prompt, response[: student.max_length - len(prompt)]) for prompt, response in encoded]
    identity, precision = model_identity(student.model, student.revision), _precision()
    keys = [response_key(model=identity, **method.decides, precision=precision, scored=row) for row in kept]
    store = Store(folder / slug(identity))
    missing = {key: row for key, row in zip(keys, kept, strict=True) if not store.get(key)}
    if missing:
        _score_missing(load_causal_lm(*where), missing, method, store, batch_tokens, total=len(set(keys)))
    table = {
        "prompt_id": [row["prompt_id"] for row in rows],
        "teacher": [row["teacher"] for row in rows],
        "learnability": [(store.get(key) or {}).get("learnability") for key in keys],
        "num_tokens": [len(response) for _, response in kept],
        "truncated": [len(prompt) + len(response) > student.max_length for prompt, response in encoded],
    }
    return pl.DataFrame(table, schema=LEARNABILITY).drop_nulls("learnability")


def _score_missing(
    model: Any,
    rows: dict[str, tuple[list[int], list[int]]],
    method: Method,
    store: Store,
    batch_tokens: int | None,
    total: int,
) -> None:
    """Score `rows` in groups that share a prompt, and store each group's scores as they come."""
    batch_tokens = batch_tokens or (4096 if model.device.type == "cuda" else 512)
    by_prompt: dict[tuple[int, ...], list[str]] = {}
    for key, (prompt, _) in rows.items():
        by_prompt.setdefault(tuple(prompt), []).append(key)
    most, group = max(by_prompt.items(), key=lambda item: len(item[1]))
    if not tree_is_exact(model, list(most[-CHECKED:]), [rows[key][1][:CHECKED] for key in group[:3]]):
        batch_tokens = 1
    with tqdm(total=total, initial=total - len(rows), desc="learnability", unit="response") as bar:
        for shared, keys in sorted(by_prompt.items(), key=lambda item: -len(item[0])):
            scores = score_group(model, list(shared), [rows[key][1] for key in keys], method, batch_tokens)
            finite = {key: score for key, score in zip(keys, scores, strict=True) if math.isfinite(score)}
            store.put({key: {"learnability": score} for key, score in finite.items()})
            if len(finite) < len(keys):
                logger.warning("%d scores are not finite and left out", len(keys) - len(finite))
            bar.update(len(keys))


def score_group(
    model: Any, prompt: list[int], responses: Sequence[list[int]], method: Method, batch_tokens: int
) -> list[float]:
    """The scores of responses to one prompt, in as few forward passes as `batch_tokens` and the memory allow.

    Args:
        model: a causal LM.
        prompt: token ids, at least one.
        responses: N lists of token ids, none empty.

    Returns:
        N floats.
    """
    shared, branches = method.branches(prompt, responses)
    lengths = [len(context) + len(targets) - 1 for _, context, targets in branches]
    found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
    parts = list(split_group(len(shared), lengths, batch_tokens))
    while parts:
        part = parts.pop()
        try:
            scored = token_scores(model, shared, [branches[i] for i in part], method.method == "rank_surprisal")
        except torch.OutOfMemoryError:
            if len(part) == 1:
                raise
            parts += [part[: len(part) // 2], part[len(part) // 2 :]]
        else:
            found |= dict(zip(part, scored, strict=True))
    return [
        method.reduce(
            torch.cat([found[position][0] for position, (of, _, _) in enumerate(branches) if of == index]),
            torch.cat([found[position][1] for position, (of, _, _) in enumerate(branches) if of == index]),
        )
        for index in range(len(responses))
    ]


@torch.inference_mode()
def tree_is_exact(model: Any, prompt: list[int], responses: Sequence[list[int]]) -> bool:
    """Whether this model honours the tree mask: its scores of a group equal those of the rows one by one.

    A model whose layers do not attend by mask and position (state-space layers, say) does not; its rows are then
    scored one by one.

    Raises:
        InputError: not even one by one do the scores equal the model's own: its head is more than a matrix product.
    """
    logits = model(torch.tensor([prompt + responses[0]], device=model.device)).logits[0, len(prompt) - 1 : -1].float()
    own = -torch.nn.functional.cross_entropy(logits, torch.tensor(responses[0], device=model.device)).item()
    alone = score_group(model, prompt, responses, Method(), batch_tokens=1)
    together = score_group(model, prompt, responses, Method(), batch_tokens=1 << 20)
    tolerance = TOLERANCE.get(model.dtype, 0.05)
    if abs(own - alone[0]) > tolerance:  # false for NaN, which is not this function's concern
        raise InputError(
            f"{type(model).__name__} scores a response {own:.4f}, its trunk and head apart {alone[0]:.4f}: this kind "
            f"of model cannot be a student yet"
        )
    error = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    if error > tolerance:
        logger.warning("%s: a shared prompt changes scores by %.2g; rows are scored alone", type(model).__name__, error)
    return not error > tolerance


def _precision() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def _check_lengths(rows: Sequence[dict[str, Any]], encoded: list[tuple[list[int], list[int]]], max_length: int) -> None:
    for row, (prompt, _) in zip(rows, encoded, strict=True):
        if len(prompt) >= max_length:
            raise InputError(
                f"prompt {row['prompt_id']} of {row['teacher']}: the prompt alone has {len(prompt)} tokens under the "
                f"student, student.max_length is {max_length}; raise it or lower prompts.max_characters"
            )
