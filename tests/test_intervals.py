"""Intervals: by hand, and how often they hold the truth."""

import numpy as np
import pytest
from scipy import stats

from persyn.planning.intervals import (
    Use,
    add,
    between,
    either,
    gpu_hours,
    lower,
    predicted_sum,
    response_tokens,
    size_in_name,
)


def test_the_prediction_interval_by_hand() -> None:
    """Seen 10, 20, 30: mean 20, s 10, t 4.303. Three more: 60 +- 4.303 * 10 * sqrt(3 + 9 / 3)."""
    low, high = predicted_sum(np.ones((3, 1)), np.array([10.0, 20.0, 30.0]), np.ones((3, 1)))
    half = stats.t.ppf(0.975, 2) * 10 * np.sqrt(6)
    assert (low, high) == pytest.approx((60 - half, 60 + half))
    line = np.column_stack([np.ones(4), [1.0, 2.0, 5.0, 9.0]])
    assert predicted_sum(line, line @ [3.0, 2.0], line[:2]) == pytest.approx((12, 12)), "3 + 2 x, without noise"


def test_the_interval_of_a_line_equals_the_textbooks() -> None:
    """One new point: s * sqrt(1 + 1/n + (x - mean)^2 / Sxx) (any textbook of linear regression)."""
    x, y = np.array([1.0, 2.0, 3.0, 4.0, 6.0]), np.array([2.0, 3.0, 5.0, 4.0, 8.0])
    fit = stats.linregress(x, y)
    residual = np.sqrt(((y - fit.intercept - fit.slope * x) ** 2).sum() / 3)
    spread = np.sqrt(1 + 1 / 5 + (7 - x.mean()) ** 2 / ((x - x.mean()) ** 2).sum())
    half = stats.t.ppf(0.975, 3) * residual * spread
    found = predicted_sum(np.column_stack([np.ones(5), x]), y, np.array([[1.0, 7.0]]))
    middle = fit.intercept + 7 * fit.slope
    assert found == pytest.approx((middle - half, middle + half))


@pytest.mark.parametrize("seen", [3, 4, 8, 16, 64])
@pytest.mark.parametrize(("median", "sigma", "cut"), [(400, 0.7, 4096), (300, 1.2, 4096), (60, 0.8, 64), (20, 0.5, 64)])
def test_skewed_and_cut_lengths_are_held_nine_times_of_ten(seen: int, median: float, sigma: float, cut: int) -> None:
    draw, held = np.random.default_rng(0), 0
    for _ in range(200):
        lengths = np.minimum(cut, np.ceil(median * draw.lognormal(sigma=sigma, size=seen + 40)))
        low, high = response_tokens(lengths[:seen], 40, cut)
        assert 40 <= low <= high <= 40 * cut
        held += low <= lengths[seen:].sum() <= high
    assert held >= 180


def test_what_was_never_asked_is_up_to_max_tokens() -> None:
    assert response_tokens(np.array([]), 10, 64) == (40, 640)
    assert response_tokens(np.array([64.0] * 4), 10, 64)[1] == 640
    assert response_tokens(np.array([64.0] * 4), 10, 64)[0] < 500, "four cut answers do not prove that all will be"


def test_a_server_that_counts_more_than_max_tokens_is_believed() -> None:
    """A thinking model that was asked for 64 tokens took 800 each time: 100 more take some 80,000, not 6,400."""
    low, high = response_tokens(np.full(8, 800.0), 100, 64)
    assert 6_400 < low <= 80_000 <= high
    assert response_tokens(np.array([800.0]), 100, 64)[1] >= 80_000


def test_gpu_hours_hold_the_published_numbers() -> None:
    """Tokens a second of one H100: 405B on eight 700 to 3,100; 8B 5,409 to 12,500; 1.7B 9,200, half in practice."""
    for size, published in ((405, (700 / 8, 3100 / 8)), (8, (5409, 12500)), (1.7, (4600, 9200))):
        low, high = gpu_hours((3600.0, 3600.0), size)
        assert 1 / high <= published[0] * 1.001
        assert 1 / low >= published[1] * 0.999


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("Qwen/Qwen2.5-7B-Instruct", 7),
        ("meta-llama/Llama-3.1-405B-Instruct", 405),
        ("google/gemma-2-27b-it", 27),
        ("packaged:smollm2-135m-instruct", 0.135),
        ("mistralai/Mixtral-8x7B-v0.1", 56),
        ("microsoft/Phi-3-mini-128k-instruct", None),
    ],
)
def test_a_size_is_read_from_a_name(model: str, size: float | None) -> None:
    assert size_in_name(model) == (pytest.approx(size) if size else None)


def test_intervals_add_end_by_end_and_the_unknown_is_left_out() -> None:
    one, other = Use(calls=(1, 2), money=(3, 4)), Use(calls=(5, 9), gpu_hours=None)
    assert add([one, other]) == Use(calls=(6, 11), gpu_hours=(0, 0), money=(3, 4))
    assert either([one, other]).calls == (1, 9)
    assert lower(one, Use(calls=(0, 9))).calls == (0, 2)
    assert between(one, other).calls == (1, 9)
    assert add([]) == Use()
