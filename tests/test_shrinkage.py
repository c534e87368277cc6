"""Cross-validation never sees a prompt's own reward, and decides rightly how far a router may be trusted."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import expit

from persyn.router import shrinkage
from persyn.router.settings import RouterSettings
from persyn.router.shrinkage import (
    SUPPORT,
    TRUST,
    CrossValidation,
    ShrunkRouter,
    choose_trust,
    cross_validate,
    fit_temperature,
    gain,
)
from persyn.router.smoothing import fit_smoothing_router

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


class Told:
    """A router that says what it was told, in the order of the prompts."""

    teachers = ("a", "b", "c")

    def __init__(self, said: np.ndarray) -> None:
        self.said = said

    def strengths(self, prompts: Any, sources: Any = None, features: Any = None) -> np.ndarray:
        return self.said


def predict_by(method: Any, features: np.ndarray, rewards: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """What method says of all prompts, trained on some."""
    settings = RouterSettings(model="m", method=method)
    teachers, texts = [f"t{column}" for column in range(rewards.shape[1])], ["x"] * len(rewards)

    def predict(rows: np.ndarray) -> np.ndarray:
        router = fit_smoothing_router(features[rows], ["s"] * len(rows), rewards[rows], teachers, settings)
        return router.strengths(texts, ["s"] * len(texts), features)

    return predict


def validated(rewards: np.ndarray, said: np.ndarray, is_reward: bool = True) -> CrossValidation:
    """Of a method that says the same whatever it is trained on."""
    return cross_validate(lambda rows: said, rewards, 10, 0, is_reward)


def world(number: int, seed: int, signal: float, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features (N, 1, 8), expected rewards and drawn rewards (N, 3) of teachers that are equally good on average."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(number, 1, 8)).astype(np.float32)
    expected = 0.5 + signal * features[:, 0, :1] * np.array([1.0, -1.0, 0.0]) + np.array([0.0, 0.0, 0.02])
    return features, expected, expected + rng.normal(scale=noise, size=expected.shape)


@pytest.mark.parametrize("method", ["regression", "knn", "blend"])
def test_no_prompt_has_a_part_in_what_is_said_of_it(method: str) -> None:
    features, _, rewards = world(40, 0, 0.3)
    before = cross_validate(predict_by(method, features, rewards), rewards, 5, 0, True)
    assert before.slope > 0
    for row in (0, 17):
        changed = rewards.copy()
        changed[row] += [5.0, -5.0, 2.0]
        after = cross_validate(predict_by(method, features, changed), changed, 5, 0, True)
        together = before.fold == before.fold[row]
        assert after.slope > 0
        assert after.base[together] == pytest.approx(before.base[together])
        said = [found.added[together] / found.slope for found in (before, after)]
        assert said[1] == pytest.approx(said[0])
        others = [found.added[~together] / found.slope for found in (before, after)]
        assert others[1] != pytest.approx(others[0])


def test_every_fold_is_asked_about_by_a_router_trained_on_the_others() -> None:
    seen: list[set[int]] = []
    rewards = np.random.default_rng(0).random((11, 3))

    def predict(rows: np.ndarray) -> np.ndarray:
        seen.append(set(rows.tolist()))
        return rewards

    found = cross_validate(predict, rewards, 4, 0, True)
    assert [set(range(11)) - rows for rows in seen] == [set(np.flatnonzero(found.fold == part)) for part in range(4)]
    assert sorted(np.bincount(found.fold)) == [2, 3, 3, 3]
    assert len(set(cross_validate(predict, rewards, 50, 0, True).fold.tolist())) == 11, "one fold a prompt at most"


def test_the_slope_turns_strengths_into_rewards_and_never_enlarges_a_reward() -> None:
    rewards = np.random.default_rng(0).random((200, 3))
    for factor, slope in ((4.0, 0.25), (0.25, 4.0)):
        strengths = validated(rewards, rewards * factor, is_reward=False)
        assert strengths.slope == pytest.approx(slope, rel=0.02)
        assert validated(rewards, rewards * factor).slope <= 1
    assert validated(rewards, -rewards, is_reward=False).slope == 0, "never turned round"


def test_a_strong_signal_is_trusted() -> None:
    features, _, rewards = world(300, 0, 0.3)
    found = cross_validate(predict_by("regression", features, rewards), rewards, 10, 0, True)
    trust = choose_trust(found, rewards, 0)
    assert trust["trust"] in TRUST
    assert trust["signal_p"] == trust["gain_p"] == 0.001
    assert trust["gain"]["interval"][0] > 0
    assert trust == choose_trust(found, rewards, 0)
    json.dumps(trust, allow_nan=False)


def test_what_is_learnt_from_shuffled_rewards_is_not_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then every prompt goes to the one best teacher. One in a hundred passes the first test by chance."""
    monkeypatch.setattr(shrinkage, "SHUFFLES", 199)
    trusted = 0
    for seed in range(20):
        features, _, rewards = world(150, seed, 0.3)
        rewards = rewards[np.random.default_rng(seed).permutation(150)]
        predict = predict_by("blend", features, rewards)
        found = cross_validate(predict, rewards, 10, seed, True)
        trust = choose_trust(found, rewards, seed)
        trusted += trust["trust"] > 0
        if not trust["trust"]:
            said = predict(np.arange(150))
            router = ShrunkRouter(Told(said), rewards.mean(axis=0), said.mean(axis=0), 0.0, 1.0)
            assert set(router.strengths(["x"] * 150).argmax(axis=1)) == {rewards.mean(axis=0).argmax()}
    assert trusted <= 2


def test_a_weak_signal_costs_no_reward_on_new_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One teacher is a little better on some prompts. Expected rewards of 2,000 new prompts, over 20 training sets."""
    monkeypatch.setattr(shrinkage, "SHUFFLES", 199)
    over, plain = [], []
    for seed in range(20):
        features, _, rewards = world(150, seed, 0.03)
        new, expected, _ = world(2000, 1000 + seed, 0.03)
        predict = predict_by("blend", np.concatenate([features, new]), np.concatenate([rewards, expected]))
        said = predict(np.arange(150))
        found = cross_validate(predict_by("blend", features, rewards), rewards, 10, seed, True)
        trust = choose_trust(found, rewards, seed)
        means, centre = rewards.mean(axis=0), said[:150].mean(axis=0)
        router = ShrunkRouter(Told(said[150:]), means, centre, trust["trust"] * trust["slope"], 1.0)
        rows, one = np.arange(2000), expected[:, means.argmax()]
        over.append((expected[rows, router.strengths(["x"] * 2000).argmax(axis=1)] - one).mean())
        plain.append((expected[rows, said[150:].argmax(axis=1)] - one).mean())
    assert np.mean(over) >= -0.001
    assert np.min(over) > np.min(plain), "trusting the method loses more at worst"


def specialists(number: int, seed: int, all_round: float) -> tuple[np.ndarray, np.ndarray]:
    """Rewards of a teacher for half of the prompts, one for the others, and one that is good at all; and the kinds."""
    rng = np.random.default_rng(seed)
    kind = rng.permutation(number) % 2
    expected = np.stack([kind == 0, kind == 1, np.full(number, all_round)], axis=1).astype(float)
    return expected + rng.normal(scale=0.02, size=expected.shape), kind


def test_full_trust_is_chosen_where_half_of_it_sends_nothing_to_the_specialists() -> None:
    """A specialist's mean is 0.5: pulled half-way or three quarters there it stays below the all-round teacher."""
    rewards, kind = specialists(200, 0, 0.9)

    def predict(rows: np.ndarray) -> np.ndarray:
        means = np.stack([rewards[rows][kind[rows] == one].mean(axis=0) for one in (0, 1)])
        return means[kind]

    found = cross_validate(predict, rewards, 10, 0, True)
    assert [gain(found, rewards, s).mean() > 0.05 for s in TRUST] == [False, False, True]
    trust = choose_trust(found, rewards, 0)
    assert trust["trust"] == 1.0
    assert trust["gains"]["1.0"] == pytest.approx(0.1, abs=0.01)
    assert trust["gain"]["interval"][0] > 0


def test_the_least_trust_is_chosen_where_more_of_it_gains_nothing() -> None:
    rewards, kind = specialists(200, 0, 0.6)
    trust = choose_trust(validated(rewards, np.eye(3)[kind]), rewards, 0)
    assert trust["trust"] == TRUST[0]
    assert trust["gains"]["0.5"] == pytest.approx(trust["gains"]["1.0"], abs=0.01)


def test_the_gain_by_hand() -> None:
    base = np.tile([0.5, 0.6], (3, 1))
    found = CrossValidation(np.arange(3), base, np.array([[0.3, 0.0], [0.15, 0.0], [0.0, 0.1]]), 1.0)
    rewards = np.array([[1.0, 0.2], [0.1, 0.3], [0.4, 0.5]])
    assert gain(found, rewards, 1.0) == pytest.approx([0.8, -0.2, 0.0])
    assert gain(found, rewards, 0.5) == pytest.approx([0.8, 0.0, 0.0]), "0.575 is below 0.6"
    assert len(SUPPORT) == 5


def test_the_planted_temperature_is_found_and_calibrates() -> None:
    """Two teachers, rewards drawn by sigmoid(8 * difference)."""
    rng = np.random.default_rng(0)
    said = rng.normal(scale=0.3, size=(4000, 2))
    wins = rng.random(4000) < expit(8 * (said[:, 0] - said[:, 1]))
    rewards = np.stack([wins, ~wins], axis=1).astype(float)
    found = CrossValidation(np.arange(4000) % 10, np.zeros((4000, 2)), said, 1.0)
    temperature = fit_temperature(found, rewards, 1.0)
    assert temperature == pytest.approx(8, rel=0.1)
    assert fit_temperature(found, rewards, 0.5) == pytest.approx(2 * temperature, rel=0.01)

    def error(strengths: np.ndarray) -> float:
        known = expit(strengths[:, 0] - strengths[:, 1])
        bins = np.digitize(known, np.linspace(0, 1, 11)[1:-1])
        return sum(abs((wins - known)[bins == one].sum()) for one in range(10)) / len(wins)

    router = ShrunkRouter(Told(said), [0.0, 0.0], [0.0, 0.0], 1.0, temperature)
    assert error(router.strengths(["x"] * 4000)) < 0.02 < 0.1 < error(said)


def test_a_temperature_keeps_the_order_of_strengths_that_tell_nothing() -> None:
    rewards = np.random.default_rng(0).random((50, 3))
    assert 0 < fit_temperature(validated(rewards, -rewards), rewards, 1.0) < np.inf
    assert fit_temperature(validated(np.full((50, 3), 0.3), rewards), np.full((50, 3), 0.3), 1.0) == 1.0
    same = CrossValidation(np.arange(50) % 10, np.full((50, 3), 0.5), np.zeros((50, 3)), 0.0)
    assert fit_temperature(same, rewards, 0.0) == 1.0
    certain = CrossValidation(np.arange(50) % 10, np.zeros((50, 3)), rewards, 1.0)
    assert 0 < fit_temperature(certain, rewards, 1.0) < np.inf


@pytest.mark.parametrize("number", [1, 2, 3, 5])
@pytest.mark.parametrize("case", ["random", "equal rewards", "one teacher", "equal features"])
def test_hardly_any_information_is_not_trusted(number: int, case: str) -> None:
    features, _, rewards = world(number, 0, 1.0)
    rewards = np.full_like(rewards, 0.3) if case == "equal rewards" else rewards
    rewards = rewards[:, :1] if case == "one teacher" else rewards
    features = np.full_like(features, 0.1) if case == "equal features" else features
    found = cross_validate(predict_by("blend", features, rewards), rewards, 10, 0, True)
    trust = choose_trust(found, rewards, 0)
    assert trust["trust"] == 0
    assert np.isfinite(fit_temperature(found, rewards, 0.0))
    json.dumps(trust, allow_nan=False)


def test_a_saved_shrinkage_is_the_same_to_the_last_bit(tmp_path: Path) -> None:
    class Saved(Told):
        def save(self, folder: str | Path) -> None:
            """Nothing of its own."""

    said = np.random.default_rng(0).random((5, 3))
    router = ShrunkRouter(Saved(said), said.mean(axis=0) / 3, said[0] / 7, 0.1 + 0.2, 1 / 3)
    router.save(tmp_path)
    rest = json.loads((tmp_path / shrinkage.SHRINKAGE).read_text())
    again = ShrunkRouter(Told(said), **rest)
    assert np.array_equal(again.strengths(["x"] * 5), router.strengths(["x"] * 5))
    untrusted = ShrunkRouter(Told(np.full((5, 3), np.nan)), [0.1, 0.3, 0.2], [0.0] * 3, 0.0, 2.0)
    assert untrusted.strengths(["x"] * 5) == pytest.approx(np.tile([0.2, 0.6, 0.4], (5, 1))), "it is not asked"
