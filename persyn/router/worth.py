"""What routing is worth: how much of the oracle's gap can be learnt, and how much of it is chance.

Legend: N prompts, M teachers.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np


def worth(trust: Mapping[str, Any], rewards: np.ndarray, teachers: Sequence[str]) -> dict[str, Any]:
    """The part of metrics/router.json that says what routing is worth.

    Args:
        trust: shrinkage.choose_trust.
        rewards: (N, M) on the training prompts.

    Returns:
        trust; one_teacher: the best for all; oracle_gap: mean reward of each prompt's best teacher less that of the one
        teacher, on the training prompts; learnable: {gain (the cross-validated one), interval, smallest (the smallest
        gain that would have been found 4 times in 5), share (of the oracle's gap), share_interval}.
    """
    best = int(rewards.mean(axis=0).argmax())
    gap = float((rewards.max(axis=1) - rewards[:, best]).mean())
    gain = trust["gain"]
    shares = [bound / gap for bound in gain["interval"]] if gap and gain["interval"] else None
    learnable = {
        "gain": gain["difference"],
        "interval": gain["interval"],
        "smallest": gain["mde"],
        "share": gain["difference"] / gap if gap else None,
        "share_interval": shares,
    }
    return {"trust": dict(trust), "one_teacher": teachers[best], "oracle_gap": gap, "learnable": learnable}


def noise_floor(
    first: np.ndarray, second: np.ndarray, first_rewards: np.ndarray, second_rewards: np.ndarray
) -> dict[str, Any]:
    """How far two halves of the training prompts agree.

    Args:
        first, second: strengths (N, M) on the same held-out prompts of routers trained, without shrinkage, on one half
            each.
        first_rewards, second_rewards: (N / 2, M) on the halves.

    Returns:
        same_choice: share of the held-out prompts on which both choose the same teacher; by_chance: that share if each
        chose as often as it does, but for other prompts; largest_difference: the largest difference between the halves
        in a teacher's mean reward; same_best: whether both name the same teacher best for all.
    """
    chosen = [strengths.argmax(axis=1) for strengths in (first, second)]
    shares = [np.bincount(choice, minlength=first.shape[1]) / len(choice) for choice in chosen]
    means = [rewards.mean(axis=0) for rewards in (first_rewards, second_rewards)]
    return {
        "same_choice": float((chosen[0] == chosen[1]).mean()),
        "by_chance": float(shares[0] @ shares[1]),
        "largest_difference": float(np.abs(means[0] - means[1]).max()),
        "same_best": bool(means[0].argmax() == means[1].argmax()),
    }


def worth_text(card: Mapping[str, Any]) -> list[str]:
    """Sentences that say what metrics/router.json holds of this; none where nothing was cross-validated."""
    if "learnable" not in card:
        return []
    found, gap, one = card["learnable"], card["oracle_gap"], card["one_teacher"]
    low, high = found["interval"] or (None, None)
    between = f" [{low:+.3f}, {high:+.3f}]" if low is not None else ""
    gain = f"{found['gain']:+.3f}{between} of reward over {one}, the one best teacher"
    if card["trust"]["trust"]:
        sure = "is worth" if low is not None and low > 0 else "seems to be worth"
        first = f"Routing {sure} {gain} (cross-validated on {card['num_train']} prompts)."
    else:
        least = (
            f"; these {card['num_train']} prompts would have shown a gain of {found['smallest']:.3f}"
            if found["smallest"]
            else ""
        )
        first = f"Routing is not shown to be worth anything ({gain}{least}), so every prompt goes to {one}."
    share = found["share_interval"]
    if not gap:
        second = f"{one} is the best teacher of every prompt."
    elif share and found["smallest"] and share[1] < 0.5:
        second = (
            f"An oracle would gain {gap:+.3f}, but most of that is chance, or not in the prompt: at most "
            f"{max(share[1], 0):.0%} of it can be learnt."
        )
    else:
        second = f"An oracle, which knows the rewards, would gain {gap:+.3f}."
    floor = card.get("noise_floor")
    if not floor:
        return [first, second]
    third = (
        f"Noise floor: routers trained on two halves of the prompts choose the same teacher on "
        f"{floor['same_choice']:.0%} of the held-out prompts ({floor['by_chance']:.0%} by chance); a teacher's mean "
        f"reward differs by up to {floor['largest_difference']:.3f} between the halves."
    )
    return [first, second, third]
