"""The benchmark for a GPU runs, at toy sizes on a CPU."""

import math

import pytest

from benchmarks.gpu import PARTS, Bench, markdown

ELSEWHERE = {"graph", "scoring-7B", "scoring-0.5B", "student-1.5B"}
"""The pipeline on tiny models has a test of its own; at toy sizes the others are the parts that are tested."""


FAST = ("scoring-1.5B", "vocabulary", "reward")


@pytest.mark.parametrize(
    "part", [*FAST, *(pytest.param(p, marks=pytest.mark.slow) for p in PARTS if p not in {*FAST, *ELSEWHERE})]
)
def test_a_part_gives_a_row_for_each_method(part: str) -> None:
    name, *size = part.split("-")
    table = getattr(Bench(toy=True, rate=1e10), name)(*size)
    numbers = [value for row in table for value in row.values() if isinstance(value, float)]
    assert numbers
    assert all(math.isfinite(value) for value in numbers)
    assert markdown(table).count("\n") == len(table) + 1
    if name == "scoring":
        assert [row["method"] for row in table][0::3] == ["naive loop", "ours"]
        assert all(row["error, nats a token"] < 1e-4 for row in table)
    if name == "reward":
        assert all(row["difference"] < 1e-4 for row in table)
