"""The gate: as many calls as the server bears, none while it is down, and patience that ends."""

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest

from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.concurrency import FAILURES, START, Gate
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

        def recover() -> None:
            while server.counts["500"] < FAILURES:
                time.sleep(0.05)
            time.sleep(2)
            server.faults = {}

        threading.Thread(target=recover, daemon=True).start()
        table = ask(server, tmp_path)
        assert (table["finish_reason"] != "error").all()
        assert server.counts["ok"] == len(PROMPTS)
        assert server.counts["500"] <= FAILURES + START + 4, "while it is down, one call at a time is tried"
    assert f"the server of stub at {server.url} fails (status 500) {FAILURES} times in a row" in caplog.text
    assert f"the server of stub at {server.url} answers again" in caplog.text


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


def test_connections_are_used_again_and_closed_beyond_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Wire] = []
    monkeypatch.setattr(httpx2, "AsyncHTTPTransport", lambda **_: Wire(opened))
    asyncio.run(_use_connections(Gate(START, 60.0, "m", "http://127.0.0.1"), opened))


class Wire(httpx2.AsyncBaseTransport):
    """A connection to a server that answers as the path says."""

    def __init__(self, opened: list["Wire"]) -> None:
        self.closed = False
        opened.append(self)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if request.url.path == "/lost":
            raise httpx2.ReadError("reset", request=request)
        return httpx2.Response(int(request.url.path[1:]), stream=httpx2.ByteStream(b"{}"))

    async def aclose(self) -> None:
        self.closed = True


async def _use_connections(gate: Gate, opened: list[Wire]) -> None:
    async def call(*paths: str) -> None:
        requests = [httpx2.Request("POST", f"http://127.0.0.1/{path}") for path in paths]
        answers = [await gate.handle_async_request(request) for request in requests]
        for answer in answers:
            await answer.aread()

    await call(*["200"] * START)
    assert len(opened) == START
    await call(*["200"] * START)
    with pytest.raises(httpx2.ReadError):
        await call("lost")
    await call("200")
    assert len(opened) == START, "free ones are used again, after a failure too"
    await call(*["200"] * (START - 1), "429")
    assert sum(not wire.closed for wire in opened) == gate.limit == START // 2
    await gate.aclose()
    assert all(wire.closed for wire in opened)
