"""The router recovers what is planted, and nothing when there is nothing to find."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from persyn.errors import InputError
from persyn.pairs import PairSettings, build_pairs
from persyn.router import fit_router, load_router, train_router
from persyn.router.finetuned import CLASS_TOKEN, FinetunedRouter, encode_prompts
from persyn.router.losses import bradley_terry_loss, plackett_luce_loss, win_matrices
from persyn.router.metrics import (
    allocation_metrics,
    health_card,
    knn_strengths,
    majority_strengths,
    pair_metrics,
    reliability,
    routing_metrics,
    shuffle_targets,
    source_strengths,
    split_prompts,
)
from persyn.router.placement import PlacedRouter, place_teacher
from persyn.router.settings import RouterSettings
from persyn.schemas import REWARDS
from tests.support.planted import POEM, SUM, TEACHERS, planted, settings
from tests.support.tables import prompts_table


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"by_margin": True},
        {"loss": "listwise"},
        {"lora": {"r": 8, "alpha": 16}, "learning_rate": 1e-2},
        {"validation": 0.25, "patience": 20},
        {"light": {}},
        {"light": {"layers": 1}, "loss": "listwise"},
    ],
)
def test_planted_strengths_are_recovered_in_order_and_shuffled_labels_are_not(
    changes: dict[str, Any], base_model: str, tmp_path: Path
) -> None:
    prompts, rewards = planted(32)
    router, card, bins = fit_router(
        prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS, settings(base_model, **changes)
    )
    strengths = router.strengths([SUM, POEM])
    assert strengths.argmax(axis=1).tolist() == [2, 0]
    assert card["hit_at_1"] == 1.0
    assert card["regret"] == 0.0
    if "validation" not in changes:  # which stops once the best are right, before the order of the others is
        assert strengths.argsort(axis=1).tolist() == [[0, 1, 2], [2, 1, 0]]
        assert card["pair_accuracy"] == 1.0
    assert bins["pairs"].sum() == card["num_pairs"] == 24
    assert card["num_train"] + card["num_validation"] + card["num_held_out"] == 32
    assert card["num_validation"] == (6 if "validation" in changes else 0)
    assert card["over_majority"]["difference"] > 0
    assert card["controls"]["shuffled"]["hit_at_1"] < 1.0, "labels of other prompts must not route"
    assert card["controls"]["majority"]["hit_at_1"] < 1.0

    router.save(tmp_path)
    assert list(tmp_path.glob("*.safetensors"))
    assert not list(tmp_path.glob("*.bin"))
    assert np.allclose(load_router(tmp_path, TEACHERS).strengths([SUM, POEM]), strengths, atol=1e-5)
    with pytest.raises(InputError, match="dvc repro router"):
        load_router(tmp_path, ["low", "high"])


@pytest.mark.parametrize("changes", [{}, {"light": {}}])
def test_losing_pairs_reversed_reverse_the_router(changes: dict[str, Any], base_model: str) -> None:
    """The sign is right: handing winners over as losers turns the ranking round."""
    prompts, rewards = planted(16)
    pairs = build_pairs(rewards, PairSettings()).rename({"winner": "loser", "loser": "winner"})
    router = train_router(prompts, rewards, pairs, TEACHERS, settings(base_model, **changes))
    assert router.strengths([SUM])[0].argsort().tolist() == [2, 1, 0]


def test_the_number_of_training_prompts_changes_nothing_of_what_measures(base_model: str) -> None:
    prompts, rewards = planted(32)
    tables = prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS
    _, few, _ = fit_router(*tables, settings(base_model, num_train=4, light={}))
    _, many, _ = fit_router(*tables, settings(base_model, light={}))
    assert (few["num_train"], many["num_train"]) == (4, 24)
    assert few["num_held_out"] == many["num_held_out"] == 8
    assert few["oracle_share"] == many["oracle_share"]
    with pytest.raises(InputError, match=r"router.num_train is 25; it must be 1 to 24"):
        fit_router(*tables, settings(base_model, num_train=25, light={}))


def test_early_stopping_keeps_the_best_epoch(base_model: str) -> None:
    """With a learning rate that destroys the router, the first epochs are better than the last."""
    prompts, rewards = planted(32)
    wild = settings(base_model, learning_rate=3.0, validation=0.25, epochs=12, patience=2)
    router, card, _ = fit_router(prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS, wild)
    assert np.isfinite(router.strengths([SUM])).all()
    assert card["num_validation"] == 6


def test_a_decoder_gets_a_class_token_that_text_cannot_spell(base_model: str) -> None:
    prompts, rewards = planted(8)
    router = train_router(
        prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS, settings(base_model, epochs=1, max_length=6)
    )
    assert isinstance(router, FinetunedRouter)
    token = router.tokenizer.convert_tokens_to_ids(CLASS_TOKEN)
    encoded = encode_prompts(
        router.tokenizer, ["short", "a prompt that is longer than six tokens", f"x {CLASS_TOKEN} y"]
    )
    assert [ids[-1] for ids in encoded] == [token] * 3
    assert [ids.count(token) for ids in encoded] == [1, 1, 1]
    assert max(map(len, encoded)) == 6
    alone = router.strengths(["short"])[0]
    assert np.allclose(router.strengths(["short", "a much longer prompt"])[0], alone, atol=1e-5), "padding is not read"


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


def test_the_listwise_loss_by_hand() -> None:
    """P(2, 0, 1) = e^o2 / (e^o0 + e^o1 + e^o2) * e^o0 / (e^o0 + e^o1)."""
    o = torch.tensor([[0.3, -0.2, 1.0]])
    e = o.exp()[0]
    expected = -torch.log(e[2] / e.sum() * e[0] / (e[0] + e[1])) / 2
    ours = plackett_luce_loss({"logits": o}, torch.tensor([[0.5, 0.1, 0.9]]))
    assert ours.item() == pytest.approx(expected.item())
    two = torch.tensor([[0.4, 1.1]])
    pair = bradley_terry_loss({"logits": two}, torch.tensor([[[0.0, 0.0], [1.0, 0.0]]]))
    assert plackett_luce_loss({"logits": two}, torch.tensor([[0.0, 1.0]])).item() == pytest.approx(pair.item())


def test_margins_weigh_pairs() -> None:
    pairs = pl.DataFrame({"prompt_id": ["p", "p"], "winner": ["low", "high"], "loser": ["high", "middle"]})
    pairs = pairs.with_columns(margin=pl.Series([0.1, 0.3]))
    assert win_matrices(pairs, TEACHERS)["p"].tolist() == [[0, 0, 1], [0, 0, 0], [0, 1, 0]]
    assert win_matrices(pairs, TEACHERS, by_margin=True)["p"] == pytest.approx(
        np.array([[0, 0, 0.5], [0, 0, 0], [0, 1.5, 0]])
    )
    with pytest.raises(InputError, match="pair low over high: both must be among the teachers low, middle"):
        win_matrices(pairs, ["low", "middle"])


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


def test_reliability_of_a_calibrated_router_is_the_diagonal() -> None:
    """Rewards drawn from the router's own probabilities."""
    rng = np.random.default_rng(0)
    strengths = rng.normal(scale=2, size=(20_000, 2))
    wins = rng.random(20_000) < 1 / (1 + np.exp(strengths[:, 1] - strengths[:, 0]))
    rewards = np.stack([wins, ~wins], axis=1).astype(float)
    bins = reliability(strengths, rewards)
    assert bins.height == 10
    assert (bins["confidence"] - bins["accuracy"]).abs().max() < 0.04  # type: ignore[operator]
    assert pair_metrics(strengths, rewards)["calibration"] < 0.02


def test_a_collapse_is_called_one_only_where_the_oracle_does_otherwise() -> None:
    rewards = np.eye(3)[np.arange(30) % 3]
    first = np.tile([1.0, 0.0, 0.0], (30, 1))
    assert allocation_metrics(first, rewards, TEACHERS) == {
        "share": {"low": 1.0, "middle": 0.0, "high": 0.0},
        "oracle_share": dict.fromkeys(TEACHERS, 1 / 3),
        "entropy": 0.0,
        "oracle_entropy": pytest.approx(np.log(3)),
        "collapsed": True,
    }
    assert not allocation_metrics(first, first, TEACHERS)["collapsed"]
    assert not allocation_metrics(rewards, rewards, TEACHERS)["collapsed"]


def test_the_health_card_says_when_routing_is_not_worth_it(caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(0)
    rewards = rng.random((200, 3))
    majority = np.tile(rewards.mean(axis=0), (200, 1))
    card = health_card(rng.random((200, 3)), rewards, TEACHERS, {"majority": majority})
    assert card["over_majority"]["verdict"] == "within noise"
    assert "no better than one teacher for everything (within noise)" in caplog.text
    caplog.clear()
    best = health_card(rewards, rewards, TEACHERS, {"majority": majority})
    assert best["over_majority"]["verdict"] == "differs"
    assert not caplog.text
    json.dumps(best)


def test_controls_and_splits() -> None:
    rewards = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    vectors = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    assert majority_strengths(rewards, 2).argmax(axis=1).tolist() == [0, 0]
    assert knn_strengths(vectors, rewards, np.array([[0.1, 1.0]]), neighbours=1).argmax() == 1
    by_source = source_strengths(["a", "a", "b"], rewards, ["b", "a", "new"])
    assert by_source == pytest.approx(np.array([[0.0, 1.0], [0.95, 0.05], [1.9 / 3, 1.1 / 3]]))
    prompts, _ = planted()
    train, held_out = split_prompts(prompts, 0.25)
    assert (train.height, held_out.height) == (18, 6)
    assert set(train["prompt_id"]).isdisjoint(held_out["prompt_id"])
    assert split_prompts(prompts.reverse(), 0.25)[1].sort("prompt_id").equals(held_out.sort("prompt_id"))
    with pytest.raises(InputError, match=r"router.holdout 0.0 of 24 .* holds out 0"):
        split_prompts(prompts, 0.0)
    targets = [np.array([n]) for n in range(50)]
    shuffled = shuffle_targets(targets, seed=0)
    assert sorted(int(t[0]) for t in shuffled) == list(range(50))
    assert sum(int(t[0]) == n for n, t in enumerate(shuffled)) < 10


class Known:
    """A router of two teachers: strengths by the prompt's number, -1 to 1, and its opposite."""

    teachers = ("rising", "falling")

    def strengths(self, prompts: list[str]) -> np.ndarray:
        x = np.array([float(text) for text in prompts], dtype=np.float32)
        return np.stack([3 * x, -3 * x], axis=1)


def anchored(xs: np.ndarray, better: float) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Prompts that are numbers, and rewards where `new` is a copy of `rising`, better by so much."""
    prompts = prompts_table([str(x) for x in xs])
    scores = {"rising": 3 * xs, "falling": -3 * xs, "new": 3 * xs + better}
    rows = [(i, t, 0.0, 0.0, float(v)) for t in scores for i, v in zip(prompts["prompt_id"], scores[t], strict=True)]
    return prompts, pl.DataFrame(rows, schema=REWARDS, orient="row")


def test_a_new_teacher_is_placed_from_anchors() -> None:
    """A copy of `rising`, a little better, is found from 24 anchors and ranked right elsewhere."""
    xs = np.random.default_rng(0).uniform(-1, 1, size=24)
    place = place_teacher(Known(), "new", *anchored(xs, 0.5))
    router = PlacedRouter(Known(), {"new": place}, ["new", "rising", "falling"])
    strengths = router.strengths(["-0.9", "0.9"])
    assert strengths[0].argmax() == 2, "where `falling` is best, the new one is not"
    assert strengths[1].argmax() == 0
    assert place["anchors"] == 24
    assert place["blend"]["rising"] > place["blend"]["falling"]
    assert place["offset"] > 0
    worse = PlacedRouter(Known(), {"new": place_teacher(Known(), "new", *anchored(xs, -0.5))}, ["rising", "new"])
    assert worse.strengths(["0.9"])[0].argmax() == 0


def test_a_strict_penalty_leaves_the_average_teacher() -> None:
    place = place_teacher(Known(), "new", *anchored(np.linspace(-1, 1, 9), 0.5), penalty=1e6)
    assert list(place["blend"].values()) == pytest.approx([0.5, 0.5], abs=1e-3)
    assert place["offset"] == pytest.approx(0, abs=1e-3)


def test_an_anchored_teacher_joins_the_router_that_was_trained_without_it(base_model: str, tmp_path: Path) -> None:
    """`middle` answered eight prompts only: the others are trained as if it were not there, then it is placed."""
    prompts, rewards = planted(32)
    few = prompts["prompt_id"][:8].to_list()
    rewards = rewards.filter((pl.col("teacher") != "middle") | pl.col("prompt_id").is_in(few))
    tables = prompts, rewards, build_pairs(rewards, PairSettings())
    router, card, _ = fit_router(*tables, TEACHERS, settings(base_model, light={}), ["middle"])
    without, alone, _ = fit_router(*tables, ["low", "high"], settings(base_model, light={}))
    assert card["placed"]["middle"]["anchors"] == 8
    assert {key: card[key] for key in alone if key != "placed"} == {key: alone[key] for key in alone if key != "placed"}
    texts = [SUM, POEM]
    assert np.allclose(router.strengths(texts)[:, [0, 2]], without.strengths(texts))
    assert router.strengths(texts).argsort(axis=1).tolist() == [[0, 1, 2], [2, 1, 0]]
    router.save(tmp_path)
    assert np.allclose(load_router(tmp_path, TEACHERS).strengths(texts), router.strengths(texts), atol=1e-5)


def test_a_teacher_that_cannot_be_placed_is_named() -> None:
    prompts, rewards = anchored(np.linspace(-1, 1, 4), 0.5)
    with pytest.raises(InputError, match="rising is already among"):
        place_teacher(Known(), "rising", prompts, rewards)
    for broken in (rewards.filter(pl.col("teacher") != "new"), rewards.with_columns(reward=0.0)):
        with pytest.raises(InputError, match=r"new ties with every teacher on all [04] anchors"):
            place_teacher(Known(), "new", prompts, broken)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "hinge"}, r"router\.loss is 'hinge'; .*pairwise.*listwise"),
        ({"loss": "listwise", "by_margin": True}, r"router\.by_margin .*listwise"),
        ({"light": {"layer": 1}}, r"router\.light\.layer is not a parameter; did you mean layers\?"),
        ({"light": {}, "validation": 0.1}, r"router.*light"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RouterSettings.parse({"model": "m", **changes}, "router")


def test_a_router_without_pairs_is_refused(base_model: str) -> None:
    _, rewards = planted(4)
    other = prompts_table(["nothing of that"])
    with pytest.raises(InputError, match="none of the 4 prompts with pairs is among the 1"):
        train_router(other, rewards, build_pairs(rewards, PairSettings()), TEACHERS, settings(base_model))
