"""Routing within a number of response tokens: by hand, and what must hold whatever the numbers."""

import math
from typing import Any

import numpy as np
import polars as pl
import pytest

from persyn.errors import InputError
from persyn.routes import Persyn, Pool, build_routes
from persyn.routes.budgeted import choose, choose_within, expected_tokens
from persyn.schemas import DOMAINS, REWARDS
from tests.support.tables import prompts_table, responses_table, texts_of

PROMPTS = prompts_table(["p1", "p2", "p3", "p4"]).with_columns(parallel=pl.Series([True, False, False, False]))
TEXTS = PROMPTS.select("prompt_id", text=pl.Series(texts_of(PROMPTS)))
# `long` is the stronger one by 3, 2, 1 and -1; it needs 10 tokens an answer, `short` 4.
STRENGTHS = {"p1": (3.0, 0.0), "p2": (2.0, 0.0), "p3": (1.0, 0.0), "p4": (0.0, 1.0)}
RESPONSES = {
    "long": responses_table(PROMPTS[:1], "long", ["w " * 10]),
    "short": responses_table(PROMPTS[:1], "short", ["w " * 4]),
}


def pool() -> Pool:
    rewards = pl.DataFrame(schema=REWARDS)
    strengths = lambda asked, method: np.array([STRENGTHS[text] for text in texts_of(asked)])  # noqa: E731
    return Pool(["long", "short"], rewards, strengths, {}, None, lambda: RESPONSES)


def routed(**arguments: Any) -> dict[str, list[str]]:
    routes = build_routes(PROMPTS, pool(), Persyn(rule="persyn", **arguments)).join(TEXTS, on="prompt_id")
    return {text: part["teacher"].to_list() for (text,), part in routes.sort("text").group_by("text")}


def test_the_weight_by_hand() -> None:
    """p1 is answered: nothing to pay, so it stays. p2 + p3 by `long` and p4 by `short` are 24 tokens. p3 moves first,
    at 1 of strength / 6 tokens = 1/6 (18 tokens), p2 at 2/6 (12 tokens); less is impossible.
    """
    unlimited = {"p1": ["long"], "p2": ["long"], "p3": ["long"], "p4": ["short"]}
    assert routed() == routed(max_tokens=24) == routed(max_tokens=1000) == unlimited
    assert routed(max_tokens=23) == routed(max_tokens=18) == unlimited | {"p3": ["short"]}
    assert routed(max_tokens=17) == routed(max_tokens=12) == unlimited | {"p3": ["short"], "p2": ["short"]}
    with pytest.raises(InputError, match=r"max_tokens is 11.9; the shortest teachers alone .* 12 response tokens"):
        routed(max_tokens=11.9)
    tokens = expected_tokens(PROMPTS, pl.concat(RESPONSES.values()), ["long", "short"])
    assert tokens.tolist() == [[0, 0], [10, 4], [10, 4], [10, 4]]
    strengths, decided = np.array(list(STRENGTHS.values())), np.zeros(4, bool)
    for max_tokens, weight in ((24, 0), (18, 1 / 6), (12, 2 / 6)):
        assert choose_within(strengths, tokens, decided, max_tokens)[1] == pytest.approx(weight)


def test_a_slack_budget_changes_no_byte() -> None:
    free = build_routes(PROMPTS, pool(), Persyn(rule="persyn"))
    assert free.equals(build_routes(PROMPTS, pool(), Persyn(rule="persyn", max_tokens=24, second_below=0)))
    tight = build_routes(PROMPTS, pool(), Persyn(rule="persyn", max_tokens=12)).join(TEXTS, on="prompt_id")
    assert dict(tight.select("text", "margin").rows()) == {"p1": 3.0, "p2": -2.0, "p3": -1.0, "p4": 1.0}


def test_where_the_margin_is_small_two_teachers_are_asked_and_both_are_counted() -> None:
    both = {"p3": ["long", "short"], "p4": ["long", "short"]}
    assert {text: sorted(names) for text, names in routed(second_below=1.5).items()} == {
        "p1": ["long"],
        "p2": ["long"],
        **both,
    }
    routes = build_routes(PROMPTS, pool(), Persyn(rule="persyn", second_below=1.5)).join(TEXTS, on="prompt_id")
    margins = dict(routes.filter(text="p4").select("teacher", "margin").rows())
    assert margins == {"short": 1.0, "long": -1.0}
    # p3 and p4 need 14 each; p2 can do with 4.
    assert routed(second_below=1.5, max_tokens=32)["p2"] == ["short"]
    with pytest.raises(InputError, match="32 response tokens"):
        routed(second_below=1.5, max_tokens=31)


def test_tokens_fall_as_the_weight_grows_and_no_cheaper_choice_is_stronger() -> None:
    draw = np.random.default_rng(0)
    strengths, tokens = draw.normal(size=(200, 5)), draw.gamma(2.0, 100.0, size=(200, 5))
    undecided = draw.random(200) < 0.3
    totals = [tokens[choose(strengths, tokens, undecided, weight)].sum() for weight in np.geomspace(1e-5, 1, 60)]
    assert totals == sorted(totals, reverse=True)
    for share in (1.0, 0.8, 0.6):
        limit = share * totals[0]
        chosen, weight = choose_within(strengths, tokens, undecided, limit)
        assert math.fsum(tokens[chosen]) <= limit
        assert (chosen.sum(axis=1) == 1 + undecided).all()
        if weight:
            looser = choose(strengths, tokens, undecided, weight * (1 - 1e-9))
            assert math.fsum(tokens[looser]) > limit, "no smaller weight is enough"


def test_lengths_are_of_the_domain_where_it_is_known() -> None:
    texts = ["i1", "i2", "m1", "m2"]
    domains = pl.Series(["instruction", "instruction", "math", "math"], dtype=DOMAINS)
    prompts = prompts_table(texts).with_columns(domain=domains)
    answers = [
        responses_table(prompts[[0, 2]], "a", ["w " * 2, "w " * 8]),
        responses_table(prompts[:1], "b", ["w " * 3]),
    ]
    tokens = expected_tokens(prompts, pl.concat(answers), ["a", "b"])
    assert tokens.tolist() == [[0, 0], [2, 3], [0, 3], [8, 3]], "b has no math answer: its mean over all"
    with pytest.raises(InputError, match=r"^c have no .* length"):
        expected_tokens(prompts, pl.concat(answers), ["a", "c"])
