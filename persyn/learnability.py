"""Learnability: the mean log-probability a response token has under the student before it is tuned.

The responses of all teachers to one prompt are scored in one forward pass over [prompt | response 1 | response 2 ...]:
the attention mask is a tree (each response sees the prompt and itself) and positions restart after the prompt. So the
prompt is read once, nothing is padded, and only response positions reach the LM head.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from persyn.chat import encode_completion, with_chat_template
from persyn.models import Student, load_causal_lm, load_tokenizer, model_identity
from persyn.schemas import LEARNABILITY, InputError
from persyn.store import Store, response_key, slug

LOGIT_CHUNK = 512
"""Positions whose logits exist at once: [chunk, vocabulary] is all that is ever materialised."""
TREE_TOLERANCE = 1e-3, 5e-2
"""Nats a token by which the first group's scores may differ from those of its rows alone, in fp32 and in bf16."""
logger = logging.getLogger(__name__)

Group = tuple[list[int], list[list[int]]]
"""A prompt's token ids, and those of responses to it."""


def score_learnability(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    student: Student,
    folder: Path,
    *,
    batch_tokens: int | None = None,
) -> pl.DataFrame:
    """r_l(y, theta) = (1/|y|) * sum_t log p_theta(y_t | y_<t, x)  (PerSyn, Eq. 1), in nats a token.

    The response tokens are those the student would be trained on (chat.encode_completion). A response that goes
    past `max_length` is scored on its first tokens and marked `truncated`. An empty one is scored on its end-of-turn
    token, however it ended: that is all the student could learn from it. An error has no score, nor has
    a response whose score is not a finite number (which is warned of).

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
    keys = [response_key(model=identity, scored=[prompt, response], precision=precision) for prompt, response in kept]
    store = Store(folder / slug(identity))
    missing = {key: row for key, row in zip(keys, kept, strict=True) if not store.get(key)}
    if missing:
        _score_missing(load_causal_lm(*where), missing, store, batch_tokens, total=len(set(keys)))
    scores = [(store.get(key) or {}).get("learnability") for key in keys]
    return pl.DataFrame(
        {
            "prompt_id": [row["prompt_id"] for row in rows],
            "teacher": [row["teacher"] for row in rows],
            "learnability": scores,
            "num_tokens": [len(response) for _, response in kept],
            "truncated": [len(prompt) + len(response) > student.max_length for prompt, response in encoded],
        },
        schema=LEARNABILITY,
    ).drop_nulls("learnability")


def _score_missing(
    model: Any, rows: dict[str, tuple[list[int], list[int]]], store: Store, batch_tokens: int | None, total: int
) -> None:
    """Score `rows` in groups that share a prompt, and store each group's scores as they come."""
    batch_tokens = batch_tokens or (4096 if model.device.type == "cuda" else 512)
    by_prompt: dict[tuple[int, ...], list[str]] = {}
    for key, (prompt, _) in rows.items():
        by_prompt.setdefault(tuple(prompt), []).append(key)
    tree = tree_is_exact(model, [rows[key] for key in max(by_prompt.values(), key=len)])
    with tqdm(total=total, initial=total - len(rows), desc="learnability", unit="response") as bar:
        for shared, keys in sorted(by_prompt.items(), key=lambda item: -len(item[0])):
            lengths = [len(rows[key][1]) for key in keys]
            for positions in split_group(len(shared), lengths, batch_tokens if tree else 1):
                part = [keys[position] for position in positions]
                scores = mean_logprobs(model, list(shared), [rows[key][1] for key in part])
                finite = {key: score for key, score in zip(part, scores, strict=True) if math.isfinite(score)}
                store.put({key: {"learnability": score} for key, score in finite.items()})
                if len(finite) < len(part):
                    logger.warning("%d scores are not finite and left out", len(part) - len(finite))
                bar.update(len(part))


def split_group(prompt_length: int, response_lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions of responses, longest first, in parts of at most `batch_tokens` tokens with their prompt."""
    part: list[int] = []
    size = prompt_length
    for position in sorted(range(len(response_lengths)), key=lambda i: -response_lengths[i]):
        if part and size + response_lengths[position] > batch_tokens:
            yield part
            part, size = [], prompt_length
        part.append(position)
        size += response_lengths[position]
    if part:
        yield part


@torch.inference_mode()
def mean_logprobs(model: Any, prompt: list[int], responses: Sequence[list[int]]) -> list[float]:
    """Mean log p of each response's tokens given the prompt, in one forward pass.

    Only the hidden states at response positions reach the LM head, LOGIT_CHUNK of them at a time; reduced in fp32.

    Args:
        model: a causal LM.
        prompt: P token ids, at least one.
        responses: N lists of token ids, none empty.

    Returns:
        N floats, nats a token.
    """
    # Row: prompt[:-1], then per response its inputs: the prompt's last token and the response but for its end.
    inputs = [[prompt[-1], *response[:-1]] for response in responses]
    shared = len(prompt) - 1
    ids = torch.tensor([prompt[:-1] + [token for tokens in inputs for token in tokens]])  # (1, T)
    branch = torch.cat([torch.zeros(shared), *(torch.full((len(r),), n + 1.0) for n, r in enumerate(inputs))])
    positions = torch.cat([torch.arange(shared), *(torch.arange(shared, shared + len(r)) for r in inputs)])
    targets = torch.tensor([token for response in responses for token in response])  # (R,)
    ids, branch, positions, targets = (t.to(model.device) for t in (ids, branch, positions, targets))
    attention = None if len(responses) == 1 else tree_mask(model, branch, positions)
    # The trunk is what the head's owner calls: `base_model` without its LM head.
    output = model.base_model(input_ids=ids, attention_mask=attention, position_ids=positions[None], use_cache=False)
    hidden = output.last_hidden_state[0, shared:]  # (R, H)
    logprobs = torch.cat(
        [
            _logprobs(model, hidden[start : start + LOGIT_CHUNK], targets[start : start + LOGIT_CHUNK])
            for start in range(0, len(targets), LOGIT_CHUNK)
        ]
    )
    return [part.double().mean().item() for part in logprobs.split([len(response) for response in responses])]


def tree_mask(model: Any, branch: torch.Tensor, positions: torch.Tensor) -> Any:
    """What each token may attend to: the shared prompt (branch 0) and the earlier tokens of its own branch.

    Args:
        branch: (T,) 0 for the prompt, n for the n-th response.
        positions: (T,) position of each token in its own sequence.

    Returns:
        A (1, 1, T, T) mask, True where attention is allowed; for a model with sliding-window layers a mask for each
        kind of layer, as transformers' models take them.
    """
    same = (branch[:, None] == branch[None]) | (branch[None] == 0)
    distance = positions[:, None] - positions[None]
    full = (same & (distance >= 0))[None, None]
    config = model.config.get_text_config()
    window, kinds = getattr(config, "sliding_window", None), set(getattr(config, "layer_types", None) or [])
    sliding = full & (distance < window)[None, None] if window else full
    if "sliding_attention" in kinds:
        return {"full_attention": full, "sliding_attention": sliding}
    return full if kinds else sliding


def tree_is_exact(model: Any, rows: Sequence[tuple[list[int], list[int]]]) -> bool:
    """Whether this model honours the tree mask: its scores of a group equal those of the rows one by one.

    A model whose layers do not attend by mask and position (state-space layers, say) does not; its rows are then
    scored one by one.
    """
    prompt, responses = rows[0][0], [response for _, response in rows[:3]]
    if len(responses) == 1:
        return True
    alone = [mean_logprobs(model, prompt, [response])[0] for response in responses]
    together = mean_logprobs(model, prompt, responses)
    error = max(abs(a - b) for a, b in zip(alone, together, strict=True))
    exact = error <= TREE_TOLERANCE[model.dtype is torch.bfloat16]
    if not exact:
        logger.warning("%s: a shared prompt changes scores by %.2g; rows are scored alone", type(model).__name__, error)
    return exact


def _precision() -> str:
    return "bfloat16" if torch.cuda.is_available() else "float32"


def _logprobs(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model.get_output_embeddings()(hidden).float()  # (C, V)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap:  # Gemma-2 squashes its logits after the head
        logits = cap * torch.tanh(logits / cap)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


def _check_lengths(rows: Sequence[dict[str, Any]], encoded: list[tuple[list[int], list[int]]], max_length: int) -> None:
    for row, (prompt, _) in zip(rows, encoded, strict=True):
        if len(prompt) >= max_length:
            raise InputError(
                f"prompt {row['prompt_id']} of {row['teacher']}: the prompt alone has {len(prompt)} tokens under the "
                f"student, student.max_length is {max_length}; raise it or lower prompts.max_characters"
            )
