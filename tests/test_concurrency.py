"""The gate: as many calls as the server bears, none while it is down, and patience that ends."""

import threading
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.concurrency import FAILURES, START
from persyn.responses import generate_responses
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table

PROMPTS = prompts_table([f"Tell story number {number}." for number in range(400)])
TEACHER = Teacher(model="stub", license="x", backend="openai", sampling=Sampling(max_tokens=40))


def ask(server: StubServer, folder: Path, prompts: pl.DataFrame = PROMPTS, **speed: Any) -> pl.DataFrame:
    knobs = server.speed(**{"timeout": 5.0, **speed})
    return generate_responses(prompts, "t", TEACHER, folder, knobs, max_error_share=1.0)


def test_concurrency_grows_to_what_is_allowed(tmp_path: Path) -> None:
    with stub_teacher(delay=0.05) as server:
        ask(server, tmp_path, concurrency=40)
        assert START < server.counts["most in flight"] <= 40


def test_concurrency_adapts_to_what_the_server_bears(tmp_path: Path) -> None:
    with stub_teacher(delay=0.05) as server:
        server.capacity = 20
        table = ask(server, tmp_path)
        assert (table["finish_reason"] != "error").all()
        assert server.counts["ok"] == len(PROMPTS)
        assert server.counts["beyond capacity"] < len(PROMPTS) / 4
        # It went up until the server first refused, then stayed near that: far fewer than the 256 it was allowed.
        assert 20 < server.counts["most in flight"] <= 64


def test_retry_after_holds_every_call_back(tmp_path: Path) -> None:
    with stub_teacher(delay=0.01) as server:
        server.capacity, server.retry_after = 0, "1"
        threading.Timer(0.3, setattr, (server, "capacity", 100)).start()
        started = time.monotonic()
        ask(server, tmp_path, PROMPTS[:40])
        assert time.monotonic() - started > 1
        assert server.counts["beyond capacity"] <= START, "nothing was sent while the server asked to be left alone"


def test_a_server_that_is_down_for_a_while_is_waited_for(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with stub_teacher({"500": 1.0}) as server:
        threading.Timer(2.5, setattr, (server, "faults", {})).start()
        table = ask(server, tmp_path)
        assert (table["finish_reason"] != "error").all()
        assert server.counts["ok"] == len(PROMPTS)
        assert server.counts["500"] <= FAILURES + START + 4, "while it is down, one call at a time is tried"
    assert f"fails (status 500) {FAILURES} times in a row" in caplog.text
    assert "answers again" in caplog.text


def test_a_server_that_stays_away_ends_the_run_and_answers_are_kept(tmp_path: Path) -> None:
    with stub_teacher() as server:
        ask(server, tmp_path, PROMPTS[:50])
        server.faults = {"500": 1.0}
        with pytest.raises(InputError, match=r"has failed for .* more than max_outage 1 s. All responses are kept"):
            ask(server, tmp_path, max_outage=1.0)
        server.faults = {}
        ask(server, tmp_path)
        assert server.counts["ok"] == len(PROMPTS)


def test_a_server_that_asks_for_more_patience_than_there_is(tmp_path: Path) -> None:
    with stub_teacher() as server:
        server.capacity, server.retry_after = 0, "3600"
        started = time.monotonic()
        with pytest.raises(InputError, match="for 3600 s, which is more than max_outage 300 s"):
            ask(server, tmp_path)
        assert time.monotonic() - started < 10
