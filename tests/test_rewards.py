from typing import Any

import numpy as np
import polars as pl
import pytest

from persyn.defects import Policies, Policy
from persyn.errors import InputError
from persyn.pairs import PairSettings, build_pairs
from persyn.rewards import RewardSettings, with_student
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
    assert rewards(table, "p") == pytest.approx([0.4, 0.6, 1.1]), "a and b as without c, which may lie above them"
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
    """On p, teacher c had the highest reward, 0.8 (test_equation_2_by_hand). Penalised, it does not set the range: b
    has quality 1 of 0 to 1, c is clipped to 1 and has 0.6 + 0.4 * 0.5 - 1 = -0.2.
    """
    defects = pl.DataFrame([("p", "c", False, True, *[False] * 5)], schema=DEFECTS, orient="row")
    scores = tables(QUALITIES, LEARNED)
    cases: list[tuple[Policy, list[float]]] = [("keep", [0.4, 0.3, 0.8])]
    cases += [("penalise", [0.4, 0.6, -0.2]), ("drop", [0.4, 0.6, -0.2])]
    for policy, expected in cases:
        policies, settings = Policies(refusal=policy), RewardSettings(alpha=0.4)
        table, counts = build(*scores, defects, TEACHERS, policies, settings)
        assert rewards(table, "p") == pytest.approx(expected)
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


def made_up(num_prompts: int, num_teachers: int, seed: int, binary: bool = False) -> tuple[Any, Any, Any, list[str]]:
    """QUALITY, LEARNABILITY and DEFECTS (a fifth refuse) at random, and the teachers."""
    random, names = np.random.default_rng(seed), [f"t{number}" for number in range(num_teachers)]
    keys = [(f"p{number:03d}", name) for number in range(num_prompts) for name in names]
    drawn = random.random((3, len(keys)))
    quality = [(*key, float(score > 0.4 if binary else 9 * score)) for key, score in zip(keys, drawn[0], strict=True)]
    learned = [(*key, -float(score), 5, False) for key, score in zip(keys, drawn[1], strict=True)]
    refused = [(*key, False, bool(lot < 0.2), *[False] * 5) for key, lot in zip(keys, drawn[2], strict=True)]
    made: Any = (quality, QUALITY), (learned, LEARNABILITY), (refused, DEFECTS)
    scores, lengths, defects = (pl.DataFrame(rows, schema=schema, orient="row") for rows, schema in made)
    return scores, lengths, defects, names


@pytest.mark.parametrize("normalization", ["min_max", "rank", "z_score", "shared"])
@pytest.mark.parametrize("seed", range(4))
def test_a_penalised_response_does_not_move_the_others(normalization: Any, seed: int) -> None:
    """The others' rewards are what they are without it, and with 0 to 1 it is never above them."""
    quality, learned, defects, names = made_up(20, 5, seed)
    extreme = quality.join(defects, on=["prompt_id", "teacher"], maintain_order="left")
    extreme = extreme.with_columns(quality=pl.when("refusal").then(-1000.0).otherwise("quality")).select(
        QUALITY.names()
    )
    settings, policies = RewardSettings(alpha=0.4, normalization=normalization), Policies()
    side = ["prompt_id", "teacher", "reward", "refusal"]
    mild, wild = (
        build(each, learned, defects, names, policies, settings)[0].join(defects, on=["prompt_id", "teacher"])[side]
        for each in (quality, extreme)
    )
    all_refuse = pl.col("refusal").all().over("prompt_id")
    ours = [table.filter(~pl.col("refusal") & ~all_refuse) for table in (mild, wild)]
    assert ours[0].equals(ours[1])
    assert ours[0].height > 50
    if normalization in ("min_max", "rank"):
        worst = pl.when(~pl.col("refusal")).then(pl.col("reward")).min().over("prompt_id")
        refused = mild.with_columns(worst=worst).filter("refusal")
        assert (refused["reward"] <= refused["worst"].fill_null(0.0)).all()
        assert ours[0]["reward"].is_between(0, 1).all()
        assert refused["reward"].is_between(-1, 0).all()


@pytest.mark.parametrize("normalization", ["min_max", "rank", "z_score", "shared", "none"])
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("binary", [False, True])
def test_from_a_penalty_of_1_on_a_penalised_response_loses_to_every_other(
    normalization: Any, seed: int, binary: bool
) -> None:
    """Strictly, so that each is a pair, by any draw of the other settings; and alpha_effect knows it."""
    quality, learned, defects, names = made_up(15, 5, seed, binary)
    random = np.random.default_rng(seed)
    learned = learned.with_columns(num_tokens=pl.Series(random.integers(1, 400, learned.height)))
    for control in (False, True):
        alpha, slope, penalty = random.random(), random.normal(), 1 + random.choice([0, 1]) * random.random()
        settings = RewardSettings(
            alpha=alpha, alpha_slope=slope, penalty=penalty, normalization=normalization, length_control=control
        )
        table, counts = build(quality, learned, defects, names, Policies(), settings)
        rows = table.join(defects, on=["prompt_id", "teacher"])
        refused = set(rows.filter("refusal").select("prompt_id", "teacher").rows())
        both = rows.filter(pl.col("refusal").any().over("prompt_id"), ~pl.col("refusal").all().over("prompt_id"))
        sizes = both.group_by("prompt_id").agg(bad=pl.col("refusal").sum(), good=(~pl.col("refusal")).sum())
        expected = sum(bad * good for bad, good in sizes.select("bad", "good").rows())
        pairs = build_pairs(table, PairSettings())
        won = [(prompt, winner) in refused for prompt, winner in pairs.select("prompt_id", "winner").rows()]
        lost = [(prompt, loser) in refused for prompt, loser in pairs.select("prompt_id", "loser").rows()]
        mixed = [one != other for one, other in zip(won, lost, strict=True)]
        assert sum(mixed) == expected > 10
        assert not any(one and different for one, different in zip(won, mixed, strict=True))
        assert counts["alpha"]["pairs"] == pairs.height


@pytest.mark.parametrize("normalization", ["min_max", "rank", "z_score", "shared", "none"])
@pytest.mark.parametrize("control", [False, True])
def test_an_anchored_teacher_changes_nothing_of_the_others(normalization: Any, control: bool) -> None:
    quality, learned, defects, names = made_up(20, 5, 0)
    learned = learned.with_columns(num_tokens=pl.Series(np.random.default_rng(0).integers(1, 400, learned.height)))
    quality = quality.with_columns(quality=pl.when(teacher="t4").then(50 * pl.col("quality")).otherwise("quality"))
    settings = RewardSettings(alpha=0.4, alpha_slope=0.5, normalization=normalization, length_control=control)
    known = pl.col("teacher") != "t4"
    own = quality.filter(known), learned.filter(known), defects.filter(known)
    alone, counts = build(*own, names[:4], Policies(), settings)
    few = known | pl.col("prompt_id").is_in(quality["prompt_id"].unique().sort()[:6].to_list())
    beside, more = build(quality.filter(few), learned.filter(few), defects, names, Policies(), settings, ["t4"])
    assert beside.filter(known).equals(alone)
    assert beside.height == alone.height + 6
    pairs = build_pairs(beside, PairSettings())
    assert pairs.filter(pl.col("winner") != "t4", pl.col("loser") != "t4").equals(build_pairs(alone, PairSettings()))
    del counts["teachers"], counts["penalised"], more["teachers"], more["penalised"]
    assert counts == more


def test_an_anchored_teacher_may_be_better_or_worse_than_all_others() -> None:
    for normalization in ("min_max", "rank", "z_score", "shared"):
        for quality in ({"p": [1.0, 2.0, 9.0], "q": [1.0, 2.0, -9.0]}, {"p": [1.0, 1.0, 2.0], "q": [1.0, 1.0, 0.0]}):
            settings = RewardSettings(alpha=0.0, normalization=normalization)
            scores = tables(quality, {"p": [-1.0] * 3, "q": [-1.0] * 3})
            table = build(*scores, NO_DEFECTS, TEACHERS, Policies(), settings, ["c"])[0]
            assert rewards(table, "p")[2] > max(rewards(table, "p")[:2])
            assert rewards(table, "q")[2] < min(rewards(table, "q")[:2])


@pytest.mark.parametrize("normalization", ["min_max", "rank", "z_score", "shared", "none"])
@pytest.mark.parametrize("scale", [1.0, 1e-300, 1e30])
def test_a_sound_anchored_response_beats_every_penalised_one_and_moves_none(normalization: Any, scale: float) -> None:
    quality, learned, defects, names = made_up(30, 5, 1)
    quality = quality.with_columns(pl.col("quality") * scale)
    quality = quality.with_columns(quality=pl.when(teacher="t4").then(-10 * scale).otherwise("quality"))
    settings, policies = RewardSettings(alpha=0.4, normalization=normalization), Policies()
    table = build(quality, learned, defects, names, policies, settings, ["t4"])[0]
    rows = table.join(defects, on=["prompt_id", "teacher"])
    worst = pl.when(~pl.col("refusal")).then(pl.col("reward")).min().over("prompt_id")
    refused = rows.with_columns(worst=worst).filter("refusal").drop_nulls("worst")
    assert table["reward"].is_finite().all()
    assert refused.height > 20
    assert (refused["reward"] < refused["worst"]).all()
    known = pl.col("teacher") != "t4"
    alone = [each.filter(known) for each in (quality, learned, defects)]
    assert table.filter(known).equals(build(alone[0], alone[1], alone[2], names[:4], policies, settings)[0])


def test_prompts_on_which_all_are_penalised_set_no_scale_of_the_others() -> None:
    quality, learned, defects, names = made_up(10, 3, 2)
    first = pl.col("prompt_id") == quality["prompt_id"].min()
    defects = defects.with_columns(refusal=first)
    settings, policies = RewardSettings(alpha=0.4, normalization="shared"), Policies()
    wild = quality.with_columns(quality=pl.when(first).then(pl.col("quality") * 1000).otherwise("quality"))
    mild, other = (build(each, learned, defects, names, policies, settings)[0] for each in (quality, wild))
    assert mild.filter(~first).equals(other.filter(~first))


def test_without_a_penalty_a_defect_changes_nothing() -> None:
    quality, learned, defects, names = made_up(10, 4, 0)
    settings = RewardSettings(alpha=0.4, penalty=0.0)
    free = build(quality, learned, NO_DEFECTS, names, Policies(), settings)[0]
    assert build(quality, learned, defects, names, Policies(), settings)[0].equals(free)


def test_a_tie_by_rounding_is_no_pair_and_counts_as_a_tie() -> None:
    """0.1 + 0.2 and 0.3 differ by rounding; so do 3e9 + 1e-6 and 3e9."""
    assert 0.1 + 0.2 > 0.3
    cells = [("p", "a", 0.1 + 0.2), ("p", "b", 0.3), ("q", "a", 3e9 + 1e-6), ("q", "b", 3e9), ("r", "a", 0.1)]
    rows = [(prompt, teacher, 0.0, 0.0, reward) for prompt, teacher, reward in [*cells, ("r", "b", 0.1 + 2e-9)]]
    table = pl.DataFrame(rows, REWARDS, orient="row")
    pairs = build_pairs(table, PairSettings())
    assert pairs.select("prompt_id", "winner", "loser").rows() == [("r", "b", "a")]
    quality = {"p": [0.3, 0.1 + 0.2, 0.3]}
    settings = RewardSettings(alpha=0.4)
    rewards, counts = build(*tables(quality, {"p": [-1.0] * 3}), NO_DEFECTS, TEACHERS, Policies(), settings)
    assert counts["ties"] == 1
    assert rewards["reward"].to_list() == [0.0] * 3, "a range that is only rounding is none"


def test_a_margin_that_is_min_margin_but_for_rounding_makes_no_pair() -> None:
    rows = [("p", "a", 0.0, 0.0, 0.1 + 0.2), ("p", "b", 0.0, 0.0, 0.2), ("p", "c", 0.0, 0.0, 0.0)]
    pairs = build_pairs(pl.DataFrame(rows, REWARDS, orient="row"), PairSettings(min_margin=0.1))
    assert pairs.select("winner", "loser").rows() == [("a", "c"), ("b", "c")]


def test_rank_and_shared_by_hand() -> None:
    """p: quality 0, 0, 10 ranks 0.5, 0.5 and 2 of 2. Pooled over p and q, squared deviations sum to 66 2/3 of p and 2/3
    of q: a standard deviation of (67 1/3 / 6) ** 0.5.
    """
    scores = tables({"p": [0.0, 0.0, 10.0], "q": [1.0, 1.0, 2.0]}, {"p": [-1.0] * 3, "q": [-1.0] * 3})
    ranked = build_rewards(*scores, TEACHERS, alpha=0, normalization="rank")
    assert rewards(ranked, "p") == rewards(ranked, "q") == [0.25, 0.25, 1.0]
    shared = build_rewards(*scores, TEACHERS, alpha=0, normalization="shared")
    unit = ((200 / 3 + 2 / 3) / 6) ** 0.5
    assert rewards(shared, "p") == pytest.approx([-10 / 3 / unit, -10 / 3 / unit, 20 / 3 / unit])
    assert rewards(shared, "q") == pytest.approx([-1 / 3 / unit, -1 / 3 / unit, 2 / 3 / unit])
    domains = pl.DataFrame({"prompt_id": ["p", "q"], "domain": ["instruction", "math"]})
    settings = RewardSettings(alpha=0, normalization="shared")
    apart = build(*scores, NO_DEFECTS, TEACHERS, Policies(), settings, domains=domains)[0]
    assert rewards(apart, "p") == pytest.approx(rewards(apart, "q")), "each domain has its own scale"


@pytest.mark.parametrize("normalization", ["min_max", "z_score", "rank", "shared"])
@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("slope", [0.0, 0.5])
def test_the_range_in_which_no_pair_changes_is_exact(normalization: Any, binary: bool, slope: float) -> None:
    """Just inside it all pairs are those of the chosen alpha; just outside one differs. It is empty if two rewards are
    equal at the chosen alpha alone.
    """
    quality, learned, defects, names = made_up(6, 4, 3, binary)
    settings = RewardSettings(alpha=0.4, alpha_slope=slope, normalization=normalization)

    def pairs(alpha: float) -> set[tuple[str, ...]]:
        table = build(quality, learned, defects, names, Policies(), settings.changed(alpha=alpha))[0]
        return set(build_pairs(table, PairSettings()).select("prompt_id", "winner", "loser").rows())

    chosen = pairs(0.4)
    known = build(quality, learned, defects, names, Policies(), settings)[1]["alpha"]
    (low, high), small = known["unchanged"], 1e-6
    assert low <= 0.4 <= high
    assert known["pairs"] == len(chosen)
    assert known["same_order"] == {
        f"{alpha:g}": pytest.approx(len(chosen & pairs(alpha)) / len(chosen))
        for alpha in (0, 0.2, 0.4, 0.5, 0.6, 0.8, 1)
    }
    for inside, outside in ((low + small, low - small), (high - small, high + small)):
        assert low == high or pairs(inside) == chosen
        assert not 0 <= outside <= 1 or pairs(outside) != chosen


def test_two_valued_quality_is_said_to_leave_alpha_without_effect(caplog: pytest.LogCaptureFixture) -> None:
    """By min_max every alpha from 0 to 1/2 gives the same pairs; by shared and rank alpha matters there."""
    quality, learned, _, names = made_up(200, 6, 1, binary=True)

    def found(normalization: Any) -> dict[str, Any]:
        caplog.clear()
        settings = RewardSettings(alpha=0.4, normalization=normalization)
        return build(quality, learned, NO_DEFECTS, names, Policies(), settings)[1]["alpha"]

    with caplog.at_level("WARNING", "persyn"):
        flat = found("min_max")
        assert flat["unchanged"] == pytest.approx([0.0, 0.5])
        assert flat["same_order"]["0.2"] == 1.0 > flat["same_order"]["0.6"]
        assert "no pair changes for any alpha between 0 and 0.5 (alpha is 0.4)" in caplog.text
        for normalization in ("rank", "shared"):
            low, high = found(normalization)["unchanged"]
            assert high - low < 0.1
            assert not caplog.text


def lengthy(bias: float, skill: float, seed: int = 0) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Teacher c is better by `skill` and three times as long; a nat of log tokens brings `bias` of quality."""
    random, quality, learned = np.random.default_rng(seed), [], []
    for prompt in range(300):
        for teacher, factor in zip(TEACHERS, (1.0, 1.0, 3.0), strict=True):
            tokens = int(100 * factor * np.exp(random.normal(0, 0.5)))
            noise = random.normal(0, 0.05) + prompt % 7
            quality.append((f"{prompt:03d}", teacher, bias * np.log(tokens) + skill * (teacher == "c") + noise))
            learned.append((f"{prompt:03d}", teacher, -1.0, tokens, False))
    return pl.DataFrame(quality, QUALITY, orient="row"), pl.DataFrame(learned, LEARNABILITY, orient="row")


def test_length_control_takes_the_bias_and_leaves_the_skill() -> None:
    quality, learned = lengthy(bias=0.5, skill=1.0)
    settings = RewardSettings(alpha=0, normalization="none", length_control=True)
    table, known = build(quality, learned, NO_DEFECTS, TEACHERS, Policies(), settings)
    assert known["length_slopes"] == {"all": pytest.approx(0.5, abs=0.01)}
    mean = {teacher: found["reward"] for teacher, found in known["teachers"].items()}
    assert mean["c"] - mean["a"] == pytest.approx(1.0, abs=0.03), "without control it is 1 + 0.5 * log 3"
    assert table["quality"].to_list() == quality.sort("prompt_id", "teacher")["quality"].to_list(), "stays as scored"
    within = known["length_within_prompt"]
    assert within["uncontrolled"] > within["controlled"] > 0.2, "what is left is the long teacher's skill"
    _, biased = build(*lengthy(0.5, 0.0), NO_DEFECTS, TEACHERS, Policies(), settings)
    assert biased["length_within_prompt"]["uncontrolled"] > 0.8
    assert abs(biased["length_within_prompt"]["controlled"]) < 0.1


def test_length_control_knows_each_domain_and_needs_lengths_that_vary() -> None:
    first, second = lengthy(0.5, 1.0), lengthy(-20.0, 1.0, seed=1)
    quality, learned = (
        pl.concat([one, other.with_columns(prompt_id="x" + pl.col("prompt_id"))])
        for one, other in zip(first, second, strict=True)
    )
    ids = quality["prompt_id"].unique().sort()
    domains = pl.DataFrame({"prompt_id": ids, "domain": ["math" if i[0] == "x" else "instruction" for i in ids]})
    settings = RewardSettings(alpha=0, length_control=True)
    _, known = build(quality, learned, NO_DEFECTS, TEACHERS, Policies(), settings, domains=domains)
    slopes = {"instruction": pytest.approx(0.5, abs=0.01), "math": pytest.approx(-20, abs=0.01)}
    assert known["length_slopes"] == slopes
    table, constant = build(*tables(QUALITIES, LEARNED), NO_DEFECTS, TEACHERS, Policies(), settings)
    assert constant["length_slopes"] == {"all": 0.0}
    assert constant["length_within_prompt"] == {"uncontrolled": None, "controlled": None}
    assert rewards(table, "p") == [0.0, 0.5, 1.0]


def gated(domain: str, **params: Any) -> tuple[list[float], list[float], dict[str, Any]]:
    """The rewards on p and q of QUALITIES, where a gate of 5 stands in the domain math."""
    domains = pl.DataFrame({"prompt_id": ["p", "q"], "domain": [domain] * 2})
    settings = RewardSettings(**{"alpha": 0.4, "gate": {"math": 5.0}, **params})
    table, counts = build(*tables(QUALITIES, LEARNED), NO_DEFECTS, TEACHERS, Policies(), settings, domains=domains)
    assert check_table(table, REWARDS, "rewards").height == 6
    return rewards(table, "p"), rewards(table, "q"), counts


def test_a_gate_lets_only_learnability_decide_among_what_passes() -> None:
    """p: b (-3) and c (-2) pass, so 0 and 1; a, the likeliest, is 1 below. On q none passes: no pair."""
    on_p, on_q, counts = gated("math")
    assert (on_p, on_q) == ([-1.0, 0.0, 1.0], [0.0, 0.0, 0.0])
    assert counts["gate"] == {"least": {"math": 5.0}, "prompts": 2, "none_passes": 1, "below": 4}
    assert counts["alpha"]["pairs"] == 3
    assert counts["alpha"]["unchanged"] == [0.0, 1.0], "alpha has no effect behind a gate"
    assert gated("math", alpha=0.0)[0] == gated("math", normalization="rank", alpha_slope=3.0)[0] == on_p
    on_p, _, counts = gated("code")
    assert on_p == pytest.approx([0.4, 0.3, 0.8])
    assert counts["gate"]["prompts"] == 0
    assert "gate" not in gated("math", gate={})[2]


@pytest.mark.parametrize("normalization", ["min_max", "rank", "z_score", "shared", "none"])
@pytest.mark.parametrize("penalty", [0.3, 2.0])
def test_what_is_below_a_gate_loses_to_all_that_passes(normalization: Any, penalty: float) -> None:
    """Also to those that are penalised, and beside an anchored teacher, which changes no other's reward."""
    quality, learned, defects, names = made_up(40, 5, 1, binary=True)
    domains = quality.select("prompt_id", domain=pl.lit("math")).unique()
    settings = RewardSettings(alpha=0.4, gate={"math": 1.0}, normalization=normalization, penalty=penalty)
    known = pl.col("teacher") != "t4"
    own = quality.filter(known), learned.filter(known), defects.filter(known)
    alone, counts = build(*own, names[:4], Policies(), settings, domains=domains)
    beside, more = build(quality, learned, defects, names, Policies(), settings, ["t4"], domains)
    assert beside.filter(known)["reward"].to_list() == pytest.approx(alone["reward"].to_list(), abs=1e-12)
    assert counts["gate"] == more["gate"]
    reward, passes = pl.col("reward"), pl.col("quality") >= 1
    reached = beside.group_by("prompt_id").agg(low=reward.filter(passes).min(), high=reward.filter(~passes).max())
    both = reached.drop_nulls()
    assert both.height > 10
    assert both.filter(pl.col("low") < pl.col("high") + 0.5).is_empty()
    none = alone.filter((pl.col("quality") < 1).all().over("prompt_id"))
    assert set(none["reward"]) <= {0.0}
    assert counts["gate"]["none_passes"] == none["prompt_id"].n_unique()
    pairs = build_pairs(alone, PairSettings())
    assert pairs.height == counts["alpha"]["pairs"]
    worse = alone.filter(pl.col("quality") < 1).select("prompt_id", winner="teacher")
    assert pairs.join(worse, on=["prompt_id", "winner"], how="semi").is_empty()


SCALES = {"math": (0.0, 1.0), "instruction": (1.0, 11.0)}


def student(own: dict[str, list[float]], defects: pl.DataFrame = NO_DEFECTS, domain: str = "math") -> pl.DataFrame:
    """The prompts p, q and r, with the quality of the student's samples on some of them."""
    rows = [(p, "me", quality, n) for p, samples in own.items() for n, quality in enumerate(samples)]
    quality = pl.DataFrame(rows, schema={**QUALITY, "sample": pl.Int64}, orient="row")
    quality = quality.drop("sample") if not any(quality["sample"]) else quality
    prompts = pl.DataFrame({"prompt_id": ["p", "q", "r"], "domain": [domain] * 3})
    return with_student(prompts, quality, defects, Policies(), SCALES)


RIGHT = tables({name: [0.0, 1.0, 1.0] for name in "pqr"}, {name: [-1.0, -3.0, -2.0] for name in "pqr"})
"""a is wrong and likely, b and c are right; c is the likelier of them."""


def test_quality_counts_more_where_the_student_fails() -> None:
    """Quality is 0, 1, 1 and learnability 1, 0, 1/2. At alpha 0.7 a, which is wrong, wins: 0.7 to 0.3 and 0.65. On p
    the student fails, on q it does half; on r it is right and nothing changes.
    """
    asked = student({"p": [0.0, 0.0], "q": [1.0, 0.0], "r": [1.0]})
    assert asked.sort("prompt_id")["own"].to_list() == [0.0, 0.5, 1.0], "the mean of its samples"
    settings = RewardSettings(alpha=0.7, unsolved=0.2)
    table, counts = build(*RIGHT, NO_DEFECTS, TEACHERS, Policies(), settings, domains=asked)
    assert check_table(table, REWARDS, "rewards").height == 9
    assert rewards(table, "p") == pytest.approx([0.7, 0.5, 0.85])
    assert rewards(table, "q") == pytest.approx([0.7, 0.4, 0.75])
    assert rewards(table, "r") == pytest.approx([0.7, 0.3, 0.65])
    assert counts["unsolved"] == {
        **{"weight": 0.2, "prompts": 3, "solved": 1, "taught": 2, "nobody": 0, "own": 0.5, "flawed": 0},
        "left_out": {"gate": 0, "scale": 0, "response": 0},
        **{"raised": 4, "pairs": 9, "changed_pairs": 2, "changed_best": 2},
    }
    low, high = counts["alpha"]["unchanged"]
    for alpha in (low + 1e-6, high - 1e-6):
        settings = RewardSettings(alpha=alpha, unsolved=0.2)
        near, _ = build(*RIGHT, NO_DEFECTS, TEACHERS, Policies(), settings, domains=asked)
        columns = "prompt_id", "winner", "loser"
        assert (
            build_pairs(near, PairSettings()).select(columns).equals(build_pairs(table, PairSettings()).select(columns))
        )
    assert (low, high) == pytest.approx((2 / 3, 11 / 15)), "where a passes c on r, and on q"


def test_without_a_weight_the_student_is_only_counted() -> None:
    plain, counts = build(*RIGHT, NO_DEFECTS, TEACHERS, Policies(), RewardSettings(alpha=0.7))
    assert "unsolved" not in counts
    asked = student({"p": [0.0], "q": [0.0], "r": [0.0]})
    table, counts = build(*RIGHT, NO_DEFECTS, TEACHERS, Policies(), RewardSettings(alpha=0.7), domains=asked)
    assert table.equals(plain)
    assert counts["unsolved"]["taught"] == 3
    assert counts["unsolved"]["changed_pairs"] == counts["unsolved"]["raised"] == 0


def test_what_the_student_has_no_quality_for_gets_nothing() -> None:
    """A defect of its own is a failure; no response at all, no scale, or a gate leaves the reward as it is."""
    one = dict.fromkeys(DEFECTS.names()[2:], False)
    looping = pl.DataFrame([{"prompt_id": "p", "teacher": "me", **one, "repetition": True}], schema=DEFECTS)

    def gains(asked: pl.DataFrame, **params: Any) -> tuple[list[float], dict[str, Any]]:
        """What c gains on p, q and r, and the counts."""
        settings = RewardSettings(alpha=0.7, **params)
        found = [
            build(*RIGHT, looping, TEACHERS, Policies(), each, domains=asked)
            for each in (settings.changed(unsolved=1.0), settings)
        ]
        new, old = (table.filter(teacher="c").sort("prompt_id")["reward"] for table, _ in found)
        return (new - old).to_list(), found[0][1]["unsolved"]

    found, counts = gains(student({"p": [1.0], "q": [0.0]}, looping))
    assert found == pytest.approx([1.0, 1.0, 0.0])
    assert (counts["prompts"], counts["flawed"], counts["solved"], counts["left_out"]["response"]) == (2, 1, 0, 1)
    asked = student({"p": [0.0], "q": [0.0], "r": [0.0]})
    found, counts = gains(asked.with_columns(domain=pl.lit("math")), gate={"math": 1.0})
    assert found == [0.0] * 3
    assert counts["left_out"] == {"gate": 3, "scale": 0, "response": 0}
    mixed = pl.concat([asked[:2], student({"r": [0.0]}, domain="code")[2:]])
    found, counts = gains(mixed)
    assert found == pytest.approx([1.0, 1.0, 0.0])
    assert counts["left_out"] == {"gate": 0, "scale": 1, "response": 0}
    graded = student({"p": [6.0], "q": [11.0], "r": [1.0]}, domain="instruction")
    assert graded.sort("prompt_id")["own"].to_list() == [0.5, 1.0, 0.0], "on the judge's scale"
    with pytest.raises(InputError, match=r"rewards.unsolved is 1, but no response of the student has a quality"):
        gains(student({}))


@pytest.mark.parametrize("normalization", ["min_max", "rank", "z_score", "shared", "none"])
@pytest.mark.parametrize("penalty", [0.3, 1.0])
def test_a_penalised_response_gains_nothing_and_an_anchored_one_moves_no_other(
    normalization: Any, penalty: float
) -> None:
    quality, learned, defects, names = made_up(40, 5, 1, binary=True)
    own = quality.filter(teacher="t0").with_columns(teacher=pl.lit("me"))
    prompts = quality.select("prompt_id", domain=pl.lit("math")).unique("prompt_id").sort("prompt_id")
    asked = with_student(prompts, own, defects, Policies(), SCALES)
    settings = RewardSettings(alpha=0.6, normalization=normalization, penalty=penalty, unsolved=0.5)
    known = pl.col("teacher") != "t4"
    few = quality.filter(known), learned.filter(known), defects.filter(known)
    alone, counts = build(*few, names[:4], Policies(), settings, domains=asked)
    beside, more = build(quality, learned, defects, names, Policies(), settings, ["t4"], asked)
    assert beside.filter(known)["reward"].to_list() == pytest.approx(alone["reward"].to_list(), abs=1e-12)
    assert counts["unsolved"] == more["unsolved"]
    without, _ = build(*few, names[:4], Policies(), settings.changed(unsolved=0.0), domains=asked)
    bad = defects.filter(pl.any_horizontal(Policies().kinds("penalise", "drop")))
    sound = alone.join(bad, on=["prompt_id", "teacher"], how="anti")
    gained = sound.join(without, on=["prompt_id", "teacher"], suffix="_0").with_columns(
        gain=pl.col("reward") - pl.col("reward_0")
    )
    assert gained.filter(pl.col("quality") == 0)["gain"].abs().max() == pytest.approx(0.0, abs=1e-12)
    assert set(gained.filter(pl.col("quality") == 1)["gain"].round(9)) == {0.0, 0.5}
    assert counts["unsolved"]["raised"] == gained.filter(pl.col("gain") > 0.1).height > 10
    if penalty >= 1:
        lost = (
            alone.join(bad, on=["prompt_id", "teacher"], how="semi").group_by("prompt_id").agg(pl.col("reward").max())
        )
        least = sound.group_by("prompt_id").agg(pl.col("reward").min())
        assert least.join(lost, on="prompt_id").filter(pl.col("reward") <= pl.col("reward_right")).is_empty()
