import polars as pl
import pytest

from persyn.rewards import build_rewards
from persyn.schemas import LEARNABILITY, QUALITY, InputError

TEACHERS = ["a", "b", "c"]


def tables(quality: dict[str, list[float]], learned: dict[str, list[float]]) -> tuple[pl.DataFrame, pl.DataFrame]:
    cells = [(p, t, v) for p, values in quality.items() for t, v in zip(TEACHERS, values, strict=True)]
    other = [(p, t, v, 5, False) for p, values in learned.items() for t, v in zip(TEACHERS, values, strict=True)]
    return pl.DataFrame(cells, schema=QUALITY, orient="row"), pl.DataFrame(other, schema=LEARNABILITY, orient="row")


def rewards(table: pl.DataFrame, prompt: str) -> list[float]:
    return table.filter(prompt_id=prompt).sort("teacher")["reward"].to_list()


QUALITIES = {"p": [0.0, 5.0, 10.0], "q": [1.0, 1.0, 1.0]}
LEARNED = {"p": [-1.0, -3.0, -2.0], "q": [-2.0, -4.0, -3.0]}


def test_equation_2_by_hand() -> None:
    """p: quality 0, .5, 1; learnability 1, 0, .5. q: quality all equal, so 0; learnability 1, 0, .5."""
    table = build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=0.4)
    assert rewards(table, "p") == pytest.approx([0.4, 0.3, 0.8])
    assert rewards(table, "q") == pytest.approx([0.4, 0.0, 0.2])
    assert table["quality"].to_list() == [0.0, 5.0, 10.0, 1.0, 1.0, 1.0], "raw scores stay beside the reward"


def test_alpha_0_is_quality_and_alpha_1_is_learnability() -> None:
    assert rewards(build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=0), "p") == [0.0, 0.5, 1.0]
    assert rewards(build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=1), "p") == [1.0, 0.0, 0.5]


def test_z_score_and_none() -> None:
    table = build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=1, normalization="z_score")
    assert rewards(table, "p") == pytest.approx([1.5**0.5, -(1.5**0.5), 0.0])
    table = build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=0.5, normalization="none")
    assert rewards(table, "p") == pytest.approx([-0.5, 1.0, 4.0])


def test_row_order_changes_nothing() -> None:
    quality, learned = tables(QUALITIES, LEARNED)
    straight = build_rewards(quality, learned, TEACHERS, alpha=0.4)
    shuffled = build_rewards(quality.reverse(), learned.sample(fraction=1, shuffle=True, seed=1), TEACHERS, alpha=0.4)
    assert straight.equals(shuffled)


def test_missing_unknown_and_broken_scores_are_named() -> None:
    quality, learned = tables(QUALITIES, LEARNED)
    with pytest.raises(InputError, match=r"1 responses have no score, first \[\('p', 'a'\)\]"):
        build_rewards(quality[1:], learned, TEACHERS, alpha=0.4)
    with pytest.raises(InputError, match=r"scores of c, which is not among a, b"):
        build_rewards(quality, learned, ["a", "b"], alpha=0.4)
    broken = quality.with_columns(quality=pl.when(pl.col("teacher") == "b").then(float("nan")).otherwise("quality"))
    with pytest.raises(InputError, match=r"2 responses have a score that is not finite, first \[\('p', 'b'\)"):
        build_rewards(broken, learned, TEACHERS, alpha=0.4)
    with pytest.raises(InputError, match=r"alpha is 1\.5"):
        build_rewards(quality, learned, TEACHERS, alpha=1.5)
    with pytest.raises(InputError, match="normalization is 'max'"):
        build_rewards(quality, learned, TEACHERS, alpha=0.4, normalization="max")  # type: ignore[arg-type]
