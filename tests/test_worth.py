"""What routing is worth, in numbers and in words."""

from typing import Any

import numpy as np
import pytest

from persyn.router.worth import noise_floor, worth, worth_text

TEACHERS = ["a", "b"]
REWARDS = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.5, 0.4]])
"""`a` has a mean of 0.625 and loses one prompt of four, so the oracle gains 0.25."""


def trust(trust: float, gain: float, interval: list[float] | None, mde: float | None = 0.05) -> dict[str, Any]:
    return {"trust": trust, "gain": {"difference": gain, "interval": interval, "mde": mde}}


def card(found: dict[str, Any], rewards: np.ndarray = REWARDS, **more: Any) -> dict[str, Any]:
    return {"num_train": 4} | worth(found, rewards, TEACHERS) | more


def test_the_learnable_share_of_the_oracles_gap() -> None:
    found = worth(trust(0.5, 0.05, [-0.025, 0.1]), REWARDS, TEACHERS)
    assert found["one_teacher"] == "a"
    assert found["oracle_gap"] == pytest.approx(0.25)
    learnable = found["learnable"]
    assert learnable["share"] == pytest.approx(0.2)
    assert learnable["share_interval"] == pytest.approx([-0.1, 0.4])
    assert (learnable["gain"], learnable["interval"], learnable["smallest"]) == (0.05, [-0.025, 0.1], 0.05)


def test_without_a_gap_or_an_interval_there_is_no_share() -> None:
    assert worth(trust(0.0, 0.0, None, None), REWARDS, TEACHERS)["learnable"]["share_interval"] is None
    none = worth(trust(0.0, 0.0, [0.0, 0.0], None), np.ones((3, 2)), TEACHERS)
    assert none["oracle_gap"] == 0
    assert none["learnable"]["share"] is None
    assert none["learnable"]["share_interval"] is None


def test_a_supported_gain_in_words() -> None:
    assert worth_text(card(trust(0.5, 0.2, [0.1, 0.3]))) == [
        "Routing is worth +0.200 [+0.100, +0.300] of reward over a, the one best teacher (cross-validated on 4 "
        "prompts).",
        "An oracle, which knows the rewards, would gain +0.250.",
    ]


def test_a_gain_whose_interval_includes_0_is_not_claimed() -> None:
    assert worth_text(card(trust(0.5, 0.2, [-0.1, 0.5])))[0].startswith("Routing seems to be worth +0.200 [-0.100, ")


def test_a_fallback_in_words() -> None:
    assert worth_text(card(trust(0.0, -0.01, [-0.04, 0.02]))) == [
        "Routing is not shown to be worth anything (-0.010 [-0.040, +0.020] of reward over a, the one best teacher; "
        "these 4 prompts would have shown a gain of 0.050), so every prompt goes to a.",
        "An oracle would gain +0.250, but most of that is chance, or not in the prompt: at most 8% of it can be "
        "learnt.",
    ]
    below = worth_text(card(trust(0.0, -0.1, [-0.2, -0.05])))
    assert "at most 0% of it" in below[1]


def test_too_few_prompts_claim_nothing_about_the_gap() -> None:
    """Without a standard error an interval of one point says nothing."""
    for interval in (None, [0.0, 0.0]):
        first, second = worth_text(card(trust(0.0, 0.0, interval, None)))
        assert "would have shown" not in first
        assert second == "An oracle, which knows the rewards, would gain +0.250."


def test_no_gap_in_words() -> None:
    text = worth_text(card(trust(0.0, 0.0, [0.0, 0.0], None), np.ones((3, 2))))
    assert text[1] == "a is the best teacher of every prompt."


def test_a_card_without_cross_validation_says_nothing() -> None:
    assert worth_text({"hit_at_1": 0.5, "num_train": 4}) == []


def test_the_noise_floor_in_words_unless_the_method_is_finetuned() -> None:
    floor = {"same_choice": 0.61, "by_chance": 0.52, "largest_difference": 0.0312, "same_best": False}
    without = worth_text(card(trust(0.5, 0.2, [0.1, 0.3])))
    with_floor = worth_text(card(trust(0.5, 0.2, [0.1, 0.3]), noise_floor=floor))
    assert len(without) == 2
    assert with_floor[:2] == without
    assert with_floor[2] == (
        "Noise floor: routers trained on two halves of the prompts choose the same teacher on 61% of the held-out "
        "prompts (52% by chance); a teacher's mean reward differs by up to 0.031 between the halves."
    )


def test_equal_halves_agree() -> None:
    strengths = np.random.default_rng(0).random((20, 3))
    found = noise_floor(strengths, strengths, REWARDS, REWARDS)
    assert found["same_choice"] == 1.0
    assert found["largest_difference"] == 0.0
    assert found["same_best"]


def test_agreement_by_chance_by_hand() -> None:
    """Half and half against three quarters: 0.5 * 0.75 + 0.5 * 0.25. They agree on prompts 0, 1 and 3."""
    first, second = np.eye(2)[[0, 0, 1, 1]], np.eye(2)[[0, 0, 0, 1]]
    found = noise_floor(first, second, np.array([[1.0, 0.0]]), np.array([[0.2, 0.5]]))
    assert found == pytest.approx(
        {"same_choice": 0.75, "by_chance": 0.5, "largest_difference": 0.8, "same_best": False}
    )
