"""The openai backend against a server on loopback that goes wrong in every way."""

import os
import signal
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx2
import polars as pl
import pytest

from persyn.errors import InputError
from persyn.generation import Teacher
from persyn.generation.addresses import check_url
from persyn.generation.openai import OpenAISpeed, redirect_words, request_body
from persyn.responses import generate_responses
from persyn.store import Store, shelves, verify
from tests.support.proxies import ROUTED, THOUGHT, litellm, openrouter
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
        ("redirect", 'refused: status 307, "redirects to http://localhost:9/elsewhere"'),
        ("cut", "connection: RemoteProtocolError"),
        ("hang", "timeout: ReadTimeout"),
        ("html", "malformed: the body is not"),
        ("garbled", "malformed: the body is not"),
    ],
)
def test_what_keeps_failing_becomes_a_typed_error_and_is_asked_again_later(
    fault: str, error: str, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persyn.generation.openai.pause", lambda _: 0.0)
    caplog.set_level("INFO")
    with stub_teacher({fault: 1.0}, hang=0.5) as server:
        table = ask(server, tmp_path, PROMPTS[:2], max_attempts=2, timeout=0.2, max_outage=0.0)
        permanent = fault in ("400", "redirect")
        repeated = f"stub: 2 calls brought no response and were made again ({error.partition(':')[0]} x 2)"
        assert (repeated in caplog.text) is not permanent
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

            def stop_once_it_answers() -> None:
                while server.counts["ok"] < 8:
                    time.sleep(0.01)
                os.kill(os.getpid(), number)

            threading.Thread(target=stop_once_it_answers, daemon=True).start()
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
        without, named = (headers.get("authorization") for headers in server.headers_seen)
    assert (without, named) == (None, "Bearer canary-of-mine")
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


PLAIN = {"max_tokens": 40}
LAST_RELEASE: list[tuple[dict[str, Any], str]] = [
    ({"sampling": PLAIN}, "2c53f556b555dee0680dca00a31416409c547ec55950b65a83033a8ec49213a3"),
    (
        {"sampling": {**PLAIN, "temperature": 0.7, "top_p": 0.9, "seed": 3}},
        "496c3363ce50b00934a9a30181e85c96e53ee09533caff4a4c375dc322ce633e",
    ),
    (
        {"sampling": {**PLAIN, "temperature": 1}},
        "6d70c68950921052793ac1eea0570b4b481abe42b1b526811ecf5b085da89ba8",
    ),
    (
        {"sampling": {**PLAIN, "temperature": 1.0, "extra": {"top_k": 20, "min_p": 0.1}}},
        "79265112a361aeae61ec401759c0ef823bd1c81c229aed231cef2487d1fd327a",
    ),
    (
        {
            "sampling": {**PLAIN, "extra": {"reasoning_effort": "low", "repetition_penalty": 1.1}},
            "template": {"enable_thinking": False},
        },
        "20bab0a59165cd00994a2e0ba863bc6312e8e77187f63b6a2ca8bf7de644af06",
    ),
    (
        {"sampling": PLAIN, "system": "Be brief.", "date": "2025-02-03"},
        "43a2f3d9a398aa82dba5b64a305a690391d56fbf1305be62da8174998f986cae",
    ),
]
"""Teachers, and the keys that the version before these settings gave to their responses to `Say A.`"""
NOW: dict[int, dict[str, Any]] = {
    3: {"sampling": {**PLAIN, "temperature": 1.0, "top_k": 20, "min_p": 0.1}},
    4: {
        "sampling": {**PLAIN, "repetition_penalty": 1.1},
        "extra_body": {"reasoning_effort": "low", "chat_template_kwargs": {"enable_thinking": False}},
    },
}
"""How those that used `sampling.extra` are written now."""


def test_nothing_that_was_paid_before_is_asked_again(tmp_path: Path) -> None:
    """The store of the version before: its folder and its keys; the same settings in their own fields find them too."""
    row = {"response": "paid", "finish_reason": "stop", "num_prompt_tokens": 3, "num_response_tokens": 1, "error": ""}
    Store(tmp_path / "stub-9d944c0f").put({key: row for _, key in LAST_RELEASE})
    prompts = prompts_table(["Say A."])
    with stub_teacher() as server:
        for changes in [*(changes for changes, _ in LAST_RELEASE), *NOW.values()]:
            table = generate_responses(prompts, "t", teacher(**changes), tmp_path, server.speed())
            assert table["response"].to_list() == ["paid"]
        assert not server.bodies_seen
    for number, changes in NOW.items():
        before, now = (teacher(**each) for each in (LAST_RELEASE[number][0], changes))
        assert request_body(before, [], "key") == request_body(now, [], "key")


def test_what_a_teacher_sets_is_sent_and_what_is_null_is_not(tmp_path: Path) -> None:
    null = dict.fromkeys(("temperature", "top_p", "seed"))
    more = {"top_k": 5, "min_p": 0.1, "frequency_penalty": 1, "presence_penalty": -1, "repetition_penalty": 1.1}
    body = {"reasoning_effort": "low", "thinking": {"type": "enabled", "budget_tokens": 9}, "metadata": None}
    asked: list[dict[str, Any]] = [
        {"sampling": {**PLAIN, **null}},
        {"sampling": {**PLAIN, "temperature": None, "top_p": 0.9}},
        {"sampling": {**PLAIN, "temperature": 1.0, "seed": None}},
        {"sampling": {**PLAIN, **more, "stop": ["END"]}, "extra_body": body, "template": {"enable_thinking": False}},
    ]
    with stub_teacher() as server:
        for changes in asked:
            generate_responses(PROMPTS[:1], "t", teacher(**changes), tmp_path, server.speed())
        sent = [{k: v for k, v in body.items() if k not in ("model", "messages")} for body in server.bodies_seen]
    assert isinstance(sent[1].pop("seed"), int)
    assert sent == [
        PLAIN,
        {**PLAIN, "top_p": 0.9},
        {**PLAIN, "temperature": 1.0, "top_p": 1.0},
        {
            **PLAIN,
            **{"temperature": 0, **more, "stop": ["END"], **body},
            "chat_template_kwargs": {"enable_thinking": False},
        },
    ], "four keys, so each was asked"


def test_the_same_name_at_two_hosts_is_two_models_only_where_the_user_says_so(tmp_path: Path) -> None:
    with stub_teacher() as server:
        for host in (None, None, "here", "there", "here"):
            generate_responses(PROMPTS[:1], "t", teacher(host=host), tmp_path, server.speed())
        assert len(server.bodies_seen) == 3
        assert all(body["model"] == "stub" and "host" not in body for body in server.bodies_seen)
    assert len(shelves(tmp_path)) == 3


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


@pytest.mark.parametrize(
    ("url", "allow_http"),
    [
        ("http://10.1.2.3:8000/v1", ["10.0.0.0/8"]),
        ("http://10.1.2.3/v1", ["10.1.2.3"]),
        ("http://Node-7.cluster:8000/v1", ["node-7.CLUSTER"]),
        ("http://[fd00::7]:8000/v1", ["192.168.0.0/16", "fd00::/8"]),
    ],
)
def test_http_goes_where_it_is_allowed_by_name(url: str, allow_http: list[str]) -> None:
    check_url(url, OpenAISpeed(allow_http=allow_http).allow_http)
    with pytest.raises(InputError, match=r"base_url is .* that allow_http beside it names"):
        check_url(url)


@pytest.mark.parametrize(
    ("url", "allow_http"),
    [
        ("http://11.1.2.3/v1", ["10.0.0.0/8"]),
        ("http://10.0.0.0.evil.com/v1", ["10.0.0.0/8"]),
        ("http://node-7.cluster.evil.com/v1", ["node-7.cluster"]),
        ("http://sub.node-7.cluster/v1", ["node-7.cluster"]),
        ("ftp://10.1.2.3/v1", ["10.0.0.0/8"]),
    ],
)
def test_http_goes_nowhere_else(url: str, allow_http: list[str]) -> None:
    with pytest.raises(InputError, match="base_url"):
        check_url(url, allow_http)


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"allow_http": ["0.0.0.0/0"]}, "allow_http holds '0.0.0.0/0', which is every address; name"),
        ({"allow_http": ["10.0.0.0/99"]}, "allow_http holds '10.0.0.0/99'; it must be an address, a network such as"),
        ({"allow_http": ["http://node"]}, "allow_http holds 'http://node'; it must be an address, a network such as"),
        ({"headers_env": {"X Y": "A"}}, "headers_env holds 'X Y', which cannot be set here; it must be the name of"),
        ({"headers_env": {"Host": "A"}}, "headers_env holds 'Host', which cannot be set here"),
        ({"headers_env": {"X-Key": "my-canary"}}, "headers_env holds under X-Key what names no environment variable"),
        ({"base_url": []}, "base_url is []; it must be text, or a list (of each: text) that is not empty"),
        ({"base_url": 3}, "base_url is 3; it must be text, or a list (of each: text) that is not empty"),
        ({"base_url": [3]}, "base_url.0 is 3; it must be"),
    ],
)
def test_knobs_of_addresses_are_checked(knobs: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as raised:
        OpenAISpeed.parse(knobs, "speed.openai")
    assert str(raised.value).startswith(f"speed.openai.{message}")
    assert "canary" not in str(raised.value)


def test_headers_come_from_the_environment_and_are_shown_nowhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    headers = {"api-key": "AZURE_KEY", "X-Title": "TITLE"}
    monkeypatch.setenv("AZURE_KEY", "canary-of-azure")
    with stub_teacher({"500": 0.1}) as server, caplog.at_level("DEBUG"):
        with pytest.raises(InputError, match="environment variable TITLE is not set; headers_env takes X-Title from i"):
            ask(server, tmp_path, PROMPTS[:1], headers_env=headers)
        monkeypatch.setenv("TITLE", "two\nlines")
        with pytest.raises(InputError, match="environment variable TITLE holds a line break or no ASCII; correct it"):
            ask(server, tmp_path, PROMPTS[:1], headers_env=headers)
        monkeypatch.setenv("TITLE", "PerSyn")
        ask(server, tmp_path, PROMPTS[:9], headers_env=headers)
        seen = [(each["api-key"], each["x-title"]) for each in server.headers_seen]
    assert set(seen) == {("canary-of-azure", "PerSyn")}
    assert not any("canary" in path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert "canary" not in "\n".join(record.getMessage() for record in caplog.records if record.name[:6] == "persyn")


def test_several_addresses_share_the_load(tmp_path: Path) -> None:
    with stub_teacher(delay=0.02) as one, stub_teacher(delay=0.02) as other:
        table = ask(one, tmp_path, base_url=[one.url, f"{other.url}/deployments/b/"], timeout=30.0)
        counts = [server.counts["ok"] for server in (one, other)]
        assert sum(counts) == len(PROMPTS), "no prompt is asked twice"
        assert min(counts) > 10
        assert all(server.headers_seen[0]["host"] == server.url[7:-3] for server in (one, other))
        paths = [{headers[":path"] for headers in server.headers_seen} for server in (one, other)]
        assert paths == [{"/v1/chat/completions"}, {"/v1/deployments/b/chat/completions"}]
    assert "error" not in table["finish_reason"].to_list()


@pytest.mark.parametrize("fault", ["none there", "500", "429"])
def test_while_one_address_is_down_the_others_go_on(
    fault: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = {} if fault == "none there" else {fault: 1.0}
    with stub_teacher(faults) as down, stub_teacher(delay=0.01) as alive:
        address = "http://127.0.0.1:9/v1" if fault == "none there" else down.url
        table = ask(alive, tmp_path, base_url=[address, alive.url], timeout=30.0)
        assert alive.counts["ok"] == len(PROMPTS)
        assert down.counts[fault] < len(PROMPTS)
        if fault == "none there":
            assert caplog.text.count(f"{address} is down or overloaded; the other addresses get its requests") == 1
        assert f"{alive.url} is down" not in caplog.text
    assert "error" not in table["finish_reason"].to_list()


def test_a_refusal_names_its_address(tmp_path: Path) -> None:
    with stub_teacher({"401": 1.0}) as one, stub_teacher(delay=0.05) as other:
        with pytest.raises(InputError, match=f"^{one.url} responds with status 401 to the model stub; check"):
            ask(one, tmp_path, base_url=[other.url, one.url])
        assert other.counts["401"] == 0


def test_refusals_of_several_addresses_name_the_last(tmp_path: Path) -> None:
    with stub_teacher({"400": 1.0}) as one, stub_teacher({"400": 1.0}) as other:
        urls = [one.url, other.url]
        told = rf"^one of {urls[0]}, {urls[1]} \(the last: ({urls[0]}|{urls[1]})\) responds with status 400 .* 5 times"
        with pytest.raises(InputError, match=told):
            ask(one, tmp_path, base_url=urls)


@pytest.mark.parametrize(
    ("location", "told"),
    [
        ("https://me:secret@host.example/v1/chat/completions?token=secret#x", "https://host.example/v1"),
        ("/login?next=/v1", "http://127.0.0.1:9/login"),
        ("http://host.example:port", "what is no address"),
    ],
)
def test_a_redirect_is_shown_without_secrets(location: str, told: str) -> None:
    words = redirect_words(httpx2.URL("http://127.0.0.1:9/v1/chat/completions"), location)
    assert words.decode() == f"redirects to {told}"


def test_an_address_that_dies_and_comes_back_is_used_again(tmp_path: Path) -> None:
    prompts = prompts_table([f"Tell story number {number}." for number in range(150)])
    with stub_teacher(delay=0.05) as one, stub_teacher(delay=0.05) as other:
        begin = threading.Timer(0.3, setattr, [one, "faults", {"500": 1.0}])
        end = threading.Timer(1.0, setattr, [one, "faults", {}])
        begin.start()
        end.start()
        table = ask(one, tmp_path, prompts, base_url=[one.url, other.url], concurrency=4, timeout=30.0)
        end.join()
        before, after = one.counts["500"], one.counts["ok"]
        more = prompts_table([f"And {number}." for number in range(40)])
        ask(one, tmp_path, more, base_url=[one.url, other.url], timeout=30.0)
        assert before > 0
        assert one.counts["ok"] > after
        assert one.counts["ok"] + other.counts["ok"] == len(prompts) + 40, "no prompt is asked twice"
    assert "error" not in table["finish_reason"].to_list()


def test_an_address_that_was_given_up_is_tried_again_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is down for longer than max_outage; the run goes on by the other one, and later by both again."""
    monkeypatch.setattr("persyn.generation.load_balancer.LONGEST_PAUSE", 0.5)
    monkeypatch.setattr("persyn.generation.concurrency.FAILURES", 2)
    prompts = prompts_table([f"Tell story number {number}." for number in range(120)])
    with stub_teacher({"500": 1.0}) as one, stub_teacher(delay=0.1) as other:
        back = threading.Timer(2.0, setattr, [one, "faults", {}])
        back.start()
        table = ask(one, tmp_path, prompts, base_url=[one.url, other.url], concurrency=4, max_outage=0.1, timeout=30.0)
        back.join()
        assert one.counts["500"] >= 2
        assert one.counts["ok"] > 0
        assert one.counts["ok"] + other.counts["ok"] == len(prompts)
    assert "error" not in table["finish_reason"].to_list()


def test_the_run_fails_when_all_addresses_are_down(tmp_path: Path) -> None:
    with stub_teacher({"500": 1.0}) as one, stub_teacher({"500": 1.0}) as other:
        with pytest.raises(InputError, match=r"all 2 addresses are down; of the last: the server of stub at \S+ has"):
            ask(one, tmp_path, base_url=[one.url, other.url], max_outage=0.5, max_attempts=20)
        assert min(server.counts["500"] for server in (one, other)) >= 8


def test_a_teacher_behind_openrouter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REFERER", "https://example.org")
    prompts = prompts_table(["Hi.", "Now fail."])
    who = teacher(model="maker/model:free", extra_body=ROUTED, sampling={"max_tokens": 80})
    with stub_teacher() as server:
        server.dialect = openrouter
        knobs = server.speed(headers_env={"HTTP-Referer": "REFERER"}, max_attempts=2)
        table = generate_responses(prompts, "t", who, tmp_path, knobs, max_error_share=1.0)
        assert all(ROUTED.items() <= body.items() for body in server.bodies_seen)
        assert {each["http-referer"] for each in server.headers_seen} == {"https://example.org"}
    assert table["finish_reason"][1] == "error"
    assert (table["reasoning"][0], table["finish_reason"][0]) == (THOUGHT, "stop")
    assert "<" not in table["response"][0]


def test_a_teacher_behind_litellm(tmp_path: Path) -> None:
    more = {"reasoning_effort": "low", "metadata": {"tags": ["persyn"]}}
    who = teacher(model="anthropic/some-model", extra_body=more, sampling={"max_tokens": 80, "temperature": None})
    with stub_teacher() as server:
        server.dialect = litellm
        table = generate_responses(PROMPTS[:1], "t", who, tmp_path, server.speed())
        [body] = server.bodies_seen
    assert more.items() <= body.items()
    assert "temperature" not in body
    assert (table["reasoning"][0], table["finish_reason"][0]) == (THOUGHT, "stop")
