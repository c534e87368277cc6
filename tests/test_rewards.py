from typing import Any

import polars as pl
import pytest

from persyn.defects import Policies, Policy
from persyn.errors import InputError
from persyn.pairs import PairSettings, build_pairs
from persyn.rewards import RewardSettings
from persyn.rewards import build_rewards as build
from persyn.schemas import DEFECTS, LEARNABILITY, QUALITY, REWARDS, check_table

TEACHERS = ["a", "b", "c"]
NO_DEFECTS = pl.DataFrame(schema=DEFECTS)


def build_rewards(quality: pl.DataFrame, learned: pl.DataFrame, teachers: list[str], **params: Any) -> pl.DataFrame:
    return build(quality, learned, NO_DEFECTS, teachers, Policies(), RewardSettings(**params))[0]


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


def test_the_weight_follows_the_ease_of_the_prompt() -> None:
    """Mean quality p 5, q 1: q is the harder of two, of ranks 1/4 and 3/4, so its weight is 0.4 - 0.8 / 4 = 0.2."""
    table = build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=0.4, alpha_slope=0.8)
    assert rewards(table, "q") == pytest.approx([0.2, 0.0, 0.1])
    assert rewards(table, "p") == pytest.approx([0.6, 0.4 * 0.5, 0.4 + 0.6 * 0.5])
    steep = build_rewards(*tables(QUALITIES, LEARNED), TEACHERS, alpha=0.4, alpha_slope=40.0)
    assert rewards(steep, "p") == [1.0, 0.0, 0.5], "clipped to 1"


def test_a_prompt_is_complete_without_an_anchored_teacher() -> None:
    quality, learned = tables(QUALITIES, LEARNED)
    few = (pl.col("teacher") != "c") | (pl.col("prompt_id") == "p")
    how = Policies(), RewardSettings(alpha=0.4), ["c"]
    table = build(quality.filter(few), learned.filter(few), NO_DEFECTS, TEACHERS, *how)[0]
    assert rewards(table, "p") == pytest.approx([0.4, 0.3, 0.8])
    assert rewards(table, "q") == pytest.approx([0.4, 0.0])
    missing = few & ((pl.col("teacher") != "a") | (pl.col("prompt_id") != "q"))
    kept = build(quality.filter(missing), learned.filter(missing), NO_DEFECTS, TEACHERS, *how)[0]
    assert kept["prompt_id"].unique().to_list() == ["p"], "the others must still have answered"


def test_row_order_changes_nothing() -> None:
    quality, learned = tables(QUALITIES, LEARNED)
    straight = build_rewards(quality, learned, TEACHERS, alpha=0.4)
    shuffled = build_rewards(quality.reverse(), learned.sample(fraction=1, shuffle=True, seed=1), TEACHERS, alpha=0.4)
    assert straight.equals(shuffled)


def test_prompts_without_all_scores_are_left_out_and_counted() -> None:
    quality, learned = tables(QUALITIES, LEARNED)
    for broken in (
        quality.filter(~((pl.col("prompt_id") == "p") & (pl.col("teacher") == "b"))),
        *(
            quality.with_columns(
                quality=pl.when((pl.col("prompt_id") == "p") & (pl.col("teacher") == "b"))
                .then(bad)
                .otherwise("quality")
            )
            for bad in (float("nan"), float("inf"), float("-inf"))
        ),
    ):
        rewards, counts = build(broken, learned, NO_DEFECTS, TEACHERS, Policies(), RewardSettings(alpha=0.4))
        check_table(rewards, REWARDS, "no NaN gets through")
        assert rewards["prompt_id"].unique().to_list() == ["q"]
        expected = {"prompts": 2, "kept": 1, "dropped": {"incomplete": 1}, "penalised": 0, "ties": 0}
        assert {name: counts[name] for name in expected} == expected


def test_what_to_know_of_the_rewards() -> None:
    """Tokens grow from a to c; on p and q the rewards by learnability alone are 1, 0, 0.5: Spearman -0.5."""
    quality, learned = tables(QUALITIES, LEARNED)
    longer = learned.with_columns(num_tokens=pl.col("teacher").replace_strict({"a": 5, "b": 6, "c": 7}))
    _, known = build(quality, longer, NO_DEFECTS, TEACHERS, Policies(), RewardSettings(alpha=1))
    assert known["length_correlation"] == pytest.approx(-0.5)
    assert known["teachers"]["c"] == {"quality": 5.5, "learnability": -2.5, "reward": 0.5}
    assert (
        build(quality, learned, NO_DEFECTS, TEACHERS, Policies(), RewardSettings(alpha=1))[1]["length_correlation"]
        is None
    )


def test_constant_scores_are_a_tie_that_makes_no_pair() -> None:
    scores = tables({"p": [2.0] * 3}, {"p": [-1.0] * 3})
    settings = RewardSettings(alpha=0.4, normalization="z_score")
    rewards, counts = build(*scores, NO_DEFECTS, TEACHERS, Policies(), settings)
    assert rewards["reward"].to_list() == [0.0] * 3
    assert counts["ties"] == 1
    with pytest.raises(InputError, match="no pair has a margin above"):
        build_pairs(rewards, PairSettings())


def test_one_teacher_has_rewards_but_no_pairs() -> None:
    quality, learned = (table.filter(teacher="a") for table in tables(QUALITIES, LEARNED))
    assert build_rewards(quality, learned, ["a"], alpha=0.4)["reward"].to_list() == [0.0, 0.0]


def test_a_defect_loses_by_policy() -> None:
    """On p, teacher c had the highest reward, 0.8 (test_equation_2_by_hand); with the penalty it has -0.2."""
    defects = pl.DataFrame([("p", "c", False, True, *[False] * 4)], schema=DEFECTS, orient="row")
    scores = tables(QUALITIES, LEARNED)
    cases: list[tuple[Policy, float]] = [("keep", 0.8), ("penalise", -0.2), ("drop", -0.2)]
    for policy, expected in cases:
        policies, settings = Policies(refusal=policy), RewardSettings(alpha=0.4)
        table, counts = build(*scores, defects, TEACHERS, policies, settings)
        assert rewards(table, "p") == pytest.approx([0.4, 0.3, expected])
        assert counts["penalised"] == (policy != "keep")
        assert rewards(table, "q") == pytest.approx([0.4, 0.0, 0.2]), "other prompts are as they were"


def test_permuting_teachers_or_prompts_permutes_the_rewards_and_nothing_else() -> None:
    rename = {"a": "c", "b": "a", "c": "b", "p": "q", "q": "p"}
    quality, learned = tables(QUALITIES, LEARNED)
    straight = build_pairs(build_rewards(quality, learned, TEACHERS, alpha=0.4), PairSettings())
    moved = [t.with_columns(pl.col("prompt_id", "teacher").replace(rename)) for t in (quality, learned)]
    permuted = build_pairs(build_rewards(moved[0], moved[1], TEACHERS, alpha=0.4), PairSettings())
    renamed = straight.with_columns(pl.col("prompt_id", "winner", "loser").replace(rename))
    assert renamed.sort("prompt_id", "winner", "loser").equals(permuted)


def test_what_is_wrong_is_named() -> None:
    quality, learned = tables(QUALITIES, LEARNED)
    with pytest.raises(InputError, match=r"none of 2 prompts has both scores of every teacher \(scored: a 0, b 2, c 2"):
        build_rewards(quality.filter(pl.col("teacher") != "a"), learned, TEACHERS, alpha=0.4)
    with pytest.raises(InputError, match=r"scores .* c, .* a, b"):
        build_rewards(quality, learned, ["a", "b"], alpha=0.4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, r"rewards\.alpha is 1\.5; .* 0 to 1"),
        ({"normalization": "max"}, r"rewards\.normalization is 'max'; .*min_max.*z_score.*none"),
        ({"penalty": -1}, r"rewards\.penalty is -1; .*0 or more"),
    ],
)
def test_wrong_settings_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        RewardSettings.parse({"alpha": 0.4, **changes}, "rewards")
