"""Scaling, source means, ridge and nearest neighbours against plain loops, and on inputs that are hardly any."""

from typing import Any

import numpy as np
import pytest

from persyn.router.features import Scaling
from persyn.router.settings import RouterSettings
from persyn.router.smoothing import SmoothingRouter, fit_smoothing_router, knn, ridge, source_means

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")


def random_features(number: int, seed: int = 0, hidden: int = 16) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(number, 2, hidden)).astype(np.float32)


def fit(method: Any, features: np.ndarray, rewards: np.ndarray, sources: list[str], **changes: Any) -> SmoothingRouter:
    teachers = [f"t{column}" for column in range(rewards.shape[1])]
    settings = RouterSettings(model="m", method=method, **changes)
    return fit_smoothing_router(None if method == "source" else features, sources, rewards, teachers, settings)


def test_sources_that_do_not_differ_get_the_means_of_all() -> None:
    half = np.random.default_rng(0).random((50, 3))
    means = source_means(["a"] * 50 + ["b"] * 50, np.concatenate([half, half]))
    assert means["a"] == pytest.approx(half.mean(axis=0))
    assert means["b"] == pytest.approx(half.mean(axis=0))


def test_sources_that_differ_by_chance_get_nearly_the_means_of_all() -> None:
    rewards = np.random.default_rng(1).random((400, 3))
    sources = [f"s{row % 8}" for row in range(400)]
    plain = [rewards[start::8].mean(axis=0) - rewards.mean(axis=0) for start in range(8)]
    shrunk = [mean - rewards.mean(axis=0) for mean in source_means(sources, rewards).values()]
    assert np.square(shrunk).sum() < 0.25 * np.square(plain).sum()


def test_the_share_that_a_source_keeps_by_hand() -> None:
    """Two sources of two prompts, means 2 and 6: 4 within, and (16 - 4) / (4 - 8 / 4) = 6 between them."""
    rewards = np.array([[2 - 2**0.5], [2 + 2**0.5], [6 - 2**0.5], [6 + 2**0.5]])
    means = source_means(["a", "a", "b", "b"], rewards)
    assert means["a"] == pytest.approx([4 - 2 * 2 / (2 + 4 / 6)])
    assert means["b"] == pytest.approx([4 + 2 * 2 / (2 + 4 / 6)])


def test_sources_that_differ_much_keep_nearly_their_own_means() -> None:
    """A large one more so than one of two prompts."""
    rng = np.random.default_rng(2)
    sources = ["a"] * 40 + ["b"] * 40 + ["few"] * 2
    centres = {"a": [0.0, 1.0], "b": [1.0, 0.0], "few": [-1.0, 2.0]}
    rewards = np.array([centres[source] for source in sources]) + rng.normal(scale=0.3, size=(82, 2))
    means = source_means(sources, rewards)
    of = np.array(sources)
    kept = {
        name: np.linalg.norm(means[name] - rewards.mean(axis=0))
        / np.linalg.norm(rewards[of == name].mean(axis=0) - rewards.mean(axis=0))
        for name in centres
    }
    assert kept["a"] == pytest.approx(kept["b"])
    assert 0.99 < kept["a"] < 1
    assert 0.9 < kept["few"] < kept["a"]


@pytest.mark.parametrize("sources", [["a"] * 3, ["a", "b", "c"]], ids=["one source", "one prompt each"])
def test_sources_that_cannot_be_told_from_chance_get_the_means_of_all(sources: list[str]) -> None:
    rewards = np.array([[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
    assert {tuple(mean) for mean in source_means(sources, rewards).values()} == {tuple(rewards.mean(axis=0))}


def test_a_new_source_gets_the_means_of_all_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    rewards = np.array([[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.9, 0.1]])
    router = fit("source", random_features(4), rewards, ["a", "a", "b", "b"])
    assert router.strengths(["x", "y"], ["a", "b"]).argmax(axis=1).tolist() == [1, 0]
    assert not caplog.text
    assert router.strengths(["x", "y", "z"], ["new", "a", "newer"])[0] == pytest.approx([0.5, 0.5])
    assert "2 of 3 prompts come from no source that the router was trained on (first: 'new')" in caplog.text
    caplog.clear()
    assert router.strengths(["x", "y"]) == pytest.approx(np.full((2, 2), 0.5))
    assert "2 of 2 prompts" in caplog.text
    assert router.strengths([], []).shape == (0, 2)


def test_ridge_solves_its_normal_equations_in_both_forms() -> None:
    rng = np.random.default_rng(0)
    for number, dimensions in ((30, 5), (5, 30), (7, 7)):
        features, targets = rng.normal(size=(number, dimensions)), rng.normal(size=(number, 3))
        found = ridge(features, targets, 2.5)
        gradient = features.T @ (features @ found - targets) + 2.5 * found
        assert np.abs(gradient).max() < 1e-9
        stacked = np.concatenate([features, np.sqrt(2.5) * np.eye(dimensions)])
        padded = np.concatenate([targets, np.zeros((dimensions, 3))])
        assert found == pytest.approx(np.linalg.lstsq(stacked, padded, rcond=None)[0], abs=1e-9)


def test_knn_is_a_plain_loop_over_the_sorted_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persyn.router.smoothing.CHUNK", 4)
    rng = np.random.default_rng(0)
    features, targets, asked = rng.normal(size=(40, 6)), rng.normal(size=(40, 3)), rng.normal(size=(11, 6))
    expected = []
    for vector in asked:
        order = sorted(range(40), key=lambda row: -float(features[row] @ vector))
        expected.append(np.mean([targets[order[:number]].mean(axis=0) for number in (3, 10, 40)], axis=0))
    assert knn(features, targets, asked, [3, 10, 40]) == pytest.approx(np.array(expected))
    assert knn(features, targets, asked[:0], [3]).shape == (0, 3)


def test_scaling_gives_rows_of_length_1_from_the_training_prompts_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    train, asked = random_features(50), random_features(9, seed=1)
    scaling = Scaling.fit(train, 5)
    rows = scaling(asked)
    assert rows.shape == (9, 5)
    assert rows.dtype == np.float32
    assert np.linalg.norm(rows, axis=1) == pytest.approx(np.ones(9), abs=1e-5)
    assert scaling(asked[:1])[0] == pytest.approx(rows[0], abs=1e-6), "other prompts asked about do not matter"
    monkeypatch.setattr("persyn.router.features.CHUNK", 4)
    assert scaling(asked) == pytest.approx(rows, abs=1e-6)


def test_scaling_takes_away_the_units_of_the_features() -> None:
    train, asked = random_features(50), random_features(9, seed=1)
    units = np.random.default_rng(2).uniform(0.01, 100, size=(2, 16)).astype(np.float32)
    plain, other = Scaling.fit(train, 5)(asked), Scaling.fit(train * units + 3, 5)(asked * units + 3)
    assert other @ other.T == pytest.approx(plain @ plain.T, abs=1e-2)


def test_the_axes_are_those_of_most_variance_whichever_way_they_are_found() -> None:
    """Forty prompts with 32 numbers each are decomposed by their squares, twenty directly."""
    for number in (40, 20):
        train = random_features(number)
        scaling = Scaling.fit(train, 3)
        unit = scaling._unit(train) - scaling.centre
        expected = np.linalg.svd(unit, full_matrices=False)[2][:3].T
        assert np.abs((scaling.axes * expected).sum(axis=0)) == pytest.approx(np.ones(3), abs=1e-4)


@pytest.mark.parametrize("method", ["blend", "regression", "knn", "source"])
@pytest.mark.parametrize("case", ["one", "two", "equal features", "a constant", "equal rewards", "one teacher"])
def test_hardly_any_information_gives_finite_strengths(method: str, case: str) -> None:
    number = {"one": 1, "two": 2}.get(case, 12)
    features, rewards = random_features(number), np.random.default_rng(1).random((number, 3))
    if case == "equal features":
        features = np.full_like(features, 0.1)
    if case == "a constant":
        features[:, :, 0] = 0.1
    rewards = np.full_like(rewards, 0.3) if case == "equal rewards" else rewards
    rewards = rewards[:, :1] if case == "one teacher" else rewards
    sources = ["ab"[row % 2] for row in range(number)]
    router = fit(method, features, rewards, sources, components=30)
    strengths = router.strengths(["x"] * 5, ["a"] * 5, random_features(5, seed=2))
    assert strengths.shape == (5, rewards.shape[1])
    assert np.isfinite(strengths).all()
    if case in ("one", "equal features", "equal rewards"):
        assert np.ptp(strengths, axis=0).max() < 1e-6, "nothing tells these prompts apart"


def test_a_constant_among_the_features_does_not_drown_the_others() -> None:
    train, asked = random_features(300), random_features(9, seed=1)
    train[:, :, 0], asked[:, :, 0] = 0.1, 0.1
    rows = Scaling.fit(train, 31)(asked)
    without = Scaling.fit(np.ascontiguousarray(train[:, :, 1:]), 31)(np.ascontiguousarray(asked[:, :, 1:]))
    assert rows @ rows.T == pytest.approx(without @ without.T, abs=1e-3)


def test_there_are_no_more_axes_than_the_prompts_have_directions() -> None:
    """Three prompts span two directions about their mean; a third axis would be noise on new prompts."""
    assert Scaling.fit(random_features(3), 20).axes.shape == (32, 2)
    assert Scaling.fit(random_features(40, hidden=4), 20).axes.shape[1] <= 8
    assert Scaling.fit(random_features(1), 20).axes.shape == (32, 1)
