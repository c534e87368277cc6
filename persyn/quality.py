"""Quality: how good a response is, by a method that fits its domain. Higher is better; scales differ by method."""

import logging
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.chat import Message, assistant_message, encode_conversation, user_message, with_chat_template
from persyn.models import load_model, load_tokenizer, model_identity
from persyn.schemas import QUALITY, InputError, check_keys
from persyn.store import Store, response_key, slug
from persyn.verifiers import is_right_answer, share_of_checks

CHUNK = 32
"""Scores of a reward model that are stored at once."""
logger = logging.getLogger(__name__)


def score_quality(
    prompts: pl.DataFrame,
    responses: pl.DataFrame,
    folder: Path,
    *,
    methods: Mapping[str, str],
    reward_model: Mapping[str, Any] | None = None,
) -> pl.DataFrame:
    """Score every response by the method of its prompt's domain. An error has no score, nor has a response whose
    score is not a finite number (which is warned of): their prompts take no part in what follows.

    Args:
        prompts: PROMPTS.
        responses: RESPONSES of one teacher, each prompt_id in `prompts`.
        folder: the response store, which keeps what a reward model said.
        methods: domain -> checkers (share of the constraints in `reference` that hold), math_verify (1 if the final
            answer equals `reference`, else 0) or reward_model (the scalar of a sequence-classification model).
        reward_model: the arguments of reward_model_scores, needed by the method of that name.

    Returns:
        QUALITY.

    Raises:
        InputError: a domain has no method, a method is unknown, or a reference it needs is missing or malformed.
    """
    answered = responses.filter(pl.col("finish_reason") != "error")
    rows = answered.join(prompts, on="prompt_id", how="left", validate="m:1").sort("prompt_id")
    scorers = {"checkers": share_of_checks, "math_verify": is_right_answer}
    for domain in sorted(set(rows["domain"].cast(pl.String).to_list())):
        if methods.get(domain) not in (*scorers, "reward_model"):
            raise InputError(
                f"quality.methods.{domain} is {methods.get(domain)!r}; it must be {', '.join(scorers)} or reward_model"
            )
    by_model = rows.filter(pl.col("domain").cast(pl.String).replace_strict(dict(methods)) == "reward_model")
    scores: dict[str, float] = {}
    if by_model.height:
        check_keys("quality.reward_model", reward_model or {}, reward_model_scores)
        by_reward = reward_model_scores(by_model, folder, **reward_model or {})
        scores = dict(zip(by_model["prompt_id"], by_reward, strict=True))
    for row in tqdm(rows.iter_rows(named=True), total=rows.height, desc="quality", unit="response"):
        if row["prompt_id"] in scores:
            continue
        if row["reference"] is None:
            raise InputError(
                f"prompt {row['prompt_id']} has no reference, which {methods[row['domain']]} needs; "
                f"name its column as `reference` in prompts.sources, or choose the method reward_model"
            )
        scores[row["prompt_id"]] = scorers[methods[row["domain"]]](row["prompt"], row["response"], row["reference"])
    quality = pl.Series("quality", [scores[identity] for identity in rows["prompt_id"]], dtype=pl.Float64)
    scored = rows.select("prompt_id", "teacher").with_columns(quality).select(QUALITY.names())
    broken = scored.filter(~pl.col("quality").is_finite())
    if broken.height:
        logger.warning("%d scores are not finite and left out, first %s", broken.height, broken.rows()[:3])
    return scored.filter(pl.col("quality").is_finite())


def reward_model_scores(
    rows: pl.DataFrame, folder: Path, *, model: str, revision: str | None = None, max_length: int = 4096
) -> list[float]:
    """The logit of a one-label sequence-classification model on each rendered conversation; each is paid for once.

    Args:
        rows: columns prompt and response.
        folder: the response store.
        max_length: tokens of a conversation that are read, from its start.
    """
    identity = model_identity(model, revision)
    store = Store(folder / slug(identity))
    conversations = [user_message(p) + assistant_message(r) for p, r in rows.select("prompt", "response").rows()]
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
    def score(messages: list[Message]) -> float:  # one by one: a score then cannot depend on its batch mates
        ids = encode_conversation(tokenizer, messages)[:max_length]
        return scorer(torch.tensor([ids], device=scorer.device)).logits.float().item()

    return score
