"""Behaviours: a server on loopback that behaves as real ones do, and counts what it bills.

Each row of BEHAVIOURS is one way in which a server behaves and what must come of it: calls, rows, exit status, words.
"""

import json
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.stub import running

NUM_PROMPTS = 6
MAX_TOKENS = 400
KEY = "sk-canary-4f9a8c7b6d5e4f3a"
WORDS = "the old clock struck four and rain fell over town"
"""Nine words of 49 letters: about as many tokens as the rule of four bytes gives."""


@dataclass(frozen=True)
class Reply:
    """One answer of the server."""

    body: Any
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    billed: tuple[int, int] = (0, 0)
    """Prompt and response tokens that this call costs."""
    delay: float = 0.0
    end: str = ""
    """drop: closes without an answer. cut: ends in the middle of the body. slow: sends the body in pieces. reset:
    resets the connection in the middle of the body. close: closes a kept-alive connection after the answer."""


@dataclass(frozen=True)
class Call:
    """What the server was asked."""

    asked: Mapping[str, Any]
    number: int
    """Of this prompt's calls, from 1."""
    total: int
    """Of all calls, from 1."""
    prompt: int
    """Number of the prompt."""

    @property
    def tokens(self) -> int:
        """What the server counts as prompt tokens."""
        return 7 + sum(len(message["content"].split()) for message in self.asked["messages"])


Act = Callable[[Call], Reply]


@dataclass(frozen=True)
class Behaviour:
    """A row of the table."""

    name: str
    act: Act | None
    """None: nobody listens."""
    calls: tuple[int, int] = (NUM_PROMPTS, NUM_PROMPTS)
    """Fewest and most."""
    rows: int | None = NUM_PROMPTS
    """Responses that must be in the store after it; None: as many as the server gave texts."""
    never: int = 0
    """Records of prompts that can never be answered."""
    exit: int = 0
    says: str = ""
    """What the messages must hold."""
    again: int | None = 0
    """Calls of a second run; None: any number, since the cause must be removed first."""
    seconds: float = 15.0
    sampling: Mapping[str, Any] = field(default_factory=dict)
    speed: Mapping[str, Any] = field(default_factory=dict)
    inexact: float = 0.0
    """How far the counted tokens may be from the billed ones, where the server does not say: a share."""


def said(
    call: Call, content: Any = WORDS, finish: Any = "stop", usage: Any = ..., tokens: int | None = None, **message: Any
) -> Reply:
    """A completion, as a server with this dialect sends it."""
    text = content if isinstance(content, str) else WORDS if content else ""
    count = len(text.split()) if tokens is None else tokens
    counts = {"prompt_tokens": call.tokens, "completion_tokens": count, "total_tokens": call.tokens + count}
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": content, **message}}
    body = {"id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [choice]}
    if usage is not None:
        body["usage"] = counts if usage is ... else usage
    return Reply(body, billed=(call.tokens, count))


def failed_inside(call: Call) -> Reply:
    """A choice that is an error, for which nobody pays."""
    choice = {"index": 0, "finish_reason": "error", "message": {"role": "assistant", "content": ""}}
    return Reply({"choices": [{**choice, "error": {"code": 502, "message": "upstream"}}]})


def error(status: int, message: Any, code: Any = None, kind: str | None = None, **more: Any) -> Reply:
    """An error in OpenAI's form."""
    return Reply(
        {"error": {"message": message, "type": kind, "param": more.pop("param", None), "code": code, **more}}, status
    )


def first(reply: Callable[[Call], Reply], count: int = 1, then: Act = said) -> Act:
    """`reply` to the first calls of all, then the other."""
    return lambda call: reply(call) if call.total <= count else then(call)


def once(reply: Callable[[Call], Reply]) -> Act:
    """`reply` to the first call of each prompt, then a completion."""
    return lambda call: reply(call) if call.number == 1 else said(call)


def some(reply: Callable[[Call], Reply], prompts: tuple[int, ...] = (1, 3)) -> Act:
    """`reply` to some prompts, a completion to the others."""
    return lambda call: reply(call) if call.prompt in prompts else said(call)


def always(reply: Reply) -> Act:
    return lambda call: reply


def changed(reply: Reply, **fields: Any) -> Reply:
    return Reply(**{**reply.__dict__, **fields})


def repeating(call: Call, status: int, words: str, code: str) -> Reply:
    """An error that repeats the key and the prompt."""
    return error(status, f"{words} (key {KEY}, prompt: {call.asked['messages'][-1]['content']})", code)


def refusing(name: str, reply: Callable[[], Reply], takes: Act = said) -> Act:
    """A server that refuses a field of the request."""
    return lambda call: reply() if name in call.asked else takes(call)


def late_date(seconds: float) -> str:
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def patience(call: Call) -> Reply:
    """The fourth call is asked to come back in an hour, while others are still being answered."""
    if call.total == 4:
        return Reply({"error": {"message": "slow down"}}, 429, {"Retry-After": late_date(3600)}, delay=0.1)
    return changed(said(call), delay=0.5) if call.total < 8 else Reply({}, 429, {"Retry-After": late_date(3600)})


def quota(call: Call) -> Reply:
    return repeating(call, 429, "You exceeded your current quota, please check your plan", "insufficient_quota")


def no_max_tokens() -> Reply:
    return error(
        400,
        "Unsupported parameter: 'max_tokens' is not supported with this model. Use 'max_completion_tokens' instead.",
        "unsupported_parameter",
        "invalid_request_error",
        param="max_tokens",
    )


ONE = (1, 1)
TWICE = (2 * NUM_PROMPTS, 2 * NUM_PROMPTS)
FEW = (5, 5)
STOPS: dict[str, Any] = {"rows": 0, "exit": 1, "again": None}
PAGE = "<!doctype html><html><head><title>Down</title></head><body><h1>We are down for maintenance</h1></body></html>"
LONG = "This model's maximum context length is 4096 tokens. However, your messages resulted in 6988 tokens."

PLAIN = [
    Behaviour("plain", said),
    Behaviour("slow first byte", lambda call: changed(said(call), delay=0.8)),
    Behaviour("slow body", lambda call: changed(said(call), end="slow")),
    Behaviour("closes kept-alive connections", lambda call: changed(said(call), end="close"), (6, 12)),
    Behaviour("200 KB answers", lambda call: said(call, f"{WORDS} " * 4000, tokens=300), seconds=20),
    Behaviour("drops before an answer, once a prompt", once(lambda call: Reply(None, end="drop")), TWICE),
    Behaviour("cut in the body, once a prompt", once(lambda call: changed(said(call), end="cut")), TWICE),
    Behaviour("reset in the body, once a prompt", once(lambda call: changed(said(call), end="reset")), TWICE),
    Behaviour(
        "cut json of whole length, once a prompt",
        once(lambda call: changed(said(call), body=json.dumps(said(call).body)[:150])),
        TWICE,
    ),
    Behaviour("HTML with 200 for two calls", first(lambda call: Reply(PAGE), 2), (8, 8)),
    Behaviour("HTML with 200, always", always(Reply(PAGE)), FEW, says="maintenance", **STOPS),
    Behaviour("an empty object with 200, always", always(Reply({})), FEW, says="base_url", **STOPS),
    Behaviour(
        "no answer in time, once a prompt",
        once(lambda call: changed(said(call), delay=1.2)),
        TWICE,
        speed={"timeout": 0.6},
        seconds=20,
    ),
    Behaviour("nobody listens", None, (0, 0), says="never answered", **STOPS),
    Behaviour("redirects", always(Reply({}, 307, {"Location": "http://localhost:9/x"})), FEW, says="307", **STOPS),
]
WAITS = [
    Behaviour("429, Retry-After 1", first(lambda call: Reply({}, 429, {"Retry-After": "1"})), (7, 7)),
    Behaviour("429, Retry-After a date", first(lambda call: Reply({}, 429, {"Retry-After": late_date(2)})), (7, 7)),
    Behaviour(
        "429, a date beyond max_outage, others in flight",
        patience,
        (5, 8),
        rows=None,
        exit=1,
        says="max_outage",
        again=None,
    ),
    Behaviour(
        "Gemini's 429 in a list: `retry in 1.5s`",
        first(
            lambda call: Reply(
                [
                    {
                        "error": {
                            "code": 429,
                            "message": "You exceeded your current quota. Please retry in 1.5s.",
                            "status": "RESOURCE_EXHAUSTED",
                        }
                    }
                ],
                429,
            )
        ),
        (7, 7),
    ),
    Behaviour("503 three times, loading", first(lambda call: error(503, "Loading model", 503), 3), (9, 9)),
    Behaviour("529 overloaded", first(lambda call: error(529, "Overloaded", kind="overloaded_error")), (7, 7)),
    Behaviour("200 with an error that passes", first(lambda call: error(200, "Provider returned error", 502)), (7, 7)),
    Behaviour(
        "500 for good, after three answers",
        lambda call: said(call) if call.total <= 3 else error(500, "boom"),
        (4, 40),
        rows=3,
        exit=1,
        says="max_outage",
        again=None,
        speed={"max_outage": 1.0},
        seconds=25,
    ),
]
REFUSALS = [
    Behaviour("429 insufficient_quota", quota, ONE, says="insufficient_quota", **STOPS),
    Behaviour(
        "429 insufficient_quota after three answers",
        lambda call: said(call) if call.total <= 3 else quota(call),
        (4, 6),
        rows=3,
        exit=1,
        says="exceeded your current quota",
        again=None,
    ),
    Behaviour("402", lambda call: error(402, "Insufficient Balance"), ONE, says="Insufficient Balance", **STOPS),
    Behaviour("403", lambda call: error(403, "no access to this model"), ONE, says="no access", **STOPS),
    Behaviour(
        "401",
        lambda call: repeating(call, 401, "Incorrect API key", "invalid_api_key"),
        ONE,
        says="invalid_api_key",
        **STOPS,
    ),
    Behaviour(
        "404",
        lambda call: error(404, "The model `x` does not exist", "model_not_found"),
        ONE,
        says="does not exist",
        **STOPS,
    ),
    Behaviour(
        "404 in HTML",
        always(Reply("<html><body><h1>Not Found</h1></body></html>", 404)),
        ONE,
        says="Not Found",
        **STOPS,
    ),
    Behaviour(
        "400 with money in words",
        lambda call: error(400, "Your credit balance is too low"),
        ONE,
        says="credit balance",
        **STOPS,
    ),
    Behaviour(
        "200 with an error, no credit",
        lambda call: error(200, "Insufficient credits", 402),
        ONE,
        says="credits",
        **STOPS,
    ),
    Behaviour(
        "200 with an unknown error", lambda call: error(200, "something is odd"), FEW, says="something is odd", **STOPS
    ),
    Behaviour(
        "400, unknown words", lambda call: repeating(call, 400, "cannot do", "bad"), FEW, says="cannot do", **STOPS
    ),
    Behaviour(
        "temperature refused",
        refusing(
            "temperature",
            lambda: error(
                400,
                "Unsupported value: 'temperature' does not support 0 with this model.",
                "unsupported_value",
                param="temperature",
            ),
        ),
        ONE,
        says="temperature",
        **STOPS,
    ),
    Behaviour(
        "seed refused in Mistral's form",
        refusing(
            "seed",
            lambda: Reply(
                {
                    "object": "error",
                    "message": {
                        "detail": [
                            {
                                "type": "extra_forbidden",
                                "loc": ["body", "seed"],
                                "msg": "Extra inputs are not permitted",
                                "input": 1,
                            }
                        ]
                    },
                    "type": "invalid_request_error",
                    "param": None,
                    "code": None,
                },
                422,
            ),
        ),
        ONE,
        says="seed",
        sampling={"temperature": 1.0},
        **STOPS,
    ),
    Behaviour("max_tokens refused for max_completion_tokens", refusing("max_tokens", no_max_tokens), (7, 7)),
    Behaviour(
        "max_tokens refused, in text", refusing("max_tokens", lambda: Reply("unknown field max_tokens", 400)), (7, 7)
    ),
]
NEVER = [
    Behaviour(
        "context too long for two prompts",
        some(lambda call: error(400, LONG, "context_length_exceeded")),
        rows=4,
        never=2,
        says="too_long",
    ),
    Behaviour(
        "Anthropic: prompt is too long",
        some(
            lambda call: Reply(
                {
                    "type": "error",
                    "error": {
                        "type": "invalid_request_error",
                        "message": "prompt is too long: 209303 tokens > 200000 maximum",
                    },
                },
                400,
            )
        ),
        rows=4,
        never=2,
    ),
    Behaviour(
        "llama.cpp: 500, context",
        some(
            lambda call: error(500, "the request exceeds the available context size", 500, "exceed_context_size_error")
        ),
        rows=4,
        never=2,
    ),
    Behaviour(
        "413 in HTML", some(lambda call: Reply("<html>413 Request Entity Too Large</html>", 413)), rows=4, never=2
    ),
    Behaviour(
        "Azure: the prompt is filtered",
        some(
            lambda call: error(
                400,
                "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
                "content_filter",
                param="prompt",
                innererror={"code": "ResponsibleAIPolicyViolation"},
            )
        ),
        rows=4,
        never=2,
        says="filtered",
    ),
    Behaviour(
        "OpenRouter: 403, moderation",
        some(lambda call: error(403, "Your input was flagged", 403, metadata={"reasons": ["x"], "flagged_input": "y"})),
        rows=4,
        never=2,
    ),
    Behaviour(
        "finish content_filter with part of a text",
        some(lambda call: said(call, finish="content_filter")),
        rows=4,
        never=2,
    ),
    Behaviour(
        "a refusal field", some(lambda call: said(call, None, refusal="I cannot help.", tokens=4)), rows=4, never=2
    ),
    Behaviour(
        "tool_calls",
        some(lambda call: said(call, None, "tool_calls", tokens=9, tool_calls=[{"id": "1"}])),
        rows=4,
        never=2,
    ),
]
EMPTY = [
    Behaviour(
        "content null, finish length",
        lambda call: said(call, None, "length", tokens=MAX_TOKENS),
        says="empty at max_tokens 400",
    ),
    Behaviour(
        'content "", finish length', lambda call: said(call, "", "length", tokens=MAX_TOKENS), says="6 of 6 empty"
    ),
    Behaviour(
        "content null, finish length, no usage",
        lambda call: said(call, None, "length", None, MAX_TOKENS),
        says="6 of 6 empty",
        inexact=0.3,
    ),
    Behaviour("content null, finish stop, tokens spent", lambda call: said(call, None, tokens=90), says="6 of 6 empty"),
    Behaviour("empty without response tokens, once a prompt", once(lambda call: said(call, "", tokens=0)), TWICE),
]
DIALECTS = [
    Behaviour(
        "content in parts",
        lambda call: said(call, [{"type": "text", "text": WORDS[:20]}, {"type": "text", "text": WORDS[20:]}]),
    ),
    Behaviour(
        "thoughts in parts",
        lambda call: said(
            call, [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"type": "text", "text": WORDS}]
        ),
    ),
    Behaviour("reasoning_content", lambda call: said(call, reasoning_content="first, I think", tokens=30)),
    Behaviour(
        "reasoning and its details",
        lambda call: said(call, reasoning="I think", reasoning_details=[{"type": "reasoning.text", "text": "I think"}]),
    ),
    Behaviour("a think-block in the content", lambda call: said(call, f"<think>so</think>{WORDS}")),
    Behaviour("no usage", lambda call: said(call, usage=None), says="estimated", inexact=0.5),
    Behaviour(
        "usage of zeros",
        lambda call: said(call, usage={"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}),
        says="estimated",
        inexact=0.5,
    ),
    Behaviour(
        "thoughts in total_tokens only",
        lambda call: said(
            call,
            usage={"prompt_tokens": call.tokens, "completion_tokens": 10, "total_tokens": call.tokens + 90},
            tokens=90,
        ),
    ),
    Behaviour(
        "usage as input_tokens and output_tokens",
        lambda call: said(call, usage={"input_tokens": call.tokens, "output_tokens": 10}),
    ),
    Behaviour("more tokens than max_tokens", lambda call: said(call, tokens=3 * MAX_TOKENS)),
    *(
        Behaviour(f"finish_reason {json.dumps(finish)}", lambda call, finish=finish: said(call, finish=finish))  # type: ignore[misc]
        for finish in (
            None,
            "",
            "eos",
            "eos_token",
            "end_turn",
            "STOP",
            "stop_sequence",
            "max_tokens",
            "MAX_TOKENS",
            "error",
        )
    ),
    Behaviour("a finish_reason that nobody knows", lambda call: said(call, finish="sunset"), says="sunset x 6"),
    Behaviour(
        "OpenRouter: an error inside a choice, once a prompt",
        once(failed_inside),
        TWICE,
    ),
    Behaviour(
        "finish_reason error without text, once a prompt", once(lambda call: said(call, "", "error", tokens=3)), TWICE
    ),
    Behaviour(
        "a choice of text",
        lambda call: changed(
            said(call), body={**said(call).body, "choices": [{"text": WORDS, "finish_reason": "stop"}]}
        ),
    ),
]
BEHAVIOURS = [*PLAIN, *WAITS, *REFUSALS, *NEVER, *EMPTY, *DIALECTS]
"""All rows. A module with more (batches, say) may hand its own to benchmarks.servers.run."""


class BehavingServer(ThreadingHTTPServer):
    """A server with one behaviour."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, act: Act) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.act, self.lock = act, threading.Lock()
        self.calls, self.numbers, self.prompts = 0, Counter[str](), dict[str, int]()
        self.billed, self.texts = 0, set[str]()
        """Tokens by the server's own count; prompts to which a whole text was sent."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that went away."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: BehavingServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        name, server = asked["messages"][-1]["content"], self.server
        with server.lock:
            server.calls += 1
            server.numbers[name] += 1
            prompt = server.prompts.setdefault(name, len(server.prompts) + 1)
            call = Call(asked, server.numbers[name], server.calls, prompt)
        reply = server.act(call)
        with server.lock:  # before it is sent: whoever leaves pays too
            server.billed += sum(reply.billed)
            whole = (
                reply.status == 200
                and isinstance(reply.body, dict)
                and reply.body.get("choices")
                and reply.end in ("", "slow", "close")
            )
            if whole and not (call.number == 1 and reply.delay > 1):
                server.texts.add(name)
        time.sleep(reply.delay)
        self._send(reply)

    def _send(self, reply: Reply) -> None:
        if reply.end == "drop":
            self.close_connection = True
            return
        text = reply.body if isinstance(reply.body, str) else json.dumps(reply.body)
        data = text.encode()
        self.send_response(reply.status)
        self.send_header("Content-Type", "text/html" if isinstance(reply.body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        half = len(data) // 2
        pieces = {"cut": [data[:half]], "reset": [data[:half]], "slow": [data[:half], data[half:]]}.get(
            reply.end, [data]
        )
        for piece in pieces:
            self.wfile.write(piece)
            self.wfile.flush()
            time.sleep(0.3 if reply.end == "slow" else 0)
        if reply.end == "reset":
            time.sleep(0.05)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
        self.close_connection = reply.end in ("cut", "reset", "close")

    def log_message(self, *_: Any) -> None:
        """Quiet."""


@contextmanager
def behaving(act: Act) -> Iterator[BehavingServer]:
    """A running server."""
    server = BehavingServer(act)
    with running(server):
        yield server
