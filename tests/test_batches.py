"""A served teacher asked in batches: each prompt is billed once, and no response is lost, whatever happens."""

import json
import logging
import signal
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from persyn.cost import Paid, Prices, TokenPrice, build_ledger
from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.batch_notes import open_notes
from persyn.generation.budget import Budget
from persyn.generation.openai import OpenAISpeed
from persyn.planning.usage import batched_pairs
from persyn.responses import generate_parts, generate_responses
from persyn.store import shelves, verify
from tests.support.batch_worker import STEPS, start_worker
from tests.support.batches import BatchServer, Fate, batch_server
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table

PROMPTS = prompts_table([f"Tell story number {number}." for number in range(40)])


def teacher(**changes: Any) -> Teacher:
    fields: dict[str, Any] = {"model": "stub", "license": "x", "backend": "openai", "sampling": {"max_tokens": 40}}
    return Teacher(**{**fields, **changes})


def ask(server: BatchServer, folder: Path, prompts: pl.DataFrame = PROMPTS, **speed: Any) -> pl.DataFrame:
    return generate_responses(prompts, "t", teacher(), folder, server.speed(**speed), max_error_share=1.0)


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(payload)["row"] for shelf in shelves(folder) for payload in verify(shelf)[1].values()]


def left_out(folder: Path) -> int:
    return sum(len(open_notes(shelf / "batches")) for shelf in folder.iterdir())


def check_bill(server: BatchServer, folder: Path, count: int = len(PROMPTS)) -> None:
    """Each of the prompts was billed once, and all that was billed is in the store."""
    assert len(server.billed) == count
    assert set(server.billed.values()) == {1}
    counted = sum(row["num_prompt_tokens"] + row["num_response_tokens"] for row in rows(folder))
    assert counted == server.tokens
    assert left_out(folder) == 0


def test_batches_bring_what_single_calls_bring(tmp_path: Path) -> None:
    with stub_teacher() as plain:
        expected = generate_responses(PROMPTS, "t", teacher(), tmp_path / "plain", plain.speed())
    with batch_server() as server:
        found = ask(server, tmp_path / "batches")
        assert found.equals(expected)
        check_bill(server, tmp_path / "batches")
        assert ask(server, tmp_path / "batches").equals(expected)
        assert server.calls["POST /batches"] == 1, "what is stored is not asked for"
    assert {row["batch"] for row in rows(tmp_path / "batches")} == {"batch_0"}


def test_parts_of_the_prompts_are_asked_in_one_batch(tmp_path: Path) -> None:
    parts = [PROMPTS[:15], PROMPTS[15:]]
    with batch_server(Fate(statuses={0: 500})) as server:
        tables = list(generate_parts(parts, "t", teacher(), tmp_path, server.speed(), max_error_share=1.0))
        assert [table.height for table in tables] == [15, 25]
        calls = server.calls["POST /batches"]
        again = ask(server, tmp_path)
    assert pl.concat(tables).equals(again)
    assert calls == 2, "one, and one for the request that failed"


@pytest.mark.parametrize(
    ("fates", "batches", "message"),
    [
        ([Fate("expired", 0.4), Fate("expired", 0.5)], 3, "batch_0 is expired: 16 of 40 requests have a response"),
        ([Fate(statuses={0: 500, 1: 429})], 2, "batch_0 is completed: 38 of 40"),
        ([Fate(oddities=frozenset({"repeated", "unknown"}))], 1, "batch batch_0 has 1 unknown lines"),
        ([Fate(oddities=frozenset({"cut once"}))], 1, "batch_0 is completed: 40 of 40"),
        ([Fate(), Fate("expired", 0.5)], 1, "batch_0 is completed: 40 of 40"),
    ],
)
def test_what_a_batch_left_open_is_asked_in_another(
    fates: list[Fate], batches: int, message: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    with batch_server(*fates) as server:
        assert "error" not in set(ask(server, tmp_path)["finish_reason"])
        assert server.calls["POST /batches"] == batches
        check_bill(server, tmp_path)
    assert message in caplog.text


@pytest.mark.parametrize(
    ("fate", "done", "error"),
    [
        (Fate("cancelled", 0.25), 10, "cancelled: the batch was cancelled at the server before it came to this"),
        (Fate("expired", 0.0), 0, "expired: the batch ran out of its window before a single response"),
        (Fate(statuses=dict.fromkeys(range(40), 400)), 0, "refused: status 400"),
        (Fate(statuses={3: 400}), 39, "refused: status 400"),
        (Fate(statuses={3: 503}), 39, ""),
        (Fate(oddities=frozenset({"html"})), 39, "malformed: the body is not a chat completion"),
        (Fate(oddities=frozenset({"cut"})), 39, "malformed: the batch's files have no line of this request"),
    ],
)
def test_what_has_no_response_is_an_error_until_the_next_run(
    fate: Fate, done: int, error: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with batch_server(fate) as server:
        found = ask(server, tmp_path)
        assert found.filter(pl.col("finish_reason") != "error").height == (done if error else 40)
        assert server.calls["POST /batches"] == (1 if error else 2)
        assert error in caplog.text
        assert "error" not in set(ask(server, tmp_path)["finish_reason"])
        assert server.calls["POST /batches"] == 2
        if not fate.oddities:
            check_bill(server, tmp_path)


def test_a_refused_batch_stops_the_run_and_says_why(tmp_path: Path) -> None:
    with batch_server(Fate("failed", code="invalid_model")) as server:
        with pytest.raises(
            InputError, match=r"refused the batch batch_0 of stub \(invalid_model: the server's words, l"
        ):
            ask(server, tmp_path)
        assert left_out(tmp_path) == 0
        ask(server, tmp_path)
        check_bill(server, tmp_path)


def test_batches_that_find_the_queue_full_wait_for_the_others(tmp_path: Path) -> None:
    with batch_server(queue=15) as server:
        ask(server, tmp_path, batch={"max_requests": 10})
        assert server.calls["POST /batches"] > 4
        check_bill(server, tmp_path)
    with batch_server(queue=5) as server, pytest.raises(InputError, match=r"lower speed\.openai\.batch\.max_requests"):
        ask(server, tmp_path / "small")


def test_requests_are_split_by_number_and_by_size(tmp_path: Path) -> None:
    with batch_server() as server:
        ask(server, tmp_path, batch={"max_requests": 15})
        assert [batch["request_counts"]["total"] for batch in server.batches.values()] == [15, 15, 10]
        check_bill(server, tmp_path)
    with batch_server() as server:
        ask(server, tmp_path / "by size", batch={"max_megabytes": 0.002})
        assert all(len(data) <= 2000 for name, data in server.files.items() if b'"method"' in data)
        check_bill(server, tmp_path / "by size")


@pytest.mark.parametrize(
    ("call", "faults", "batches"),
    [
        ("POST /files", ["drop", "500", "429"], 1),
        ("POST /batches", ["lose"], 1),
        ("POST /batches", ["drop", "500"], 1),
        ("GET /batches/*", ["drop", "500", "429"], 1),
        ("GET /files/*/content", ["drop", "503"], 1),
    ],
)
def test_a_call_that_fails_makes_no_second_batch(call: str, faults: list[str], batches: int, tmp_path: Path) -> None:
    with batch_server() as server:
        server.fail[call] = faults
        ask(server, tmp_path)
        assert len(server.batches) == batches
        check_bill(server, tmp_path)


@pytest.mark.parametrize(
    ("call", "status", "message"),
    [
        ("POST /files", "404", "without a Batch API needs speed.openai.batch: null"),
        ("POST /files", "401", r"status 401 \(a_code: the words of the server\); check the key"),
        ("POST /batches", "400", r"does not make a batch for stub: status 400 \(a_code: the words of the server\)"),
        ("GET /batches/*", "404", r"to forget it, delete .*\.json"),
    ],
)
def test_a_refused_call_stops_the_run_with_the_words_of_the_server(
    call: str, status: str, message: str, tmp_path: Path
) -> None:
    with batch_server() as server:
        server.fail[call] = [status]
        with pytest.raises(InputError, match=message):
            ask(server, tmp_path)
        ask(server, tmp_path)
        check_bill(server, tmp_path)


def test_a_server_that_never_answers_is_given_up_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("persyn.generation.batches.FIRST_WORD", 0.2)
    with batch_server() as server:
        knobs = server.speed(max_outage=300.0)
    with pytest.raises(InputError, match="cannot take a file: it has failed for"):
        generate_responses(PROMPTS, "t", teacher(), tmp_path, knobs)


def test_requests_that_are_no_longer_made_are_collected_all_the_same(tmp_path: Path) -> None:
    with batch_server(Fate("expired", 0.5)) as server:
        knobs = server.speed()
        monkey = teacher(system="Be brief.")
        server.fail["GET /batches/*"] = ["401"]
        with pytest.raises(InputError, match="check the key"):
            generate_responses(PROMPTS, "t", monkey, tmp_path, knobs)
        ask(server, tmp_path, PROMPTS[:10])
        assert len(server.billed) == 30, "20 of the old request, which are not asked again, and 10 of the new one"
        check_bill(server, tmp_path, 30)


def test_old_batches_are_collected_when_nothing_is_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with batch_server() as server:
        ask(server, tmp_path, PROMPTS[:10])
        server.slow = True
        server.fail["GET /batches/*"] = ["401"]
        with pytest.raises(InputError, match="check the key"):
            generate_responses(PROMPTS, "t", teacher(system="Be brief."), tmp_path, server.speed())
        ask(server, tmp_path, PROMPTS[:10])
        assert "1 batches of 40 requests stay at" in caplog.text, "and are not waited for"
        server.fail["GET /batches/*"] = ["401"]
        ask(server, tmp_path, PROMPTS[:10])
        assert "batches of stub are not collected" in caplog.text, "which is no reason to fail"
        server.slow = False
        for _ in range(4):
            ask(server, tmp_path, PROMPTS[:10], batch=None)
        check_bill(server, tmp_path, 50)


def test_more_tokens_for_what_is_at_the_server_waits_for_it(tmp_path: Path) -> None:
    with batch_server() as server:
        server.fail["GET /batches/*"] = ["401"]
        short, long = ({"max_tokens": count} for count in (20, 60))
        with pytest.raises(InputError, match="check the key"):
            generate_responses(PROMPTS, "t", teacher(sampling=short), tmp_path, server.speed())
        found = generate_responses(PROMPTS, "t", teacher(sampling=long), tmp_path, server.speed())
        assert set(found["finish_reason"]) == {"stop"}
        cut = sum(row["finish_reason"] == "length" for row in rows(tmp_path))
        assert [len(server.billed), server.billed.total()] == [40, 40 + cut], "only what was cut is asked again"


def test_turned_off_while_a_batch_is_out_nothing_is_asked_twice(tmp_path: Path) -> None:
    with batch_server() as server:
        server.fail["GET /batches/*"] = ["401"]
        with pytest.raises(InputError, match="check the key"):
            ask(server, tmp_path)
        plain = server.speed().changed(batch=None)
        with pytest.raises(
            InputError, match=r"40 requests of stub are in batches at .*set speed\.openai\.batch to wait"
        ):
            generate_responses(PROMPTS, "t", teacher(), tmp_path, plain)
        for batch in server.batches.values():
            while batch["status"] != "completed":
                server.advance(batch)
        generate_responses(PROMPTS, "t", teacher(), tmp_path, plain)
        assert server.counts["ok"] == 0
        check_bill(server, tmp_path)


def test_a_budget_is_never_overspent(tmp_path: Path) -> None:
    with batch_server() as server:
        limit = 40 * (40 + 16 + 30)
        found = generate_responses(
            PROMPTS, "t", teacher(), tmp_path, server.speed(), Budget(max_tokens=limit // 2), max_error_share=1.0
        )
        assert found.height == 40
        assert 1 < len(server.batches) < 8
        assert server.tokens <= limit // 2
        check_bill(server, tmp_path)


def test_plan_and_ledger_know_the_price_of_a_batch(tmp_path: Path) -> None:
    with stub_teacher() as plain, batch_server() as server:
        generate_responses(PROMPTS[:10], "t", teacher(), tmp_path, plain.speed())
        found = ask(server, tmp_path)
    prices = Prices(teachers={"t": TokenPrice(input=1e6, output=1e6, batch=0.25)})
    batched = batched_pairs(PROMPTS, {"t": teacher()}, tmp_path)
    assert batched["prompt_id"].to_list() == PROMPTS["prompt_id"].to_list()[10:]
    tokens = found.select(pl.sum_horizontal("num_prompt_tokens", "num_response_tokens"))
    ledger = build_ledger(PROMPTS, found, {}, prices, paid_for=Paid(batched=batched))
    assert ledger["money"]["spent"] == pytest.approx(tokens[:10].sum().item() + tokens[10:].sum().item() / 4)
    assert batched_pairs(PROMPTS, {"t": teacher()}, tmp_path / "elsewhere").is_empty()


def test_batches_of_ray_actors_are_refused() -> None:
    with pytest.raises(InputError, match=r"^speed\.openai\.batch is given beside ray"):
        OpenAISpeed.parse({"batch": {}, "ray": {}}, "speed.openai")


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_any_step_each_prompt_is_billed_once_and_no_row_is_lost(step: str, tmp_path: Path) -> None:
    with batch_server() as server:
        killed = start_worker(server.url, tmp_path, step)
        killed.communicate()
        assert killed.returncode == -signal.SIGKILL
        assert "error" not in set(ask(server, tmp_path)["finish_reason"])
        assert len(server.batches) == 1
        check_bill(server, tmp_path)
        assert len(rows(tmp_path)) == 40


def test_a_batch_that_the_servers_list_shows_late_is_found(tmp_path: Path) -> None:
    with batch_server() as server:
        killed = start_worker(server.url, tmp_path, "created")
        killed.communicate()
        server.list_lags = 1
        ask(server, tmp_path)
        assert len(server.batches) == 1
        check_bill(server, tmp_path)


def test_a_batch_that_was_made_twice_after_all_is_cancelled(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with batch_server(Fate(done=0.0)) as server:
        server.fail["POST /batches"] = ["lose"]
        server.list_lags = 2
        ask(server, tmp_path)
        assert len(server.batches) == 2
        assert server.calls["POST /batches/*/cancel"] == 1
        assert "batch_1 was made twice, and batch_0 is cancelled" in caplog.text
        check_bill(server, tmp_path)


def test_a_batch_that_was_not_made_cannot_be_made_later(tmp_path: Path) -> None:
    with batch_server() as server:
        start_worker(server.url, tmp_path, "creating").communicate()
        assert list(server.files) == ["file-0"]
        ask(server, tmp_path)
        assert "file-0" not in server.files
        check_bill(server, tmp_path)


def test_a_batch_at_another_server_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with batch_server() as other, batch_server() as server:
        other.fail["GET /batches/*"] = ["401"]
        with pytest.raises(InputError, match="check the key"):
            ask(other, tmp_path)
        ask(server, tmp_path)
        assert "40 requests of stub are in a batch at another server" in caplog.text


def test_two_processes_make_one_batch(tmp_path: Path) -> None:
    with batch_server() as server:
        server.slow = True
        both = [start_worker(server.url, tmp_path) for _ in range(2)]
        while not server.calls["GET /batches/*"]:
            time.sleep(0.05)
        time.sleep(0.5)
        server.slow = False
        said = [process.communicate()[1] for process in both]
        assert [process.returncode for process in both] == [0, 0], said
        assert len(server.batches) == 1
        check_bill(server, tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_told_to_stop_it_leaves_the_batch_running_and_says_so(number: int, tmp_path: Path) -> None:
    with batch_server() as server:
        server.slow = True
        process = start_worker(server.url, tmp_path, batch={"poll_seconds": 30.0})
        while not server.calls["GET /batches/*"]:
            time.sleep(0.05)
        told = time.monotonic()
        process.send_signal(number)
        said = process.communicate()[1]
        assert time.monotonic() - told < 10
        assert process.returncode in (-number, 1)
        assert "1 batches of 40 requests stay at" in said
        assert {batch["status"] for batch in server.batches.values()} == {"in_progress"}
        server.slow = False
        ask(server, tmp_path)
        assert len(server.batches) == 1
        check_bill(server, tmp_path)
