"""The ray engine in this machine. Skipped where Ray is not installed."""

from pathlib import Path

import pytest

from persyn.errors import InputError
from persyn.generation import RaySpeed, Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.openai import OpenAISpeed
from persyn.responses import generate_responses
from persyn.store import shelves, verify
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table

pytest.importorskip("ray")

PROMPTS = prompts_table([f"Tell story number {number}." for number in range(50)])
TEACHER = Teacher(model="stub", license="x", backend="openai", sampling=Sampling(max_tokens=40))


def test_actors_answer_each_prompt_once_and_the_table_is_that_of_one_process(tmp_path: Path) -> None:
    with stub_teacher() as server:
        expected = generate_responses(PROMPTS, "t", TEACHER, tmp_path / "alone", server.speed())
        server.counts.clear()
        knobs = server.speed(ray=RaySpeed(workers=2, unit=8, cpus=0.5))
        generate_responses(PROMPTS[:20], "t", TEACHER, tmp_path / "ray", server.speed())
        table = generate_responses(PROMPTS, "t", TEACHER, tmp_path / "ray", knobs)
        assert table.equals(expected)
        assert server.counts["ok"] == PROMPTS.height, "what the store holds is not asked"
        [shelf] = shelves(tmp_path / "ray")
        assert verify(shelf)[0].records == PROMPTS.height
        # All is answered: Ray is not even started.
        nowhere = knobs.changed(ray=RaySpeed(address="127.0.0.1:9"))
        assert generate_responses(PROMPTS, "t", TEACHER, tmp_path / "ray", nowhere).equals(table)
        server.faults = {"400": 1.0}
        more = prompts_table(["one more"])
        with pytest.raises(InputError, match=r"1 of 1 prompts of t have no response \(\{'refused': 1\}\)"):
            generate_responses(more, "t", TEACHER, tmp_path / "ray", knobs, budget=Budget(max_tokens=10_000))
        server.faults = {"401": 1.0}
        with pytest.raises(InputError, match="responds with status 401 to the model stub") as raised:
            generate_responses(more, "t", TEACHER, tmp_path / "ray", knobs)
        assert "\n" not in str(raised.value), "one line, not Ray's pages"


def test_a_knob_that_ray_does_not_have() -> None:
    with pytest.raises(InputError, match=r"^speed.openai.ray.worker is not a parameter; did you mean workers\?"):
        OpenAISpeed.parse({"ray": {"worker": 2}}, "speed.openai")
