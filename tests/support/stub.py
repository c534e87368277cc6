"""A stub teacher: an OpenAI-compatible server on loopback that responds by prompt and seed alone, with faults."""

import hashlib
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from persyn.generation.openai import OpenAISpeed

FAULTS = {"429": 0.03, "500": 0.02, "cut": 0.01, "hang": 0.005, "empty": 0.005}
"""Fault -> share of the calls."""
WORDS = ["a", "clock", "struck", "twelve", "while", "rain", "fell", "on", "the", "old", "town", "and", "nobody", "came"]


class StubServer(ThreadingHTTPServer):
    """Responds to every prompt after `delay` seconds; after `hang` seconds if the fault is to hang."""

    daemon_threads = True

    def __init__(
        self,
        faults: Mapping[str, float],
        delay: float,
        hang: float,
        seed: int,
        say: Callable[[str], str] | None,
        choice: Mapping[str, Any] | None,
    ) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.say, self.choice = say, choice
        self.faults, self.delay, self.hang, self.seed = faults, delay, hang, seed
        self.lock, self.random, self.counts = threading.Lock(), random.Random(seed), Counter[str]()
        self.capacity, self.retry_after = 10**6, "0"
        """With more calls at once it responds 429, and the header sent with it."""
        self.dialect: Callable[[Mapping[str, Any], dict[str, Any]], dict[str, Any]] = lambda asked, sent: sent
        """Changes a completion for what was asked, as a proxy before the server does."""
        self.completion_tokens: int | None = None
        """What it counts for every response, if not its words."""
        self.in_flight, self.headers_seen, self.bodies_seen = 0, list[dict[str, str]](), list[Any]()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    def speed(self, **knobs: Any) -> OpenAISpeed:
        """Knobs of the backend openai for this server, with `knobs` added."""
        return OpenAISpeed(**{"base_url": self.url, **knobs})

    def draw(self) -> str:
        """Which fault the next call gets; `ok` for none."""
        with self.lock:
            kinds, shares = list(self.faults), list(self.faults.values())
            drawn = self.random.choices([*kinds, "ok"], [*shares, max(0.0, 1 - sum(shares))])[0]
            self.counts[drawn] += drawn != "ok"
            return drawn

    def handle_error(self, *_: Any) -> None:
        """Ignore clients that were killed."""


class Handler(BaseHTTPRequestHandler):
    """One call."""

    protocol_version = "HTTP/1.1"
    server: StubServer

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.draw()
        with self.server.lock:
            self.server.headers_seen.append({":path": self.path} | {k.lower(): v for k, v in self.headers.items()})
            self.server.bodies_seen.append(asked)
            self.server.in_flight += 1
            self.server.counts["most in flight"] = max(self.server.counts["most in flight"], self.server.in_flight)
            if self.server.in_flight > self.server.capacity:
                fault = "429"
                self.server.counts["beyond capacity"] += 1
        try:
            time.sleep(self.server.hang if fault == "hang" else self.server.delay)
            self._reply(fault, asked)
        finally:
            with self.server.lock:
                self.server.in_flight -= 1

    def _reply(self, fault: str, asked: dict[str, Any]) -> None:
        with self.server.lock:  # counted before it is sent: a client killed while reading pays for it
            self.server.counts["ok"] += fault == "ok"
        if fault in ("429", "500"):
            self._send(
                int(fault),
                {"error": {"message": "injected"}},
                {"Retry-After": self.server.retry_after} if fault == "429" else {},
            )
        elif fault == "redirect":
            self._send(307, {}, {"Location": "http://localhost:9/elsewhere"})
        elif fault in ("html", "garbled"):
            self._send(200, {} if fault == "garbled" else "<html>maintenance</html>")
        elif fault in ("400", "401", "404"):
            self._send(int(fault), {"error": {"message": "the words of the server"}})
        else:
            sent = completion(asked, self.server.seed, fault)
            if self.server.say:
                sent["choices"][0]["message"]["content"] = self.server.say(asked["messages"][-1]["content"])
            if self.server.completion_tokens is not None:
                sent["usage"]["completion_tokens"] = self.server.completion_tokens
            if self.server.choice:
                sent["choices"][0] = {"index": 0, "finish_reason": "stop", **self.server.choice}
            self._send(200, self.server.dialect(asked, sent), cut=fault == "cut")

    def _send(self, status: int, body: Any, headers: Mapping[str, str] | None = None, cut: bool = False) -> None:
        data = (body if isinstance(body, str) else json.dumps(body)).encode()
        self.send_response(status)
        self.send_header("Content-Type", "text/html" if isinstance(body, str) else "application/json")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if cut else data)
        self.close_connection = cut

    def log_message(self, *_: Any) -> None:
        """Quiet."""


def completion(asked: Mapping[str, Any], seed: int, fault: str) -> dict[str, Any]:
    """The body that a server would send for `asked`."""
    content = json.dumps(asked["messages"], sort_keys=True)
    draw = random.Random(hashlib.sha256(f"{seed}{content}{asked.get('seed', '')}".encode()).digest())
    words = draw.choices(WORDS, k=draw.randint(5, 60))
    kept = [] if fault == "empty" else words[: asked["max_tokens"]]
    message = {"role": "assistant", "content": None if fault == "tool" else " ".join(kept)}
    finish = "tool_calls" if fault == "tool" else "length" if len(kept) < len(words) and kept else "stop"
    return {
        "id": "stub",
        "object": "chat.completion",
        "created": 0,
        "model": asked["model"],
        "choices": [{"index": 0, "finish_reason": finish, "message": message}],
        "usage": {"prompt_tokens": len(content.split()), "completion_tokens": len(kept), "total_tokens": 0},
    }


@contextmanager
def running(server: ThreadingHTTPServer) -> Iterator[None]:
    """Serve in a thread; close the server afterwards."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def stub_teacher(
    faults: Mapping[str, float] | None = None,
    *,
    delay: float = 0.0,
    hang: float = 5.0,
    seed: int = 0,
    say: Callable[[str], str] | None = None,
    choice: Mapping[str, Any] | None = None,
) -> Iterator[StubServer]:
    """A running stub teacher; `say` makes its response from the last message, instead of random words; `choice`
    (finish_reason, message) is sent as it is.
    """
    server = StubServer(faults or {}, delay, hang, seed, say, choice)
    with running(server):
        yield server
