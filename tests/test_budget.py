"""The budget is never exceeded, and what it allows is used."""

from pathlib import Path
from typing import Any

import pytest

from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.responses import generate_responses
from persyn.store import shelves, verify
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table

PROMPTS = prompts_table([f"Tell story number {number}." for number in range(30)])
TEACHER = Teacher(model="stub", license="x", backend="openai", sampling=Sampling(max_tokens=40))


@pytest.mark.parametrize("max_tokens", [100, 400, 1000])
def test_a_run_stops_before_it_overspends(max_tokens: int, tmp_path: Path) -> None:
    budget = Budget(max_tokens=max_tokens)
    with stub_teacher() as server:
        knobs = server.speed()
        with pytest.raises(InputError, match=r"of [\d,]+ tokens are spent; the next of .* budget.max_tokens"):
            generate_responses(PROMPTS, "t", TEACHER, tmp_path, knobs, budget=budget)
        assert max_tokens - 2 * (40 + 16 + len("Tell story number 10.")) < budget.spent(tmp_path) <= max_tokens
        [shelf] = shelves(tmp_path)
        assert verify(shelf)[0].rows == server.counts["ok"], "all that was paid for is kept"
        enough = Budget(max_tokens=100_000)
        table = generate_responses(PROMPTS, "t", TEACHER, tmp_path, knobs, budget=enough)
        assert server.counts["ok"] == table.height == 30
        tokens = table.select("num_prompt_tokens", "num_response_tokens").sum().row(0)
        assert enough.spent(tmp_path) == sum(tokens)
        generate_responses(PROMPTS, "t", TEACHER, tmp_path, knobs, budget=Budget(max_tokens=0))
        assert server.counts["ok"] == 30, "what is paid for is served whatever the budget"


def test_what_was_paid_before_a_date_does_not_count(tmp_path: Path) -> None:
    with stub_teacher() as server:
        generate_responses(PROMPTS, "t", TEACHER, tmp_path, server.speed())
    assert Budget(max_tokens=0, since="2020-01-01").spent(tmp_path) == Budget(max_tokens=0).spent(tmp_path) > 0
    assert Budget(max_tokens=0, since="2999-01-01").spent(tmp_path) == 0


@pytest.mark.parametrize("max_tokens", ["much", -1, 1.5, float("nan")])
def test_a_limit_that_is_none(max_tokens: Any) -> None:
    with pytest.raises(InputError, match=rf"^budget.max_tokens is {max_tokens!r}; it must be "):
        Budget.parse({"max_tokens": max_tokens}, "budget")


def test_parts_share_what_is_left(tmp_path: Path) -> None:
    assert Budget(max_tokens=1000).divided(tmp_path, 3).max_tokens == 333
    assert Budget().divided(tmp_path, 3).max_tokens is None
