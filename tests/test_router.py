"""The router recovers what is planted, and nothing when there is nothing to find."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from conftest import prompts_table

from persyn.pairs import build_pairs
from persyn.router import bradley_terry_loss, fit_router, load_router, predict_strengths, save_router, train_router
from persyn.router_metrics import (
    knn_strengths,
    majority_strengths,
    pair_metrics,
    routing_metrics,
    shuffle_prompts,
    split_prompts,
)
from persyn.schemas import REWARDS, InputError

TEACHERS = ["low", "middle", "high"]


def planted(number: int = 24) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Sums are best answered by `high`, then `middle`; poems the other way round."""
    texts = [f"{'12 + 34 + 5' if i % 2 else 'poem story tale'} {i}" for i in range(number)]
    prompts = prompts_table(texts)
    rows = [
        (identity, teacher, 0.0, 0.0, float(rank if text[0] == "1" else -rank))
        for identity, text in zip(prompts["prompt_id"], texts, strict=True)
        for rank, teacher in enumerate(TEACHERS)
    ]
    return prompts, pl.DataFrame(rows, schema=REWARDS, orient="row")


def test_planted_strengths_are_recovered_in_order_and_shuffled_labels_are_not(base_model: str, tmp_path: Path) -> None:
    prompts, rewards = planted(32)
    params = {"model": base_model, "learning_rate": 3e-3, "epochs": 20, "batch_size": 8, "holdout": 0.25}
    router, tokenizer, metrics = fit_router(prompts, rewards, build_pairs(rewards), TEACHERS, **params)  # type: ignore[arg-type]
    strengths = predict_strengths(router, tokenizer, ["12 + 34 + 5 99", "poem story tale 99"])
    assert strengths[0].argsort().tolist() == [0, 1, 2]
    assert strengths[1].argsort().tolist() == [2, 1, 0]
    assert metrics["hit_at_1"] == 1.0
    assert metrics["regret"] == 0.0
    assert metrics["pair_accuracy"] == 1.0
    assert metrics["num_train"] + metrics["num_held_out"] == 32
    assert metrics["controls"]["shuffled"]["hit_at_1"] < 1.0, "labels of other prompts must not route"
    assert metrics["controls"]["majority"]["hit_at_1"] < 1.0

    save_router(router, tokenizer, tmp_path)
    assert not list(tmp_path.glob("*.bin"))
    loaded = predict_strengths(*load_router(tmp_path, TEACHERS), ["12 + 34 + 5 99", "poem story tale 99"])
    assert np.allclose(loaded, strengths, atol=1e-5)
    with pytest.raises(InputError, match="dvc repro router"):
        load_router(tmp_path, ["low", "high"])


def test_losing_pairs_reversed_reverse_the_router(base_model: str) -> None:
    """The sign is right: handing winners over as losers turns the ranking round."""
    prompts, rewards = planted(16)
    pairs = build_pairs(rewards).rename({"winner": "loser", "loser": "winner"})
    trained = train_router(prompts, pairs, TEACHERS, model=base_model, learning_rate=3e-3, epochs=20, batch_size=8)
    assert predict_strengths(*trained, ["12 + 34 + 5 99"])[0].argsort().tolist() == [2, 1, 0]


def test_the_loss_is_binary_cross_entropy_over_the_pairs() -> None:
    """Eq. 3 and 4 pair by pair with torch's own loss, against ours over win matrices."""
    torch.manual_seed(0)
    logits, wins = torch.randn(2, 3), torch.zeros(2, 3, 3)
    pairs = [(0, 1, 0), (0, 2, 0), (1, 0, 2)]  # (prompt, winner, loser)
    terms = []
    for prompt, winner, loser in pairs:
        wins[prompt, winner, loser] = 1
        z = torch.zeros(3)
        z[winner], z[loser] = 1, -1
        terms.append(torch.nn.functional.binary_cross_entropy_with_logits(z @ logits[prompt], torch.tensor(1.0)))
    ours = bradley_terry_loss({"logits": logits}, wins)
    assert ours.item() == pytest.approx(torch.stack(terms).mean().item())


def test_metrics_by_hand() -> None:
    rewards = np.array([[0.0, 1.0, 0.5, 0.9], [1.0, 0.0, 0.2, 0.1]])
    strengths = np.array([[0.1, 0.2, 0.9, 0.3], [0.9, 0.1, 0.2, 0.3]])
    metrics = routing_metrics(strengths, rewards)
    assert metrics == pytest.approx({"hit_at_1": 0.5, "hit_at_3": 1.0, "hit_at_3_oracle": 1.0, "regret": 0.25})
    perfect = pair_metrics(rewards * 100, rewards)
    assert perfect["pair_accuracy"] == 1.0
    assert perfect["calibration"] < 0.01
    assert perfect["num_pairs"] == 12
    inverted = pair_metrics(-rewards * 100, rewards)
    assert inverted["pair_accuracy"] == 0.0
    assert inverted["calibration"] > 0.9
    assert pair_metrics(rewards, np.zeros((2, 4))) == {"pair_accuracy": None, "calibration": None, "num_pairs": 0}


def test_controls_and_splits() -> None:
    rewards = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert majority_strengths(rewards, 2).argmax(axis=1).tolist() == [0, 0]
    assert knn_strengths(vectors, rewards, np.array([[0.1, 1.0]]), neighbours=1).argmax() == 1
    prompts, table = planted()
    train, held_out = split_prompts(prompts, 0.25)
    assert (train.height, held_out.height) == (18, 6)
    assert set(train["prompt_id"]).isdisjoint(held_out["prompt_id"])
    assert split_prompts(prompts.reverse(), 0.25)[1].sort("prompt_id").equals(held_out.sort("prompt_id"))
    with pytest.raises(InputError, match="holds out 0"):
        split_prompts(prompts, 0.0)
    shuffled = shuffle_prompts(build_pairs(table), seed=0)
    assert sorted(shuffled["prompt_id"]) == sorted(build_pairs(table)["prompt_id"])
    assert not shuffled.sort("prompt_id", "winner").equals(build_pairs(table).sort("prompt_id", "winner"))


def test_a_router_without_pairs_is_refused(base_model: str) -> None:
    _, rewards = planted(4)
    other = prompts_table(["nothing of that"])
    with pytest.raises(InputError, match="none of the 4 prompts with pairs is among the 1"):
        train_router(other, build_pairs(rewards), TEACHERS, model=base_model)
