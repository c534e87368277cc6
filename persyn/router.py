"""Router: a prompt -> one Bradley-Terry strength a teacher, trained on pairs.

P(B beats A | x) = sigmoid(z^T pi(x)), z being +1 at B and -1 at A (PerSyn, Eq. 3); binary cross-entropy over the
pairs (Eq. 4). pi is any Hugging Face backbone with a linear head of one coefficient a teacher, which is exactly a
sequence-classification model: saving, loading, LoRA and sharding are the library's.

Legend: B prompts, M teachers.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from tqdm import tqdm

from persyn.models import cache_folder, load_model, load_tokenizer
from persyn.router_metrics import (
    knn_strengths,
    majority_strengths,
    pair_metrics,
    reward_matrix,
    routing_metrics,
    shuffle_prompts,
    split_prompts,
)
from persyn.schemas import InputError


def fit_router(
    prompts: pl.DataFrame,
    rewards: pl.DataFrame,
    pairs: pl.DataFrame,
    teachers: Sequence[str],
    *,
    model: str,
    revision: str | None = None,
    learning_rate: float = 4e-6,
    epochs: float = 1,
    batch_size: int = 16,
    max_length: int = 512,
    holdout: float = 0.2,
    neighbours: int = 5,
    seed: int = 0,
) -> tuple[Any, Any, dict[str, Any]]:
    """Train a router on part of the parallel prompts and measure it on the rest, beside its controls.

    Args:
        prompts: PROMPTS of the parallel set; those without rewards are ignored.
        rewards: REWARDS of the parallel set.
        pairs: PAIRS of the parallel set.
        teachers: the order of the strengths.
        holdout: share of the prompts kept out of training.
        neighbours: how many prompts the kNN control asks.

    Returns:
        The router, its tokenizer, and the metrics of metrics/router.json.
    """
    training: dict[str, Any] = {"model": model, "revision": revision, "learning_rate": learning_rate, "epochs": epochs}
    training |= {"batch_size": batch_size, "max_length": max_length, "seed": seed}
    train, held_out = split_prompts(prompts.join(rewards, on="prompt_id", how="semi"), holdout)
    router, tokenizer = train_router(train, pairs, teachers, **training)
    texts = held_out["prompt"].to_list()
    seen, unseen = (reward_matrix(rewards, part["prompt_id"].to_list(), teachers) for part in (train, held_out))
    strengths = predict_strengths(router, tokenizer, texts, max_length)
    vectors = embed(model, revision, train["prompt"].to_list() + texts, max_length)
    shuffled = train_router(train, shuffle_prompts(pairs, seed), teachers, **training)
    controls = {
        "majority": majority_strengths(seen, len(texts)),
        "knn": knn_strengths(vectors[: train.height], seen, vectors[train.height :], neighbours),
        "shuffled": predict_strengths(*shuffled, texts, max_length),
    }
    measured = routing_metrics(strengths, unseen) | pair_metrics(strengths, unseen)
    measured["controls"] = {name: routing_metrics(control, unseen) for name, control in controls.items()}
    return router, tokenizer, measured | {"num_train": train.height, "num_held_out": held_out.height}


def train_router(
    prompts: pl.DataFrame,
    pairs: pl.DataFrame,
    teachers: Sequence[str],
    *,
    model: str,
    revision: str | None = None,
    learning_rate: float = 4e-6,
    epochs: float = 1,
    batch_size: int = 16,
    max_length: int = 512,
    seed: int = 0,
) -> tuple[Any, Any]:
    """Fine-tune the backbone and its coefficient head. One forward pass a prompt serves all of the prompt's pairs.

    Args:
        prompts: columns prompt_id and prompt; those without a pair are ignored.
        pairs: PAIRS of these prompts.
        teachers: the order of the M strengths.
        max_length: tokens of a prompt that the router reads, from its start.

    Returns:
        The trained model and its tokenizer.

    Raises:
        InputError: no pair belongs to a prompt.
    """
    from datasets import Dataset
    from transformers import Trainer, TrainingArguments, set_seed

    wins = win_matrices(pairs, teachers)
    rows = [(prompt, wins[identity]) for identity, prompt in _texts(prompts) if identity in wins]
    if not rows:
        raise InputError(f"none of the {len(wins)} prompts with pairs is among the {prompts.height} to train on")
    set_seed(seed)
    tokenizer, router = _new_router(model, revision, teachers)
    encoded = tokenizer([prompt for prompt, _ in rows], truncation=True, max_length=max_length)
    dataset = Dataset.from_dict(dict(encoded)).add_column("labels", [matrix.tolist() for _, matrix in rows])
    arguments = TrainingArguments(
        output_dir=str(cache_folder() / "router"),
        learning_rate=learning_rate,
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        lr_scheduler_type="constant",
        seed=seed,
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    Trainer(
        model=router,
        args=arguments,
        train_dataset=dataset,
        processing_class=tokenizer,
        compute_loss_func=bradley_terry_loss,
    ).train()
    return router.eval(), tokenizer


def bradley_terry_loss(outputs: Any, wins: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
    """Mean over the pairs of -log sigmoid(o_winner - o_loser): binary cross-entropy with the winner as the label.

    Args:
        outputs: `logits` (B, M) are the strengths o.
        wins: (B, M, M), 1 where the row's teacher beats the column's, else 0.
        num_items_in_batch: not used; the Trainer passes it.
    """
    strengths = outputs["logits"].float()
    gaps = strengths.unsqueeze(2) - strengths.unsqueeze(1)  # (B, M, M): o_row - o_column
    wins = wins.to(gaps)
    return -(wins * torch.nn.functional.logsigmoid(gaps)).sum() / wins.sum().clamp(min=1)


def win_matrices(pairs: pl.DataFrame, teachers: Sequence[str]) -> dict[str, np.ndarray]:
    """prompt_id -> (M, M) array with 1 where the row's teacher beats the column's on that prompt."""
    index = {teacher: position for position, teacher in enumerate(teachers)}
    wins: dict[str, np.ndarray] = {}
    for identity, winner, loser in pairs.select("prompt_id", "winner", "loser").iter_rows():
        if winner not in index or loser not in index:
            raise InputError(f"pair {winner} over {loser}: both must be among the teachers {', '.join(teachers)}")
        matrix = wins.setdefault(identity, np.zeros((len(teachers), len(teachers)), dtype=np.float32))
        matrix[index[winner], index[loser]] = 1
    return wins


@torch.inference_mode()
def predict_strengths(
    router: Any, tokenizer: Any, prompts: Sequence[str], max_length: int = 512, batch_size: int = 32
) -> np.ndarray:
    """Strengths (len(prompts), M) of the router for prompts, in their order."""
    order = sorted(range(len(prompts)), key=lambda position: -len(prompts[position]))
    strengths = np.zeros((len(prompts), router.config.num_labels), dtype=np.float32)
    for start in tqdm(range(0, len(order), batch_size), desc="routing", unit="batch"):
        batch = order[start : start + batch_size]
        texts = [prompts[position] for position in batch]
        encoded = tokenizer(texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt")
        strengths[batch] = router(**encoded.to(router.device)).logits.float().cpu().numpy()
    return strengths


@torch.inference_mode()
def embed(model: str, revision: str | None, prompts: Sequence[str], max_length: int = 512) -> np.ndarray:
    """Mean hidden state (len(prompts), H) of the untrained backbone: what the kNN control compares prompts by."""
    from transformers import AutoModel

    tokenizer = load_tokenizer(model, revision)
    backbone = load_model(AutoModel, model, revision, dtype=torch.float32)
    vectors = []
    for prompt in prompts:
        encoded = tokenizer(prompt, truncation=True, max_length=max_length, return_tensors="pt")
        hidden = backbone(**encoded.to(backbone.device)).last_hidden_state[0]  # (T, H)
        vectors.append(hidden.mean(dim=0).cpu().numpy())
    return np.stack(vectors)


def save_router(router: Any, tokenizer: Any, folder: str | Path) -> None:
    """Write the router as safetensors; the teachers' names and order are its `id2label`."""
    router.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def load_router(folder: str | Path, teachers: Sequence[str]) -> tuple[Any, Any]:
    """Read a saved router.

    Raises:
        InputError: it was trained for other teachers than `teachers`.
    """
    from transformers import AutoModelForSequenceClassification

    router = load_model(AutoModelForSequenceClassification, str(folder), dtype=torch.float32)
    trained_for = [router.config.id2label[position] for position in range(router.config.num_labels)]
    if trained_for != list(teachers):
        raise InputError(
            f"{folder} routes to {trained_for}, params.yaml names {list(teachers)}; run `dvc repro router`"
        )
    return router, load_tokenizer(str(folder))


def _new_router(model: str, revision: str | None, teachers: Sequence[str]) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification

    tokenizer = load_tokenizer(model, revision)
    router = load_model(
        AutoModelForSequenceClassification,
        model,
        revision,
        num_labels=len(teachers),
        id2label=dict(enumerate(teachers)),
        label2id={teacher: position for position, teacher in enumerate(teachers)},
        dtype=torch.float32,
    )
    router.config.pad_token_id = tokenizer.pad_token_id  # a causal backbone finds its last token by it
    return tokenizer, router


def _texts(prompts: pl.DataFrame) -> list[tuple[str, str]]:
    return prompts.sort("prompt_id").select("prompt_id", "prompt").rows()
