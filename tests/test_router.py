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
from persyn.router import fit_router, fit_trusted, load_router, read_lesson, router_split, train_router
from persyn.router.features import embed
from persyn.router.finetuned import CLASS_TOKEN, FinetunedRouter, encode_prompts
from persyn.router.losses import bradley_terry_loss, plackett_luce_loss, win_matrices
from persyn.router.metrics import (
    allocation_metrics,
    health_card,
    majority_strengths,
    pair_metrics,
    reliability,
    routing_metrics,
    split_prompts,
)
from persyn.router.placement import PlacedRouter, place_teacher
from persyn.router.settings import RouterSettings
from persyn.router.worth import worth_text
from persyn.schemas import REWARDS
from persyn.training import Session
from persyn.training.lora import LoraSettings
from tests.support.planted import POEM, SOURCES, SUM, TEACHERS, planted, settings
from tests.support.tables import prompts_table

CHEAP: dict[str, dict[str, Any]] = {
    name: {"method": name, "shrink": True} for name in ("blend", "regression", "knn", "source", "linear")
}
"""The methods that train no backbone, as the shipped parameters have them."""


def fit(number: int, model: str, anchored: tuple[str, ...] = (), **changes: Any) -> tuple[Any, dict[str, Any], Any]:
    """fit_router on so many planted prompts."""
    prompts, rewards = planted(number)
    pairs = build_pairs(rewards, PairSettings())
    return fit_router(prompts, rewards, pairs, TEACHERS, settings(model, **changes), anchored)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"by_margin": True},
        {"loss": "listwise"},
        {"lora": {"r": 8, "alpha": 16}, "learning_rate": 1e-2},
        {"validation": 0.25, "patience": 20},
        {"shrink": True, "folds": 2, "epochs": 10},
        *CHEAP.values(),
        {"method": "blend"},
        {"method": "linear", "layers": [0], "loss": "listwise"},
    ],
    ids=str,
)
def test_planted_strengths_are_recovered_in_order_and_shuffled_labels_are_not(
    changes: dict[str, Any], base_model: str, tmp_path: Path
) -> None:
    router, card, bins = fit(32, base_model, **changes)
    strengths = router.strengths([SUM, POEM], SOURCES)
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
    assert card["controls"]["source"]["regret"] == 0.0, "the sources tell all"
    if changes.get("shrink"):
        assert card["trust"]["trust"] > 0
        assert card["learnable"]["gain"] > 0
        assert changes.get("folds") == 2 or card["learnable"]["interval"][0] > 0, "two folds have a wide interval"
        assert card["controls"]["unshrunk"]["regret"] == 0.0
    assert ("trust" in card) == bool(changes.get("shrink"))
    assert ("noise_floor" in card) == ("method" in changes), "two more fine-tunings are not worth it"

    router.save(tmp_path)
    assert list(tmp_path.rglob("*.safetensors"))
    assert not list(tmp_path.rglob("*.bin"))
    assert np.allclose(load_router(tmp_path, TEACHERS).strengths([SUM, POEM], SOURCES), strengths, atol=1e-5)
    with pytest.raises(InputError, match="dvc repro router"):
        load_router(tmp_path, ["low", "high"])


@pytest.mark.parametrize("name", CHEAP)
def test_where_prompts_tell_nothing_all_go_to_the_one_best_teacher(name: str, base_model: str) -> None:
    prompts, rewards = planted(32)
    order = np.random.default_rng(3).permutation(32)
    moved = pl.DataFrame({"prompt_id": prompts["prompt_id"], "now": prompts["prompt_id"][order]})
    rewards = rewards.join(moved, on="prompt_id").with_columns(prompt_id="now").drop("now")
    tables = prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS
    router, card, _ = fit_router(*tables, settings(base_model, **CHEAP[name]))
    assert card["trust"]["trust"] == 0
    assert card["share"][card["one_teacher"]] == 1.0
    assert card["over_majority"]["identical"]
    assert set(router.strengths([SUM, POEM], SOURCES).argmax(axis=1)) == {TEACHERS.index(card["one_teacher"])}


def files(folder: Path) -> dict[str, bytes]:
    """The files below a folder: name -> bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_placed_teacher_changes_nothing_of_the_trained_router(
    base_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts, rewards = planted(32)
    known, few = rewards.filter(pl.col("teacher") != "middle"), prompts["prompt_id"].sort()[:6].to_list()
    beside = rewards.filter((pl.col("teacher") != "middle") | pl.col("prompt_id").is_in(few))
    how, names = settings(base_model, method="regression"), [name for name in TEACHERS if name != "middle"]
    alone, card, _ = fit_router(prompts, known, build_pairs(known, PairSettings()), names, how)
    with monkeypatch.context() as patch:
        patch.setattr("persyn.router.train_router", None)  # nothing is trained
        placed, more, _ = fit_router(prompts, beside, build_pairs(beside, PairSettings()), TEACHERS, how, ["middle"])
    columns = [TEACHERS.index(name) for name in names]
    asked = [SUM, POEM], SOURCES
    assert np.array_equal(placed.strengths(*asked)[:, columns], alone.strengths(*asked))
    assert more.pop("placed").keys() == {"middle"}
    del card["placed"]
    assert card == more


@pytest.mark.parametrize("shrink", [True, False])
def test_methods_beside_the_router_are_saved_with_it(shrink: bool, base_model: str, tmp_path: Path) -> None:
    """All of them, each with the placed teacher; and the same inputs give the same bytes."""
    beside = ["regression", "knn", "source", "linear"]
    runs = [
        fit(32, base_model, ("middle",), method="blend", beside=beside, shrink=shrink, folds=5)[:2] for _ in range(2)
    ]
    for number, (router, card) in enumerate(runs):
        router.save(tmp_path / str(number))
        assert set(beside) < set(card["controls"])
        assert card["placed"]["middle"]["anchors"] == 32
    assert files(tmp_path / "0") == files(tmp_path / "1")
    assert runs[0][1] == runs[1][1]
    (tmp_path / "0").rename(tmp_path / "saved")
    router = runs[0][0]
    for method, each in [(None, router), *router.beside.items()]:
        loaded = load_router(tmp_path / "saved", TEACHERS, method)
        strengths = loaded.strengths([SUM, POEM], SOURCES)
        assert loaded.teachers == TEACHERS
        assert np.array_equal(strengths, each.strengths([SUM, POEM], SOURCES))
        assert strengths.argmax(axis=1).tolist() == [2, 0]
    with pytest.raises(InputError, match=r"beside/finetuned does not exist; name finetuned in router\.beside"):
        load_router(tmp_path / "saved", TEACHERS, "finetuned")
    with pytest.raises(InputError, match=r"nowhere does not exist; run `dvc repro router`"):
        load_router(tmp_path / "nowhere", TEACHERS)


def test_a_finetuned_router_beside_another_one(base_model: str, tmp_path: Path) -> None:
    """It keeps its adapter, its shrinkage and the placed teacher."""
    lora: dict[str, Any] = {"r": 8, "alpha": 16}
    changes: dict[str, Any] = {"method": "source", "beside": ["finetuned"], "lora": lora, "learning_rate": 1e-2}
    router, card, _ = fit(32, base_model, ("middle",), **changes, shrink=True, folds=2)
    assert card["controls"]["finetuned"]["regret"] == 0.0
    router.save(tmp_path)
    loaded = load_router(tmp_path, TEACHERS, "finetuned")
    strengths = router.beside["finetuned"].strengths([SUM, POEM])
    assert strengths.argmax(axis=1).tolist() == [2, 0]
    assert np.allclose(loaded.strengths([SUM, POEM]), strengths, atol=1e-5)
    assert settings(base_model, **changes).for_method("finetuned").lora == LoraSettings(**lora)
    assert settings(base_model, **changes).for_method("knn").lora is None


def test_routers_of_a_killed_run_are_not_trained_again(
    base_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of the folds, too; of each fold, only the trained router is kept."""
    prompts, rewards = planted(32)
    lesson = read_lesson(prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS)
    short, session = settings(base_model, shrink=True, folds=2, epochs=1), Session(tmp_path / "router")
    first, trust = fit_trusted(lesson, short, session)
    assert len([path for path in tmp_path.iterdir() if path.name.startswith("finetuned-")]) == 2
    assert not list(tmp_path.glob("finetuned-*/checkpoint-*"))
    monkeypatch.setattr("persyn.router.finetuned.train", None)  # nothing trains
    second, again = fit_trusted(lesson, short, session)
    assert trust == again
    assert np.array_equal(first.router.strengths([SUM]), second.router.strengths([SUM]))


@pytest.mark.parametrize("changes", [{}, {"method": "linear"}])
def test_losing_pairs_reversed_reverse_the_router(changes: dict[str, Any], base_model: str) -> None:
    """The sign is right: handing winners over as losers turns the ranking round."""
    prompts, rewards = planted(16)
    pairs = build_pairs(rewards, PairSettings()).rename({"winner": "loser", "loser": "winner"})
    router = train_router(read_lesson(prompts, rewards, pairs, TEACHERS), settings(base_model, **changes))
    assert router.strengths([SUM])[0].argsort().tolist() == [2, 1, 0]


def test_the_number_of_training_prompts_changes_nothing_of_what_measures(base_model: str) -> None:
    _, few, _ = fit(32, base_model, num_train=4, method="linear")
    _, many, _ = fit(32, base_model, method="linear")
    assert (few["num_train"], many["num_train"]) == (4, 24)
    assert few["num_held_out"] == many["num_held_out"] == 8
    assert few["oracle_share"] == many["oracle_share"]
    with pytest.raises(InputError, match=r"router.num_train is 25; it must be 1 to 24"):
        fit(32, base_model, num_train=25, method="linear")


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize("name", CHEAP)
def test_hardly_any_training_prompts_leave_one_teacher(name: str, number: int, base_model: str) -> None:
    router, card, _ = fit(32, base_model, num_train=number, **CHEAP[name])
    strengths = router.strengths([SUM, POEM], SOURCES)
    assert np.isfinite(strengths).all()
    assert card["trust"]["trust"] == 0
    assert card["share"][card["one_teacher"]] == 1.0
    assert worth_text(card)[0].startswith("Routing is not shown to be worth anything")
    json.dumps(card, allow_nan=False)


@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_folds_without_a_pair_teach_nothing(base_model: str) -> None:
    """All pairs belong to one prompt: without it, a Bradley-Terry router has nothing to learn from."""
    prompts, rewards = planted(32)
    train, _, _ = router_split(prompts, rewards, settings(base_model))
    pairs = build_pairs(rewards, PairSettings()).filter(prompt_id=train["prompt_id"][0])
    _, card, _ = fit_router(prompts, rewards, pairs, TEACHERS, settings(base_model, **CHEAP["linear"]))
    assert card["trust"]["trust"] == 0
    assert "noise_floor" not in card


@pytest.mark.filterwarnings("error::RuntimeWarning")
@pytest.mark.parametrize("teachers", [["high"], ["low", "high"]])
@pytest.mark.parametrize("name", ["blend", "source"])
def test_one_or_two_teachers(name: str, teachers: list[str], base_model: str) -> None:
    prompts, rewards = planted(32)
    pairs = build_pairs(rewards, PairSettings())
    tables = prompts, rewards.filter(pl.col("teacher").is_in(teachers)), pairs, teachers
    router, card, _ = fit_router(*tables, settings(base_model, **CHEAP[name]))
    assert router.strengths([SUM, POEM], SOURCES).argmax(axis=1).tolist() == [len(teachers) - 1, 0]
    assert (card["trust"]["trust"] > 0) == (len(teachers) == 2)
    assert len(worth_text(card)) == 3


def test_layers_that_the_model_lacks_are_refused(base_model: str) -> None:
    assert embed(["one", "two"], base_model, layers=[0, 2, 1]).shape[:2] == (2, 3)
    assert embed(["one"], base_model).shape[:2] == (1, 2), "a quarter of the way up, and the last"
    with pytest.raises(InputError, match=r"router\.layers is \[3\], but .* has 2 layers; name layers from 0 to 2"):
        embed(["one"], base_model, layers=[3])


def test_early_stopping_keeps_the_best_epoch(base_model: str) -> None:
    """With a learning rate that destroys the router, the first epochs are better than the last."""
    router, card, _ = fit(32, base_model, learning_rate=3.0, validation=0.25, epochs=12, patience=2)
    assert np.isfinite(router.strengths([SUM])).all()
    assert card["num_validation"] == 6


def test_a_decoder_gets_a_class_token_that_text_cannot_spell(base_model: str) -> None:
    prompts, rewards = planted(8)
    lesson = read_lesson(prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS)
    router = train_router(lesson, settings(base_model, epochs=1, max_length=6))
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
    few = routing_metrics(strengths[:, :3], rewards[:, :3])
    assert few == pytest.approx({"hit_at_1": 0.5, "hit_at_3": None, "hit_at_3_oracle": None, "regret": 0.25})
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
    assert majority_strengths(rewards, 2).argmax(axis=1).tolist() == [0, 0]
    prompts, _ = planted()
    train, held_out = split_prompts(prompts, 0.25)
    assert (train.height, held_out.height) == (18, 6)
    assert set(train["prompt_id"]).isdisjoint(held_out["prompt_id"])
    assert split_prompts(prompts.reverse(), 0.25)[1].sort("prompt_id").equals(held_out.sort("prompt_id"))
    with pytest.raises(InputError, match=r"router.holdout 0.0 of 24 .* holds out 0"):
        split_prompts(prompts, 0.0)


def test_a_shuffled_lesson_gives_each_prompt_what_another_one_has() -> None:
    prompts, rewards = planted(32)
    lesson = read_lesson(prompts, rewards, build_pairs(rewards, PairSettings()), TEACHERS)
    assert lesson.prompts["prompt_id"].is_sorted()
    shuffled = lesson.shuffled(seed=0)
    assert sorted(shuffled.rewards.tolist()) == sorted(lesson.rewards.tolist())
    assert shuffled.rewards.tolist() != lesson.rewards.tolist()
    wins = win_matrices(shuffled.pairs, TEACHERS)
    for identity, row in zip(shuffled.prompts["prompt_id"], shuffled.rewards, strict=True):
        assert wins[identity].tolist() == (row[:, None] > row[None, :]).tolist(), "pairs and rewards move together"


class Known:
    """A router of two teachers: strengths by the prompt's number, -1 to 1, and its opposite."""

    teachers = ("rising", "falling")

    def strengths(self, prompts: list[str], sources: list[str] | None = None, features: Any = None) -> np.ndarray:
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
    router, card, _ = fit_router(*tables, TEACHERS, settings(base_model, method="linear"), ["middle"])
    without, alone, _ = fit_router(*tables, ["low", "high"], settings(base_model, method="linear"))
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
        ({"light": {}}, r"router\.light is not a parameter; it is called method \(`method: linear`, .*\) now"),
        ({"methods": "knn"}, r"router\.methods is not a parameter; did you mean method\?"),
        ({"method": "light"}, r"router\.method is 'light'; it must be one of blend, .*finetuned"),
        ({"method": "linear", "validation": 0.1}, r"router\.method is linear, which trains no backbone"),
        ({"lora": {}}, r"router\.method is regression, which trains no backbone; leave lora and validation out"),
        ({"method": "knn", "beside": ["knn"]}, r"router\.beside names knn, which is the method itself"),
        ({"folds": 1}, r"router\.folds is 1; it must be a whole number, 2 or more"),
        ({"layers": []}, r"router\.layers"),
        ({"neighbours": []}, r"router\.neighbours"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RouterSettings.parse({"model": "m", **changes}, "router")


def test_a_router_without_pairs_is_refused(base_model: str) -> None:
    _, rewards = planted(4)
    other = prompts_table(["nothing of that"])
    with pytest.raises(InputError, match="none of the 4 prompts with pairs is among the 1"):
        train_router(read_lesson(other, rewards, build_pairs(rewards, PairSettings()), TEACHERS), settings(base_model))
