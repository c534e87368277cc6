from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import polars as pl
import pytest

from persyn.errors import InputError
from persyn.project.params import check_params
from persyn.routes import (
    BestQuality,
    BestSingle,
    Car,
    FamilyStrong,
    Grape,
    Mix,
    Oracle,
    Persyn,
    Pool,
    Random,
    Rule,
    Scas,
    Strong,
    allocation,
    build_routes,
)
from persyn.schemas import REWARDS, ROUTES, check_table
from tests.support.tables import prompts_table, texts_of
from tests.support.tiny import tiny_params

TEACHERS = ["a", "b", "c"]
PROMPTS = prompts_table([f"prompt {i}" for i in range(300)])
FAMILIES = {"a": "qwen", "b": "llama", "c": "qwen"}


def never(prompts: pl.DataFrame, method: str | None) -> np.ndarray:
    raise AssertionError("this rule needs no router")


def by_number(prompts: pl.DataFrame, method: str | None) -> np.ndarray:
    """Prompt i: teacher i % 3 first, the one before it second; under method knn, the next one first."""
    number = np.array([int(text.split()[1]) + (method == "knn") for text in texts_of(prompts)])
    return np.array([2.0, 0.0, 1.0])[(np.arange(3) - number[:, None]) % 3]


def rewards(scores: Mapping[str, tuple[float, float, float]], prompts: pl.DataFrame = PROMPTS) -> pl.DataFrame:
    """REWARDS where each teacher has the same (quality, learnability, reward) on all prompts."""
    rows = [(identity, name, *scores[name]) for identity in prompts["prompt_id"] for name in scores]
    return pl.DataFrame(rows, schema=REWARDS, orient="row")


ALIKE = rewards(dict.fromkeys(TEACHERS, (0.0, -1.0, 0.0)))


def pool(table: pl.DataFrame = ALIKE, predict: Any = never, student_family: str | None = "qwen") -> Pool:
    return Pool(TEACHERS, table, predict, FAMILIES, student_family)


def teacher_of(routes: pl.DataFrame) -> dict[str, str]:
    rows = routes.join(PROMPTS, on="prompt_id")
    return dict(zip(texts_of(rows), rows["teacher"], strict=True))


def chosen(strategy: Rule, *args: Any, **kwargs: Any) -> list[str]:
    routes = build_routes(PROMPTS, pool(*args, **kwargs), strategy)
    check_table(routes, ROUTES, "routes")
    assert routes["prompt_id"].to_list() == PROMPTS["prompt_id"].sort().to_list()
    return routes["teacher"].to_list()


def test_persyn_takes_the_largest_strength_of_each_prompt() -> None:
    routes = build_routes(PROMPTS, pool(predict=by_number), Persyn(rule="persyn"))
    by_prompt = teacher_of(routes)
    assert all(by_prompt[f"prompt {i}"] == TEACHERS[i % 3] for i in range(300))
    assert routes["strength"].unique().to_list() == [2.0]
    assert routes["margin"].unique().to_list() == [1.0]


def test_a_strategy_routes_by_a_method_beside_the_router() -> None:
    routes = build_routes(PROMPTS, pool(predict=by_number), Persyn(rule="persyn", router="knn"))
    by_prompt = teacher_of(routes)
    assert all(by_prompt[f"prompt {i}"] == TEACHERS[(i + 1) % 3] for i in range(300))


def test_only_a_method_that_is_trained_can_route() -> None:
    params = tiny_params("m")
    params["router"] |= {"method": "blend", "beside": ["knn"]}
    for method in ("blend", "knn", None):
        params["strategies"]["other"] = {"rule": "persyn", "router": method}
        check_params(params)
    params["strategies"]["other"]["router"] = "linear"
    message = "strategies.other.router is linear; it must be router.method or one of router.beside; known: blend, knn"
    with pytest.raises(InputError, match=message):
        check_params(params)


def test_an_excluded_teachers_prompts_go_to_the_next_best_and_no_others_move() -> None:
    routes = build_routes(PROMPTS, pool(predict=by_number), Persyn(rule="persyn", exclude=["b"]))
    by_prompt = teacher_of(routes)
    for i in range(300):
        assert by_prompt[f"prompt {i}"] == ("a" if i % 3 == 1 else TEACHERS[i % 3])
    with pytest.raises(InputError, match="names all 3 teachers"):
        build_routes(PROMPTS, pool(predict=by_number), Persyn(rule="persyn", exclude=TEACHERS))


def test_car_equals_a_hand_computed_case() -> None:
    """Mean quality a 1, b 4, c 5, mean loss 0.5, 1, 3: 1 / 2.5 = 0.4, 4 / 4 = 1, 5 / 10 = 0.5 at beta 3."""
    table = rewards({"a": (1.0, -0.5, 0.0), "b": (4.0, -1.0, 0.0), "c": (5.0, -3.0, 0.0)})
    assert set(chosen(Car(rule="car"), table)) == {"b"}
    assert set(chosen(Car(rule="car", beta=0), table)) == {"c"}
    assert set(chosen(Car(rule="car", beta=100), table)) == {"b"}, "4 / 101 beats 1 / 51 and 5 / 301"
    # Scores below 0 are shifted by the lowest: a 0, b 3, c 4: 0, 0.75, 0.4. Unshifted, c (-1 / 10) would win.
    negative = rewards({"a": (-5.0, -0.5, 0.0), "b": (-2.0, -1.0, 0.0), "c": (-1.0, -3.0, 0.0)})
    assert set(chosen(Car(rule="car"), negative)) == {"b"}


def test_mix_gives_the_strong_teacher_exactly_its_share() -> None:
    """1:4 of 300 prompts is 60 and 240."""
    names = chosen(Mix(rule="mix", strong="a", weak="c"))
    assert (names.count("a"), names.count("c")) == (60, 240)
    assert names == chosen(Mix(rule="mix", strong="a", weak="c"))
    assert names != chosen(Mix(rule="mix", strong="a", weak="c", seed=1))
    by_quality = rewards({"a": (0.2, -1.0, 0.0), "b": (0.9, -1.0, 0.0), "c": (0.5, -1.0, 0.0)})
    unnamed = chosen(Mix(rule="mix", strong_share=0.5), by_quality)
    assert (unnamed.count("b"), unnamed.count("a")) == (150, 150)


def test_generate_then_select_equals_a_hand_computed_case() -> None:
    """Two prompts, three teachers: grape by learnability, best_quality by quality, oracle by reward."""
    prompts = PROMPTS.sort("prompt_id")[:2]
    scores = [
        [("a", 1.0, -0.9, 0.6), ("b", 0.0, -0.1, 0.4), ("c", 0.5, -0.5, 0.7)],
        [("a", 0.1, -0.2, 0.5), ("b", 0.3, -0.3, 0.8), ("c", 0.2, -0.1, 0.1)],
    ]
    rows = [(identity, *row) for identity, part in zip(prompts["prompt_id"], scores, strict=True) for row in part]
    table = pl.DataFrame(rows, schema=REWARDS, orient="row")
    rules = Grape(rule="grape"), BestQuality(rule="best_quality"), Oracle(rule="oracle")
    found = {rule.rule: build_routes(prompts, pool(table), rule)["teacher"].to_list() for rule in rules}
    assert found == {"grape": ["b", "c"], "best_quality": ["a", "b"], "oracle": ["c", "b"]}


@pytest.mark.parametrize("rule", [Oracle(rule="oracle"), Grape(rule="grape"), BestQuality(rule="best_quality")])
def test_rules_that_select_take_responses_that_are_fit_to_train_on(rule: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The best of all three was cut on two prompts; on one of them so was every other."""
    table = rewards({"a": (0.0, -3.0, 0.0), "b": (1.0, -1.0, 1.0), "c": (0.5, -2.0, 0.5)})
    first, second = prompts_table(["prompt 0", "prompt 1"])["prompt_id"]
    unfit = pl.DataFrame(
        [(first, "b"), *((second, name) for name in TEACHERS)], schema=["prompt_id", "teacher"], orient="row"
    )
    chosen = teacher_of(build_routes(PROMPTS, replace(pool(table), unfit=unfit), rule))
    assert chosen["prompt 0"] == "c"
    assert {teacher for text, teacher in chosen.items() if text != "prompt 0"} == {"b"}
    assert f"on 1 of {PROMPTS.height} prompts no response is fit to train on" in caplog.text
    routes = build_routes(PROMPTS, replace(pool(table), unfit=unfit, with_next=True), rule)
    assert routes.filter(prompt_id=first)["next"].to_list() == [["a", "b"]]


def test_scas_takes_the_most_learnable_of_the_right_ones(caplog: pytest.LogCaptureFixture) -> None:
    """The likeliest of all is wrong on the first prompt, right on the second; on the third none is right."""
    prompts = PROMPTS.sort("prompt_id")[:3]
    scores = [
        [("a", 1.0, -0.9, 0.6), ("b", 0.0, -0.1, 0.4), ("c", 1.0, -0.5, 0.7)],
        [("a", 1.0, -0.2, 0.5), ("b", 1.0, -0.3, 0.8), ("c", 0.0, -0.4, 0.1)],
        [("a", 0.5, -0.2, 0.5), ("b", 0.9, -0.3, 0.8), ("c", 0.0, -0.1, 0.1)],
    ]
    rows = [(identity, *row) for identity, part in zip(prompts["prompt_id"], scores, strict=True) for row in part]
    table = pl.DataFrame(rows, schema=REWARDS, orient="row")
    caplog.set_level("INFO", "persyn.routes")
    routes = build_routes(prompts, replace(pool(table), with_next=True), Scas(rule="scas"))
    assert routes["teacher"].to_list() == ["c", "a", "c"]
    assert "scas: no response to 1 of 3 parallel prompts is right" in caplog.text
    assert routes["next"].to_list() == [["a", "b"], ["b", "c"], ["a", "b"]], "first the right ones"
    easier = Scas(rule="scas", require={"instruction": 0.5})
    assert build_routes(prompts, pool(table), easier)["teacher"].to_list() == ["c", "a", "a"]
    other = Scas(rule="scas", require={"math": 0.5})
    assert build_routes(prompts, pool(table), other)["teacher"].to_list() == ["c", "a", "c"]
    with pytest.raises(InputError, match=r"1 of 3 are not parallel; set prompts.num_parallel to null"):
        build_routes(prompts.with_columns(parallel=pl.Series([True, True, False])), pool(table), Scas(rule="scas"))


def test_equally_good_teachers_are_drawn_by_lot() -> None:
    names = chosen(BestQuality(rule="best_quality"))
    assert min(names.count(name) for name in TEACHERS) > 70
    assert names == chosen(BestQuality(rule="best_quality"), ALIKE.reverse())
    assert names != chosen(BestQuality(rule="best_quality", seed=1))


def test_generate_then_select_needs_every_answer() -> None:
    half = PROMPTS.with_columns(parallel=pl.Series([i % 2 == 0 for i in range(300)]))
    with pytest.raises(InputError, match=r"150 of 300 are not parallel; set prompts.num_parallel to null"):
        build_routes(half, pool(), Oracle(rule="oracle"))
    scored = rewards({"a": (0.0, -1.0, 0.1), "b": (0.0, -1.0, 0.9), "c": (0.0, -1.0, 0.2)}, PROMPTS[:299])
    assert set(chosen(Oracle(rule="oracle"), scored)) == {"b"}, (
        "a prompt without rewards goes to the best single teacher"
    )


def test_one_teacher_for_everything() -> None:
    table = rewards({"a": (0.7, -9.0, 0.3), "b": (0.9, -9.0, 0.2), "c": (0.8, -9.0, 0.5)})
    assert set(chosen(Strong(rule="strong", teacher="a"), table)) == {"a"}
    assert set(chosen(Strong(rule="strong"), table)) == {"b"}, "highest quality"
    assert set(chosen(BestSingle(rule="best_single"), table)) == {"c"}, "highest reward"
    assert set(chosen(FamilyStrong(rule="family_strong"), table)) == {"c"}, "highest quality among a and c"
    assert set(chosen(FamilyStrong(rule="family_strong"), table, student_family="llama")) == {"b"}
    for family in ("gemma", None):
        with pytest.raises(InputError, match=r"the teachers' families are \['llama', 'qwen'\]"):
            chosen(FamilyStrong(rule="family_strong"), table, student_family=family)


def test_random_is_all_of_them() -> None:
    random = build_routes(PROMPTS, pool(), Random(rule="random", seed=0))
    assert random.equals(build_routes(PROMPTS.reverse(), pool(), Random(rule="random", seed=0)))
    assert not random.equals(build_routes(PROMPTS, pool(), Random(rule="random", seed=1)))
    shares = allocation(random, TEACHERS)["share"]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0.25
    assert random["strength"].null_count() == 300


def test_allocation_names_teachers_without_a_prompt() -> None:
    strong = build_routes(PROMPTS, pool(), Strong(rule="strong", teacher="b"))
    assert allocation(strong, TEACHERS) == {"prompts": 300, "entropy": 0.0, "share": {"a": 0.0, "b": 1.0, "c": 0.0}}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"rule": "best"}, "rule is 'best'; it must be one of .*persyn, "),
        ({"rule": "mix", "strong_shar": 1}, "strong_shar is not a parameter; did you mean strong_share"),
        ({"rule": "mix", "strong_share": 2}, "strong_share is 2; it must be a number from 0 to 1"),
        ({"rule": "strong", "teacher": "z"}, "teacher names 'z', which is no teacher; known: smollm2-terse, "),
        ({"rule": "persyn", "exclude": ["z"]}, r"exclude\.0 names 'z', which is no teacher; known: smollm2-terse, "),
        ({"rule": "random", "sed": 1}, "sed is not a parameter; did you mean seed"),
    ],
)
def test_bad_strategies_are_named(strategy: dict[str, Any], message: str) -> None:
    params = tiny_params("model")
    params["strategies"] = {"mine": strategy}
    with pytest.raises(InputError, match=rf"^params\.yaml: strategies\.mine\.{message}") as raised:
        check_params(params)
    assert len(raised.value.args) == 1


@pytest.mark.parametrize("strategy", [Strong(rule="strong", teacher="z"), Persyn(rule="persyn", exclude=["z"])])
def test_a_teacher_that_the_pool_does_not_have_is_named(strategy: Rule) -> None:
    with pytest.raises(InputError, match=rf"rule {strategy.rule} chose z; known: a, b, c"):
        build_routes(PROMPTS, pool(), strategy)


def two_domains(math: Mapping[str, float], instruction: Mapping[str, float]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """PROMPTS, every other one math, and REWARDS of these mean qualities, which vary by a tenth of the largest."""
    domains = pl.Series(["math", "instruction"] * 150, dtype=PROMPTS.schema["domain"])
    prompts = PROMPTS.sort("prompt_id").with_columns(domain=domains)
    rows = []
    for number, (identity, domain) in enumerate(prompts.select("prompt_id", "domain").rows()):
        means = math if domain == "math" else instruction
        noise = max(map(abs, means.values())) / 10 * (-1) ** (number // 2)
        rows += [(identity, name, means[name] + noise, -1.0, 0.0) for name in TEACHERS]
    return prompts, pl.DataFrame(rows, schema=REWARDS, orient="row")


def test_a_large_scale_of_quality_drowns_no_other_domain() -> None:
    """a is far ahead in math (0 to 1), b a little in instruction (-10 to 10): the mean of both scales names b, the mean
    of z-scores a. c is the weakest by z-scores: last in math, while a is behind by little in instruction.
    """
    prompts, table = two_domains({"a": 0.9, "b": 0.1, "c": 0.0}, {"a": 6.0, "b": 7.0, "c": 6.5})

    def names(rule: Rule) -> list[str]:
        return build_routes(prompts, pool(table), rule)["teacher"].to_list()

    raw = dict(table.group_by("teacher").agg(pl.col("quality").mean()).rows())
    assert max(raw, key=raw.__getitem__) == "b"
    assert set(names(Strong(rule="strong"))) == {"a"}
    assert set(names(Car(rule="car"))) == {"a"}
    mixed = names(Mix(rule="mix"))
    assert (mixed.count("a"), mixed.count("c")) == (60, 240)
    prompts, table = two_domains({"a": 0.9, "b": 0.5, "c": 0.1}, {"a": 6.0, "b": 0.0, "c": 7.0})
    assert set(names(FamilyStrong(rule="family_strong"))) == {"a"}


def test_the_scale_of_a_domain_changes_no_choice() -> None:
    math, instruction = {"a": 0.9, "b": 0.1, "c": 0.4}, {"a": -6.0, "b": 7.0, "c": 1.0}
    rules = Strong(rule="strong"), FamilyStrong(rule="family_strong"), Mix(rule="mix"), Car(rule="car")
    prompts, table = two_domains(math, instruction)
    scaled = pl.when(pl.col("prompt_id").is_in(prompts.filter(domain="math")["prompt_id"].to_list()))
    other = table.with_columns(quality=scaled.then(1000 * pl.col("quality") - 7).otherwise("quality"))
    for rule in rules:
        assert build_routes(prompts, pool(table), rule).equals(build_routes(prompts, pool(other), rule))


def test_rewards_that_are_equal_but_for_rounding_are_drawn_by_lot() -> None:
    table = rewards({"a": (0.0, -1.0, 0.3), "b": (0.0, -1.0, 0.1 + 0.2), "c": (0.0, -1.0, 0.2)})
    names = chosen(Oracle(rule="oracle"), table)
    assert min(names.count("a"), names.count("b")) > 100
    assert "c" not in names


def test_a_right_response_that_is_not_fit_to_train_on_is_left_for_one_that_is() -> None:
    prompts = PROMPTS.sort("prompt_id")[:1]
    [identity] = prompts["prompt_id"]
    rows = [(identity, "a", 1.0, -0.1, 0.9), (identity, "b", 0.0, -0.2, 0.1), (identity, "c", 0.0, -0.3, 0.1)]
    table = pl.DataFrame(rows, schema=REWARDS, orient="row")
    unfit = pl.DataFrame({"prompt_id": [identity], "teacher": ["a"]})
    assert build_routes(prompts, pool(table), Scas(rule="scas"))["teacher"].to_list() == ["a"]
    routes = build_routes(prompts, replace(pool(table), unfit=unfit), Scas(rule="scas"))
    assert routes["teacher"].to_list() == ["b"]
