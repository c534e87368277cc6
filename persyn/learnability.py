"""Learnability: the mean log-probability a response token has under the student before it is tuned."""

from collections.abc import Iterator, Sequence
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from persyn.chat import encode_completion, with_chat_template
from persyn.models import Student, load_causal_lm, load_tokenizer
from persyn.schemas import LEARNABILITY, InputError

LOGIT_CHUNK = 1024
"""Positions whose logits exist at once: [chunk, vocabulary] is all that is ever materialised."""


def score_learnability(
    prompts: pl.DataFrame, responses: pl.DataFrame, student: Student, *, batch_tokens: int = 1
) -> pl.DataFrame:
    """r_l(y, theta) = (1/|y|) * sum_t log p_theta(y_t | y_<t, x)  (PerSyn, Eq. 1), in nats a token.

    The response tokens are those the student would be trained on (chat.encode_completion). A response that goes
    past `max_length` is scored on its first tokens and marked `truncated`. An empty one is scored on its end-of-turn
    token, however it ended: that is all the student could learn from it. An error has no score.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of one teacher.
        batch_tokens: padded tokens in one forward pass at most; 1 scores one response at a time, which is fastest on
            a CPU.

    Returns:
        LEARNABILITY.

    Raises:
        InputError: a prompt alone fills `max_length`.
    """
    answered = responses.filter(pl.col("finish_reason") != "error")
    rows = answered.join(prompts, on="prompt_id", how="left", validate="1:1").sort("prompt_id")
    where = (student.model, student.revision, student.trust_remote_code)
    tokenizer = with_chat_template(load_tokenizer(*where))
    encoded = [
        encode_completion(
            tokenizer, row["prompt"], row["response"], row["finish_reason"] == "stop" or not row["response"]
        )
        for row in rows.iter_rows(named=True)
    ]
    _check_lengths(rows, encoded, student.max_length)
    model = load_causal_lm(*where)
    kept = [(prompt, response[: student.max_length - len(prompt)]) for prompt, response in encoded]
    scores = [0.0] * len(kept)
    with tqdm(total=len(kept), desc="learnability", unit="response") as bar:
        for batch in _batches([len(prompt) + len(response) for prompt, response in kept], batch_tokens):
            for position, score in zip(batch, mean_logprobs(model, [kept[i] for i in batch]), strict=True):
                scores[position] = score
            bar.update(len(batch))
    return rows.select(
        "prompt_id",
        "teacher",
        learnability=pl.Series(scores, dtype=pl.Float64),
        num_tokens=pl.Series([len(response) for _, response in kept], dtype=pl.Int64),
        truncated=pl.Series([len(p) + len(r) > student.max_length for p, r in encoded], dtype=pl.Boolean),
    ).select(LEARNABILITY.names())


@torch.inference_mode()
def mean_logprobs(model: Any, batch: Sequence[tuple[list[int], list[int]]]) -> list[float]:
    """Mean log p of each response's tokens given its prompt.

    Only the hidden states at response positions reach the LM head, LOGIT_CHUNK of them at a time; reduced in fp32.

    Args:
        model: a causal LM.
        batch: B pairs (prompt ids, response ids), no response empty.

    Returns:
        B floats, nats a token.
    """
    length = max(len(prompt) + len(response) for prompt, response in batch)
    ids = torch.zeros(len(batch), length, dtype=torch.long)  # (B, T)
    mask, scored = torch.zeros_like(ids), torch.zeros_like(ids, dtype=torch.bool)
    for row, (prompt, response) in enumerate(batch):
        ids[row, : len(prompt) + len(response)] = torch.tensor(prompt + response)
        mask[row, : len(prompt) + len(response)] = 1
        # The logits at position t predict token t + 1.
        scored[row, len(prompt) - 1 : len(prompt) + len(response) - 1] = True
    ids, mask, scored = (tensor.to(model.device) for tensor in (ids, mask, scored))
    # The trunk is what the head's owner calls: `base_model` without its LM head.
    hidden = model.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state  # (B, T, H)
    hidden, targets = hidden[scored], ids.roll(-1, dims=1)[scored]  # (N, H), (N,)
    logprobs = torch.cat(
        [
            _logprobs(model, hidden[start : start + LOGIT_CHUNK], targets[start : start + LOGIT_CHUNK])
            for start in range(0, len(targets), LOGIT_CHUNK)
        ]
    )
    return [part.double().mean().item() for part in logprobs.split(scored.sum(dim=1).tolist())]


def _logprobs(model: Any, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    logits = model.get_output_embeddings()(hidden).float()  # (C, V)
    cap = getattr(model.config.get_text_config(), "final_logit_softcapping", None)
    if cap:  # Gemma-2 squashes its logits after the head
        logits = cap * torch.tanh(logits / cap)
    return logits.gather(1, targets[:, None]).squeeze(1) - logits.logsumexp(dim=1)


def _batches(lengths: list[int], batch_tokens: int) -> Iterator[list[int]]:
    """Positions, longest first, in groups whose padded size stays within `batch_tokens` (one row at least)."""
    batch: list[int] = []
    for position in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if batch and (len(batch) + 1) * lengths[batch[0]] > batch_tokens:
            yield batch
            batch = []
        batch.append(position)
    if batch:
        yield batch


def _check_lengths(rows: pl.DataFrame, encoded: list[tuple[list[int], list[int]]], max_length: int) -> None:
    for row, (prompt, _) in zip(rows.iter_rows(named=True), encoded, strict=True):
        if len(prompt) >= max_length:
            raise InputError(
                f"prompt {row['prompt_id']} of {row['teacher']}: the prompt alone has {len(prompt)} tokens under the "
                f"student, student.max_length is {max_length}; raise it or lower prompts.max_characters"
            )
