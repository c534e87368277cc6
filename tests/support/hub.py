"""A stub hub: it answers the questions about models and data sets that `huggingface_hub` asks, on loopback."""

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote


class StubHub(ThreadingHTTPServer):
    """Serves `/api/models/<id>` and `/api/datasets/<id>`, each also with `/revision/<branch>`.

    Args:
        commits: `models/<id>`, `datasets/<id>` or one of them with `/revision/<branch>` -> its commit.
        refused: the same -> (status, the hub's error code).
    """

    daemon_threads = True

    def __init__(self, commits: Mapping[str, str], refused: Mapping[str, tuple[int, str]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits, self.refused = commits, refused
        self.gated: set[str] = set()
        self.asked, self.tokens = list[str](), list[str | None]()
        self.drops_after: int | None = None
        """The number of questions after which it closes every connection without an answer."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: StubHub

    def do_GET(self) -> None:
        """Give the commit, or refuse."""
        what = unquote(self.path).removeprefix("/api/")
        if not what.startswith(("models/", "datasets/")):  # what the library asks of its own accord
            self._send(404, "")
            return
        if self.server.drops_after is not None and len(self.server.asked) >= self.server.drops_after:
            self.close_connection = True
            return
        self.server.asked.append(what)
        self.server.tokens.append(self.headers.get("Authorization"))
        if commit := self.server.commits.get(what):
            self._send(200, {"id": what, "sha": commit, "gated": "manual" if what in self.server.gated else False})
        else:
            self._send(*self.server.refused.get(what, (404, "RepoNotFound")))

    def _send(self, status: int, said: Any) -> None:
        body = json.dumps(said if status == 200 else {"error": said}).encode()
        self.send_response(status)
        if status != 200:
            self.send_header("X-Error-Code", said)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@contextmanager
def stub_hub(commits: Mapping[str, str], refused: Mapping[str, tuple[int, str]] | None = None) -> Iterator[StubHub]:
    """A running stub hub."""
    server = StubHub(commits, refused or {})
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
