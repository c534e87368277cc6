import numpy as np
import pytest
from conftest import prompts_table

from persyn.routes import allocation, build_routes
from persyn.schemas import ROUTES, InputError, check_table

TEACHERS = ["a", "b", "c"]
PROMPTS = prompts_table([f"prompt {i}" for i in range(300)])


def never(texts: list[str]) -> np.ndarray:
    raise AssertionError("this rule needs no router")


def test_persyn_takes_the_largest_strength_of_each_prompt() -> None:
    def predict(texts: list[str]) -> np.ndarray:
        return np.array([[int(text.split()[1]) % 3 == m for m in range(3)] for text in texts], dtype=np.float32) * 2

    routes = build_routes(PROMPTS, TEACHERS, predict, {"rule": "persyn"})
    check_table(routes, ROUTES, "routes")
    by_prompt = dict(routes.join(PROMPTS, on="prompt_id").select("prompt", "teacher").rows())
    assert all(by_prompt[f"prompt {i}"] == TEACHERS[i % 3] for i in range(300))
    assert routes["strength"].unique().to_list() == [2.0]
    assert routes["margin"].unique().to_list() == [2.0]


def test_strong_is_one_teacher_and_random_is_all_of_them() -> None:
    strong = build_routes(PROMPTS, TEACHERS, never, {"rule": "strong", "teacher": "b"})
    assert strong["teacher"].unique().to_list() == ["b"]
    assert strong["strength"].null_count() == 300
    random = build_routes(PROMPTS, TEACHERS, never, {"rule": "random", "seed": 0})
    assert random.equals(build_routes(PROMPTS.reverse(), TEACHERS, never, {"rule": "random", "seed": 0}))
    assert not random.equals(build_routes(PROMPTS, TEACHERS, never, {"rule": "random", "seed": 1}))
    shares = allocation(random, TEACHERS)["share"]
    assert sum(shares.values()) == pytest.approx(1)
    assert min(shares.values()) > 0.25


def test_allocation_names_teachers_without_a_prompt() -> None:
    strong = build_routes(PROMPTS, TEACHERS, never, {"rule": "strong", "teacher": "b"})
    assert allocation(strong, TEACHERS) == {"prompts": 300, "entropy": 0.0, "share": {"a": 0.0, "b": 1.0, "c": 0.0}}


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ({"rule": "best"}, "rule 'best' is not one of persyn, strong, random"),
        ({"rule": "strong"}, "rule strong.teacher is missing"),
        ({"rule": "strong", "teacher": "z"}, "chose z; known: a, b, c"),
        ({"rule": "random", "sed": 1}, "rule random.sed is not a parameter; did you mean seed"),
    ],
)
def test_bad_strategies_are_named(strategy: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_routes(PROMPTS, TEACHERS, never, strategy)
