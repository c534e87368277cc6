"""What servers say: the table, the page made from it, and what comes of more than 70 behaviours."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from benchmarks.servers import run
from persyn.cost import Paid, Prices, TokenPrice, build_ledger
from persyn.defects import Policies, drop_reason, find_defects
from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.attempts import hinted_seconds, read_answer
from persyn.generation.budget import Budget
from persyn.generation.completions import read_body, read_completion
from persyn.generation.concurrency import read_retry_after
from persyn.generation.openai import OpenAISpeed
from persyn.generation.servers import BODILESS, CASES, FILTERED, LIMITS, read_verdict
from persyn.generation.wording import HIDDEN, visible_words
from persyn.responses import count_lost, generate_responses
from persyn.store import shelves, verify
from tests.support import servers as page
from tests.support.behaviours import BEHAVIOURS, Call, Reply, behaving, error, said, some
from tests.support.tables import prompts_table
from tests.test_docs import ROOT

SENT = {"model": "m", "messages": [], "max_tokens": 400, "temperature": 0, "seed": 1}
PROMPT = ["Tell me a story about CANARY-77 and the old town"]
TEACHER = Teacher(model="stub", license="x", backend="openai", sampling=Sampling(max_tokens=40))
PROMPTS = prompts_table([f"Tell story number {number}." for number in range(6)])


def test_the_page_is_current() -> None:
    assert (ROOT / "docs/servers.md").read_text() == page.page(), "run `python -m tests.support.servers`"
    assert len({case.name for case in [*CASES, *BODILESS]}) == len(CASES) + len(BODILESS)


def test_every_behaviour_comes_to_what_the_table_says() -> None:
    outcomes = run(BEHAVIOURS)
    assert len(outcomes) > 70
    assert {row.name: row.faults for row in outcomes if row.faults} == {}


def oai(message: str, code: Any = None, kind: str | None = None, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


LINES = (ROOT / "tests/support/server_bodies.jsonl").read_text().splitlines()
BODIES = [(line["status"], line["body"], line["action"]) for line in map(json.loads, LINES)]
"""Answers as OpenAI, Azure, Anthropic, Gemini, Mistral, DeepSeek, Groq, vLLM, llama.cpp and proxies send them."""


@pytest.mark.parametrize(("status", "body", "action"), BODIES)
def test_bodies_as_servers_send_them(status: int, body: Any, action: str) -> None:
    assert read_verdict(status, body, SENT, PROMPT).case.action == action
    if not isinstance(body, str):
        assert read_verdict(status, json.dumps(body), SENT, PROMPT).case.action == action, "the same in text"


def test_a_refusal_of_the_limit_is_about_the_limit_whatever_else_it_names() -> None:
    sent = {"model": "m", "messages": [], "temperature": 0, "max_tokens": 4}
    words = "temperature and max_tokens are not supported with this model, use max_completion_tokens instead"
    verdict = read_verdict(400, {"error": {"message": words}}, sent)
    assert (verdict.case.action, verdict.parameter) == ("rename", "max_tokens")


def test_a_server_that_takes_no_limit_at_all_is_asked_twice(tmp_path: Path) -> None:
    def refuse(call: Call) -> Reply:
        [name] = [name for name in call.asked if name in LIMITS]
        return error(400, f"unknown field {name}", "unknown_parameter")

    with pytest.raises(InputError, match="neither as max_tokens nor as max_completion_tokens"):
        ask(refuse, tmp_path)


def test_words_are_shown_without_key_and_prompt() -> None:
    words = f"cannot tell '{PROMPT[0]}' nor 'about CANARY-77 and' for k-secret, Bearer abcdefgh, sk-proj-a8_b7***xyz1"
    verdict = read_verdict(400, oai(words, "bad"), SENT, PROMPT, ["k-secret"])
    for secret in ("CANARY", "story about", "k-secret", "abcdefgh", "xyz1"):
        assert secret not in verdict.said.told()
    assert verdict.said.told().startswith('bad: "cannot tell')
    assert len(read_verdict(400, "x " * 9000, SENT).said.told()) < 400
    assert "\n" not in read_verdict(400, "a\n\x1b[31mb", SENT).said.told()
    assert visible_words("hi there", ["hi"]) == f"{HIDDEN} there"


def test_a_prompt_cannot_decide_what_a_refusal_means() -> None:
    asked = "You exceeded your current quota, please check your plan and billing details, or insufficient_quota."
    assert read_verdict(400, oai(f"cannot answer: {asked}"), SENT, [asked]).case.name == "refused"
    asked = "Is the maximum context length of a model a limit?"
    long = oai("This model's maximum context length is 4096 tokens, you sent 5000.", "context_length_exceeded")
    assert read_verdict(400, long, SENT, [asked]).case.action == "skip"


@pytest.mark.parametrize(
    ("words", "seconds"),
    [
        ("Please try again in 7m12.5s.", 432.5),
        ("try again in 20ms", 0.02),
        ("Please retry after 6 seconds.", 6.0),
        ("retry in 1.5s", 1.5),
        ("wait for 2 minutes", 120.0),
        ("slow down", 0.0),
    ],
)
def test_how_long_words_ask_to_wait(words: str, seconds: float) -> None:
    assert hinted_seconds(words) == pytest.approx(seconds)


def test_retry_after_in_seconds_and_as_a_date() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=90), usegmt=True)
    assert 85 < read_retry_after({"retry-after": date}) <= 90
    assert read_retry_after({"retry-after": "2.5"}) == 2.5
    assert read_retry_after({"retry-after-ms": "1500", "retry-after": "9"}) == 1.5
    past = format_datetime(datetime.now(UTC) - timedelta(seconds=90), usegmt=True)
    assert [read_retry_after({"retry-after": text}) for text in (past, "soon", "", "-3", "nan", "inf")] == [0.0] * 6
    assert read_retry_after({}) == 0.0


def ask(act: Callable[[Call], Reply], folder: Path, **changes: Any) -> Any:
    teacher = TEACHER.changed(sampling=TEACHER.sampling.changed(**changes))
    with behaving(act) as server:
        speed = OpenAISpeed(base_url=server.url, timeout=5.0, max_attempts=2)
        return generate_responses(PROMPTS, "t", teacher, folder, speed, max_error_share=1.0), server


def test_a_prompt_that_can_never_be_answered_flows_through_and_is_asked_again_at_another_limit(tmp_path: Path) -> None:
    too_long = some(lambda call: error(400, "prompt is too long"))
    table, server = ask(too_long, tmp_path)
    assert (server.calls, table.filter(finish_reason="error").height) == (6, 2)
    again, server = ask(too_long, tmp_path)
    assert server.calls == 0
    assert again.equals(table)
    defects = find_defects(PROMPTS, table)
    assert defects.height == 4
    dropped = table.join(defects.drop("length"), on=["prompt_id", "teacher"], how="left")
    assert dropped.select(drop_reason(Policies()))["literal"].drop_nulls().to_list() == ["error"] * 2
    shorter, server = ask(said, tmp_path, max_tokens=39)
    assert server.calls == 2, "the others fit"
    assert not shorter.filter(finish_reason="error").height


def test_what_failures_cost_is_in_the_budget_and_the_ledger(tmp_path: Path) -> None:
    billed = 0
    for act in (cut_for_the_first, cut_for_the_first, said):
        table, server = ask(act, tmp_path)
        billed += server.billed
    assert table["finish_reason"].to_list() == ["stop"] * 6
    assert Budget().spent(tmp_path) == pytest.approx(billed, rel=0.3), "two failures are estimated"
    [shelf] = shelves(tmp_path)
    assert verify(shelf)[0].conflicts == 0
    lost = count_lost([("t", PROMPTS), ("t", PROMPTS)], {"t": TEACHER}, tmp_path)
    own = table.select("num_prompt_tokens", "num_response_tokens").sum().row(0)
    assert Budget().spent(tmp_path) == sum(own) + sum(lost["t"].values())
    prices = Prices(teachers={"t": TokenPrice(input=1e6, output=1e6)})
    ledger = build_ledger(PROMPTS, table, {}, prices, paid_for=Paid(lost))
    assert ledger["lost"] == lost
    assert ledger["money"]["spent"] == Budget().spent(tmp_path)
    assert "lost" not in build_ledger(PROMPTS, table, {}, prices)


def test_what_is_lost_on_one_host_and_on_later_samples_is_counted(tmp_path: Path) -> None:
    teacher = TEACHER.changed(host="eu", samples=2, sampling=TEACHER.sampling.changed(temperature=1.0))
    with behaving(cut_for_the_first) as server:
        speed = OpenAISpeed(base_url=server.url, timeout=5.0, max_attempts=2)
        table = generate_responses(PROMPTS, "t", teacher, tmp_path, speed, max_error_share=1.0)
    assert table.height == 12
    lost = count_lost([("t", PROMPTS)], {"t": teacher}, tmp_path)
    own = table.select("num_prompt_tokens", "num_response_tokens").sum().row(0)
    assert Budget().spent(tmp_path) == sum(own) + sum(lost["t"].values()) > sum(own)


def cut_for_the_first(call: Call) -> Reply:
    """A cut body for one of the prompts, paid for."""
    whole = said(call)
    bad = str(call.asked["messages"][-1]["content"]).endswith(" 0.")
    return Reply(json.dumps(whole.body)[:150], billed=whole.billed) if bad else whole


def test_completions_of_the_official_client_and_bare_ones_are_read_alike() -> None:
    from openai.types.chat import ChatCompletion

    call = Call({"messages": [{"role": "user", "content": "a b"}]}, 1, 1, 1)
    body = said(call).body
    assert read_completion(ChatCompletion.model_validate(body)) == read_completion(body)
    assert read_completion(body).num_prompt_tokens == 9
    assert read_body(said(call, None, "SAFETY").body, []).case is FILTERED
    wrong: list[Any] = [{}, {"choices": []}, {"choices": [{}]}, {"choices": [None]}, {"choices": [{"message": "x"}]}]
    for broken in wrong:
        with pytest.raises((AttributeError, TypeError, LookupError)):
            read_body(broken, [])


@pytest.mark.parametrize(
    ("finish", "tokens", "expected"),
    [
        (None, 5, "stop"),
        (None, 40, "length"),
        ("", 5, "stop"),
        ("sunset", 5, "stop"),
        ("sunset", 40, "length"),
        ("eos", 5, "stop"),
        ("FinishReason.MAX_TOKENS", 5, "length"),
        ("STOP", 40, "stop"),
        ("error", 5, "length"),
    ],
)
def test_a_text_is_a_response_whatever_its_end_is_called(finish: str | None, tokens: int, expected: str) -> None:
    call = Call({"messages": [{"role": "user", "content": "a b"}]}, 1, 1, 1)
    found = read_body(said(call, finish=finish, tokens=tokens).body, [], 40)
    assert (found.case, found.generation.finish_reason) == (None, expected)


CHUNKS: list[Any] = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("the old ", "clock struck")]
USAGE = {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19}
WHOLE: dict[str, Any] = {
    "choices": [{"finish_reason": "stop", "message": {"content": "the old clock struck"}}],
    "usage": USAGE,
}


@pytest.mark.parametrize(
    "content",
    [
        "".join(f"data: {json.dumps(event)}\n\n" for event in [*CHUNKS, {"choices": [], "usage": USAGE}])
        + "data: [DONE]",
        f": PROCESSING\n\n{json.dumps(WHOLE)}",
        f"{json.dumps(WHOLE)}\x00",
        json.dumps([WHOLE]),
        json.dumps({"data": WHOLE}),
        json.dumps(json.dumps(WHOLE)),
        json.dumps(
            {
                "choices": [{"delta": WHOLE["choices"][0]["message"]}],
                "usage": {"promptTokens": "10", "output_tokens": 9.0},
            }
        ),
    ],
)
def test_a_paid_text_is_kept_in_whatever_a_server_wraps_it(content: str) -> None:
    attempt = read_answer(201, content.encode(), {**SENT, "messages": []}, 400)
    found = attempt.generation
    assert attempt.verdict is None
    assert (found.response, found.num_prompt_tokens, found.num_response_tokens) == ("the old clock struck", 10, 9)


@pytest.mark.parametrize(
    "content", ['{"a":' * 5000, "[" * 100_000, '{"choices": [], "completion_tokens": ' + "9" * 5000]
)
def test_no_body_breaks_the_run(content: str) -> None:
    for status in (200, 400):
        attempt = read_answer(status, content.encode(), {**SENT, "messages": []}, 400)
        assert attempt.verdict is not None


def test_an_answer_may_drip_no_longer_than_the_call(tmp_path: Path) -> None:
    started = time.monotonic()
    with dripping() as url:
        speed = OpenAISpeed(base_url=url, timeout=0.5, max_attempts=1)
        table = generate_responses(PROMPTS[:1], "t", TEACHER, tmp_path, speed, max_error_share=1.0)
    assert table["finish_reason"].to_list() == ["error"]
    assert time.monotonic() - started < 10


@contextmanager
def dripping() -> Iterator[str]:
    """A server whose answer is blank, and has no end within half a minute."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.end_headers()
            with suppress(OSError):
                for _ in range(150):
                    self.wfile.write(b" ")
                    time.sleep(0.2)

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()


def test_a_rate_limit_is_waited_for_beyond_max_attempts(tmp_path: Path) -> None:
    with behaving(lambda call: error(429, "busy") if call.total <= 3 else said(call)) as server:
        speed = OpenAISpeed(base_url=server.url, max_attempts=2)
        table = generate_responses(PROMPTS[:1], "t", TEACHER, tmp_path, speed)
    assert (table["finish_reason"].to_list(), server.calls) == (["stop"], 4)


def test_words_without_spaces_are_hidden_too() -> None:
    asked = "请告诉我一个关于老城和余额不足的故事"
    assert read_verdict(400, oai("内容无法处理: 关于老城和余额不足"), SENT, [asked]).case.name == "refused"
    assert "老城" not in read_verdict(400, oai("内容: 关于老城和余额"), SENT, [asked]).said.told()
    assert "老城" not in visible_words("关于老城", [asked])
    assert "K-SECRET" not in visible_words("key K-SECRET", [], ["k-secret"])
