import numpy as np
import pytest
from scipy import stats

from persyn.statistics import corrected_interval, detectable_shift


def test_corrected_interval_by_hand() -> None:
    found = corrected_interval(np.array([0.01, 0.02, 0.03, 0.06]), train=150, test=50)
    error = np.sqrt((1 / 4 + 50 / 150) * (0.02**2 + 0.01**2 + 0 + 0.03**2) / 3)
    assert found["difference"] == pytest.approx(0.03)
    assert found["interval"] == pytest.approx([0.03 - 3.182446 * error, 0.03 + 3.182446 * error])
    assert found["p"] == pytest.approx(2 * stats.t.sf(0.03 / error, 3))
    assert found["mde"] == pytest.approx(detectable_shift(4) * error)
    assert (found["splits"], found["splits_won"]) == (4, 4)


def test_the_correction_keeps_its_level_where_the_plain_t_test_does_not() -> None:
    """Means over random thirds of a sample of noise: the plain t test over splits finds an effect far too often."""
    rng = np.random.default_rng(0)
    plain = corrected = 0
    for _ in range(200):
        noise = rng.normal(size=90)
        means = np.array([rng.permutation(noise)[:30].mean() for _ in range(20)])
        plain += bool(stats.ttest_1samp(means, 0.0).pvalue < 0.05)
        corrected += corrected_interval(means, 60, 30)["p"] < 0.05
    assert plain > 100
    assert corrected < 20


@pytest.mark.parametrize(("value", "p"), [(0.0, 1.0), (-0.1, 0.0)])
def test_equal_differences_have_an_interval_of_no_width(value: float, p: float) -> None:
    found = corrected_interval(np.full(5, value), 60, 30)
    assert found["interval"] == pytest.approx([value, value])
    assert (found["p"], found["mde"], found["splits_won"]) == (p, None, 0)


def test_one_split_has_no_interval_and_nonsense_is_refused() -> None:
    assert corrected_interval(np.array([0.1]), 60, 30) == {
        **{"difference": 0.1, "interval": None, "p": None, "mde": None},
        **{"splits": 1, "splits_won": 1},
    }
    for differences, train in ((np.array([]), 60), (np.array([np.nan, 1]), 60), (np.ones(2), 0)):
        with pytest.raises(ValueError, match="differences"):
            corrected_interval(differences, train, 30)
