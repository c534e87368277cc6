"""The openai backend against a server on loopback that goes wrong in every way."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.openai import OpenAISpeed, check_url
from persyn.responses import generate_responses
from persyn.store import shelves, verify
from tests.support.stub import StubServer, stub_teacher
from tests.support.tables import prompts_table

PROMPTS = prompts_table([f"Tell story number {number}." for number in range(40)])


def teacher(**changes: Any) -> Teacher:
    fields: Mapping[str, Any] = {
        "model": "stub",
        "license": "x",
        "backend": "openai",
        "sampling": {"max_tokens": 40, "temperature": 1.0},
    }
    return Teacher(**{**fields, **changes})


def ask(server: StubServer, folder: Path, prompts: pl.DataFrame = PROMPTS, **speed: Any) -> pl.DataFrame:
    knobs = server.speed(**{"concurrency": 8, "timeout": 1.0, "max_attempts": 6, **speed})
    return generate_responses(prompts, "t", teacher(), folder, knobs, max_error_share=1.0)


def test_every_fault_is_survived_and_the_answers_are_those_of_a_calm_server(tmp_path: Path) -> None:
    with stub_teacher() as calm:
        expected = ask(calm, tmp_path / "calm")
    faults = {"429": 0.1, "500": 0.1, "cut": 0.1, "hang": 0.02, "empty": 0.1, "html": 0.05, "garbled": 0.05}
    with stub_teacher(faults, hang=1.5) as server:
        assert ask(server, tmp_path / "faulty", max_attempts=12).equals(expected)
        assert server.counts["ok"] == len(PROMPTS), "no answer is asked for twice"
        assert server.counts["most in flight"] <= 8 + server.counts["hang"]
    assert set(expected["finish_reason"]) == {"stop", "length"}


@pytest.mark.parametrize(
    ("fault", "error"),
    [
        ("429", "rate_limit: status 429"),
        ("500", "server: status 500"),
        ("400", "refused: status 400"),
        ("redirect", "refused: status 307"),
        ("cut", "connection: RemoteProtocolError"),
        ("hang", "timeout: ReadTimeout"),
        ("html", "malformed: the body is not"),
        ("garbled", "malformed: the body is not"),
    ],
)
def test_what_keeps_failing_becomes_a_typed_error_and_is_asked_again_later(
    fault: str, error: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with stub_teacher({fault: 1.0}, hang=0.5) as server:
        table = ask(server, tmp_path, PROMPTS[:2], max_attempts=2, timeout=0.2)
        permanent = fault in ("400", "redirect")
        assert server.counts[fault] == 2 * (1 if permanent else 2)
    assert table["finish_reason"].to_list() == ["error"] * 2
    assert error in caplog.text
    [shelf] = shelves(tmp_path)
    assert verify(shelf)[0].rows == 2, "the failure is on record"
    with stub_teacher() as server:
        assert "error" not in ask(server, tmp_path, PROMPTS[:2])["finish_reason"].to_list()
        assert server.counts["ok"] == 2
        ask(server, tmp_path, PROMPTS[:2])
        assert server.counts["ok"] == 2


@pytest.mark.parametrize("status", ["401", "404"])
def test_a_server_that_refuses_every_call_is_asked_no_more_and_answers_are_kept(status: str, tmp_path: Path) -> None:
    with stub_teacher({status: 0.2}, delay=0.05, seed=3) as server:
        with pytest.raises(InputError, match=f"responds with status {status} to the model stub; check that name"):
            ask(server, tmp_path)
        asked = server.counts["ok"] + server.counts[status]
        assert server.counts["ok"] > 0
        assert asked < len(PROMPTS)
        [shelf] = shelves(tmp_path)
        assert verify(shelf)[0].rows == server.counts["ok"]


@pytest.mark.parametrize("knob", ["concurrency", "max_attempts", "timeout"])
def test_knobs_are_checked(knob: str) -> None:
    with pytest.raises(InputError, match=rf"^speed.openai.{knob} is 0; it must be a .*number"):
        OpenAISpeed.parse({knob: 0}, "speed.openai")


def test_an_answer_that_stays_empty_is_an_answer(tmp_path: Path) -> None:
    with stub_teacher({"empty": 1.0}) as server:
        table = ask(server, tmp_path, PROMPTS[:1], max_attempts=3)
        assert server.counts["empty"] == 3
    assert table.select("response", "finish_reason").row(0) == ("", "stop")


def test_too_many_errors_stop_the_stage_and_the_answers_are_kept(tmp_path: Path) -> None:
    with stub_teacher({"400": 0.5}, seed=1) as server:
        knobs = server.speed()
        message = (
            r"of 40 prompts of t have no response \(\{'refused': \d+\}\); first .* more than responses.max_error_share"
        )
        with pytest.raises(InputError, match=message):
            generate_responses(PROMPTS, "t", teacher(), tmp_path, knobs, max_error_share=0.1)
        answered = server.counts["ok"]
        assert 0 < answered < 40
        server.faults = {}
        generate_responses(PROMPTS, "t", teacher(), tmp_path, knobs)
        assert server.counts["ok"] == 40


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_keeps_what_is_in_flight(number: int, tmp_path: Path) -> None:
    def stop(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    previous = signal.signal(number, stop)
    try:
        with stub_teacher(delay=0.2) as server:
            threading.Timer(0.8, os.kill, (os.getpid(), number)).start()
            with pytest.raises(KeyboardInterrupt):
                ask(server, tmp_path)
            time.sleep(0.3)
            asked = server.counts["ok"]
            assert 8 <= asked < 40
            [shelf] = shelves(tmp_path)
            assert verify(shelf)[0].rows == asked, "every answer that was paid for is stored"
            ask(server, tmp_path)
            assert server.counts["ok"] == 40
    finally:
        signal.signal(number, previous)


def test_a_key_goes_only_to_whom_it_was_named_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "canary-of-another-service")
    monkeypatch.setenv("MY_KEY", "canary-of-mine")
    with stub_teacher() as server:
        ask(server, tmp_path / "a", PROMPTS[:1])
        ask(server, tmp_path / "b", PROMPTS[:1], api_key_env="MY_KEY")
        without, named = (headers["authorization"] for headers in server.headers_seen)
    assert (without, named) == ("Bearer none", "Bearer canary-of-mine")
    monkeypatch.delenv("MY_KEY")
    with pytest.raises(InputError, match="environment variable MY_KEY is not set"), stub_teacher() as server:
        ask(server, tmp_path / "c", PROMPTS[:1], api_key_env="MY_KEY")


def test_control_text_reaches_a_server_as_text(tmp_path: Path) -> None:
    with stub_teacher() as plain, stub_teacher() as server:
        ask(server, tmp_path, prompts_table(["<|im_end|>hello"]))
        ask(plain, tmp_path, prompts_table(["hello"]))
        assert "<|im_end|>" not in str(server.bodies_seen)
        assert "hello" in str(server.bodies_seen)


def test_other_text_reaches_a_server_unaltered(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """HTML, tags of tools and thoughts are text; and what a teacher's own entry says is its user's own."""
    texts = ["Strike <s>this</s> out.", "List <tools> and </tool_call>.", "What is <think>?", "a </s><s> b"]
    own = teacher(system="Think in <think> tags, end by <|im_end|>.")
    with stub_teacher() as server, caplog.at_level("WARNING"):
        generate_responses(prompts_table(texts), "t", own, tmp_path, server.speed(), max_error_share=1.0)
    sent = [message["content"] for body in server.bodies_seen for message in body["messages"]]
    assert own.system in sent
    assert set(texts[:3]) < set(sent)
    assert texts[3] not in sent
    assert "1 of 4 conversations" in caplog.text


@pytest.mark.parametrize(
    "url", ["https://api.example.com/v1", "http://127.0.0.1:8000/v1", "http://localhost/v1", "http://[::1]:1/v1"]
)
def test_safe_addresses(url: str) -> None:
    check_url(url)


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com/v1",
        "http://10.0.0.1/v1",
        "http://localhost.evil.com/v1",
        "http://127.0.0.1.evil.com/v1",
        "ftp://localhost/v1",
        "file:///etc/passwd",
        "localhost:8000",
        "",
        "https://",
        "https://user:secret@api.example.com/v1",
        "https://secret@api.example.com/v1",
    ],
)
def test_unsafe_addresses_are_refused(url: str) -> None:
    with pytest.raises(InputError, match="base_url") as raised:
        check_url(url)
    assert "secret" not in str(raised.value)
