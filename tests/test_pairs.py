import polars as pl
import pytest

from persyn.errors import InputError
from persyn.pairs import PairSettings, build_pairs
from persyn.schemas import PAIRS, REWARDS, check_table


def rewards(**prompts: dict[str, float]) -> pl.DataFrame:
    rows = [(p, t, 0.0, 0.0, value) for p, values in prompts.items() for t, value in values.items()]
    return pl.DataFrame(rows, schema=REWARDS, orient="row")


def test_a_ranking_becomes_all_its_pairs() -> None:
    pairs = build_pairs(rewards(p={"a": 0.1, "b": 0.9, "c": 0.4}), PairSettings())
    check_table(pairs, PAIRS, "pairs")
    assert pairs.select("winner", "loser").rows() == [("b", "a"), ("b", "c"), ("c", "a")]
    assert pairs["margin"].to_list() == pytest.approx([0.8, 0.5, 0.3])


def test_ties_and_small_gaps_make_no_pair() -> None:
    table = rewards(p={"a": 0.5, "b": 0.5, "c": 0.4}, q={"a": 0.0, "b": 0.0, "c": 0.0})
    assert build_pairs(table, PairSettings()).select("prompt_id", "winner", "loser").rows() == [
        ("p", "a", "c"),
        ("p", "b", "c"),
    ]
    with pytest.raises(InputError, match=r"no pair has a margin above 0\.2 among 2 prompts"):
        build_pairs(table, PairSettings(min_margin=0.2))
    with pytest.raises(InputError, match=r"pairs\.min_margin is -1; .*0 or more"):
        PairSettings.parse({"min_margin": -1}, "pairs")


def test_the_papers_count() -> None:
    """19 teachers without ties: C(19, 2) pairs a prompt."""
    table = rewards(**{f"p{i}": {f"t{j}": float(j) for j in range(19)} for i in range(3)})
    assert build_pairs(table, PairSettings()).height == 3 * 171
