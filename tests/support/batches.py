"""A stub of the OpenAI Batch API, as its public documentation says: files, batches, their states and their limits.

Every look at a batch moves it on by one state: validating, in_progress, finalizing, then its end. It counts what it
billed, and never bills a line that it did not get to.
"""

import json
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, urlsplit

from persyn.generation.openai import OpenAISpeed
from tests.support.stub import Handler, StubServer, completion, running

ENDPOINT = "/v1/chat/completions"
STATES = ("validating", "in_progress", "finalizing")


@dataclass(frozen=True)
class Fate:
    """What becomes of one batch."""

    end: str = "completed"
    """completed, failed, expired or cancelled."""
    done: float = 1.0
    """Share of the lines that the server gets to."""
    statuses: Mapping[int, int] = field(default_factory=dict)
    """Number of a line -> the status of its response, other than 200."""
    oddities: frozenset[str] = frozenset()
    """Of its output: repeated (a line twice), unknown (a line of another batch), cut (in the middle of a line), html
    (a body that is no completion), cut once (only the first download).
    """
    code: str = "invalid_json_line"
    """Of its error, if it failed."""


class BatchServer(StubServer):
    """The stub teacher's server with files and batches. `fates` are taken in turn; then all goes well."""

    def __init__(self, fates: list[Fate], queue: float = 10**12) -> None:
        super().__init__({}, 0.0, 5.0, 0, None, None)
        self.RequestHandlerClass = BatchHandler
        self.fates, self.queue, self.slow = fates, queue, False
        """Lines that may be at the server at once; and whether batches stay in progress."""
        self.files: dict[str, bytes] = {}
        self.num_files = 0
        self.cut_once = set[str]()
        """Files whose end the next download lacks."""
        self.batches: dict[str, dict[str, Any]] = {}
        self.fate_of: dict[str, Fate] = {}
        self.billed, self.tokens, self.calls = Counter[str](), 0, Counter[str]()
        """Times that each custom_id was billed, and all tokens billed; calls by method and path."""
        self.list_lags = 0
        """How often the list does not show the newest batch yet."""
        self.fail: dict[str, list[str]] = {}
        """Call (as in `calls`) -> what to do at its next times: a status, `drop` (before), `lose` (after the work)."""

    def speed(self, **knobs: Any) -> OpenAISpeed:
        """Knobs of the backend openai that ask this server in batches, by `batch` where given."""
        batch = {"poll_seconds": 0.01, **(knobs.pop("batch", None) or {})}
        return OpenAISpeed(base_url=self.url, **{"batch": batch, "max_outage": 5.0, **knobs})

    def add_file(self, data: bytes) -> str:
        name = f"file-{self.num_files}"
        self.num_files += 1
        self.files[name] = data
        return name

    def create(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        """A new batch, as the API shows it."""
        name = f"batch_{len(self.batches)}"
        num_lines = len(self.files[asked["input_file_id"]].splitlines())
        batch: dict[str, Any] = {
            "id": name,
            "object": "batch",
            "endpoint": asked["endpoint"],
            "errors": None,
            "input_file_id": asked["input_file_id"],
            "completion_window": asked["completion_window"],
            "status": "validating",
            "output_file_id": None,
            "error_file_id": None,
            "created_at": int(time.time()),
            "request_counts": {"total": num_lines, "completed": 0, "failed": 0},
            "metadata": asked.get("metadata"),
        }
        self.batches[name] = batch
        self.fate_of[name] = self.fates.pop(0) if self.fates else Fate()
        return batch

    def advance(self, batch: dict[str, Any]) -> None:
        """Move a batch to its next state."""
        status, fate = batch["status"], self.fate_of[batch["id"]]
        if status == "validating":
            errors = self.mistakes(batch)
            if fate.end == "failed":
                errors = errors or [{"code": fate.code, "message": "the server's words", "line": 1, "param": None}]
            if errors:
                batch["status"], batch["errors"] = "failed", {"object": "list", "data": errors}
            else:
                batch["status"] = "in_progress"
        elif status == "in_progress" and not self.slow:
            self.work(batch, fate)
            batch["status"] = "finalizing"
        elif status == "cancelling":
            self.work(batch, Fate("cancelled", fate.done))
            batch["status"] = "cancelled"
        elif status == "finalizing":
            batch["status"] = fate.end

    def mistakes(self, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """What validation finds."""
        data = self.files[batch["input_file_id"]]
        lines = [json.loads(text) for text in data.splitlines()]
        active = [one for one in self.batches.values() if one["status"] in STATES[1:]]
        found = list[str]()
        if len(lines) > 50_000 or len(data) > 200e6:
            found.append("file_too_large")
        if not lines:
            found.append("empty_file")
        if len({line["custom_id"] for line in lines}) < len(lines):
            found.append("duplicate_custom_id")
        if len({line["body"]["model"] for line in lines}) > 1:
            found.append("mismatched_model")
        if any(line["url"] != batch["endpoint"] or line["method"] != "POST" for line in lines):
            found.append("invalid_url")
        if sum(one["request_counts"]["total"] for one in active) + len(lines) > self.queue:
            found.append("token_limit_exceeded")
        return [{"code": code, "message": "Enqueued too much", "line": None, "param": None} for code in found]

    def work(self, batch: dict[str, Any], fate: Fate) -> None:
        """Respond to the lines that it gets to, in any order, and bill them."""
        lines = [json.loads(text) for text in self.files[batch["input_file_id"]].splitlines()]
        reached = round(fate.done * len(lines))
        good, bad = list[dict[str, Any]](), list[dict[str, Any]]()
        for number, line in enumerate(lines):
            name = {"id": f"batch_req_{number}", "custom_id": line["custom_id"]}
            if number >= reached:
                code = "batch_expired" if fate.end == "expired" else "batch_cancelled"
                bad.append({**name, "response": None, "error": {"code": code, "message": "not executed in time"}})
                continue
            status = fate.statuses.get(number, 200)
            body: dict[str, Any] = (
                completion(line["body"], self.seed, "ok") if status == 200 else {"error": {"message": "no"}}
            )
            body = {"said": "maintenance"} if "html" in fate.oddities and number == 0 else body
            response = {"status_code": status, "request_id": f"req_{number}", "body": body}
            (good if status == 200 else bad).append({**name, "response": response, "error": None})
            if status == 200 and "usage" in body:
                self.billed[line["custom_id"]] += 1
                self.tokens += body["usage"]["prompt_tokens"] + body["usage"]["completion_tokens"]
        random.Random(0).shuffle(good)
        batch["request_counts"] = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        if good:
            batch["output_file_id"] = self.add_file(_jsonl(_oddly(good, fate.oddities)))
        if bad:
            batch["error_file_id"] = self.add_file(_jsonl(bad))
        if "cut once" in fate.oddities:
            self.cut_once.add(batch["output_file_id"])
        if "cut" in fate.oddities:
            self.files[batch["output_file_id"]] = self.files[batch["output_file_id"]][:-20]


class BatchHandler(Handler):
    """One call to the Batch API, or to the plain one."""

    server: BatchServer
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        path = urlsplit(self.path).path
        if path.endswith("/chat/completions"):
            return super().do_POST()
        data = self.rfile.read(int(self.headers["Content-Length"]))
        if self._goes_wrong("POST", path):
            return None
        with self.server.lock:
            if path == "/v1/files":
                self._made(self._file(data))
            elif path == "/v1/batches":
                self._made(self._batch(json.loads(data)))
            elif match := re.fullmatch(r"/v1/batches/(\w+)/cancel", path):
                batch = self.server.batches[match[1]]
                batch["status"] = "cancelling" if batch["status"] in STATES else batch["status"]
                self._send(200, batch)
            else:
                self._send(404, {"error": {"message": f"Invalid URL (POST {path})"}})
        return None

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if self._goes_wrong("GET", url.path):
            return
        with self.server.lock:
            if url.path == "/v1/batches":
                self._list({name: values[0] for name, values in parse_qs(url.query).items()})
            elif match := re.fullmatch(r"/v1/batches/(\w+)", url.path):
                batch = self.server.batches.get(match[1])
                if batch:
                    self._send(200, batch)
                    self.server.advance(batch)
                else:
                    self._send(404, {"error": {"message": "No batch found", "code": None}})
            elif match := re.fullmatch(r"/v1/files/([\w-]+)/content", url.path):
                data = self.server.files.get(match[1])
                if data is None:
                    self._send(404, {"error": {"message": "No such File"}})
                else:
                    self._bytes(data[:-20] if match[1] in self.server.cut_once else data)
                    self.server.cut_once.discard(match[1])
            else:
                self._send(404, {"error": {"message": f"Invalid URL (GET {url.path})"}})

    def do_DELETE(self) -> None:
        path = urlsplit(self.path).path
        if not self._goes_wrong("DELETE", path):
            with self.server.lock:
                found = self.server.files.pop(path.rpartition("/")[2], None)
            self._send(404 if found is None else 200, {"object": "file", "deleted": found is not None})

    def _goes_wrong(self, method: str, path: str) -> bool:
        """Count the call, and do what `fail` has for it."""
        call = f"{method} {re.sub(r'(batch_|file-)[0-9]+', '*', path.removeprefix('/v1'))}"
        with self.server.lock:
            self.server.calls[call] += 1
            faults = self.server.fail.get(call, [])
            self.fault = faults.pop(0) if faults else ""
        if self.fault.isdecimal():
            said = {"message": "the words of the server", "code": "a_code"}
            self._send(int(self.fault), {"error": said})
        elif self.fault == "drop":
            self._hang_up()
        return self.fault not in ("", "lose")

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(2)

    def _made(self, made: dict[str, Any] | str) -> None:
        """Send what was made, or why it was not; with the fault `lose`, the response gets lost."""
        if self.fault == "lose":
            self._hang_up()
        elif isinstance(made, str):
            self._send(400, {"error": {"message": made, "type": "invalid_request_error", "code": None}})
        else:
            self._send(200, made)

    def _file(self, data: bytes) -> dict[str, Any] | str:
        boundary = self.headers["Content-Type"].partition("boundary=")[2].strip('"').encode()
        parts = dict[str, bytes]()
        for part in data.split(b"--" + boundary)[1:-1]:
            head, _, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
            named = re.search(rb'name="(\w+)"', head)
            parts[named[1].decode() if named else ""] = content.removesuffix(b"\r\n")
        if parts.get("purpose") != b"batch" or "file" not in parts:
            return "a file for batches needs purpose=batch"
        name = self.server.add_file(parts["file"])
        shown = {"id": name, "object": "file", "bytes": len(parts["file"]), "created_at": 0, "filename": "x.jsonl"}
        return {**shown, "purpose": "batch", "status": "processed"}

    def _batch(self, asked: Mapping[str, Any]) -> dict[str, Any] | str:
        if asked.get("input_file_id") not in self.server.files:
            return "no such file"
        if asked.get("endpoint") != ENDPOINT or asked.get("completion_window") != "24h":
            return "endpoint or completion_window is not supported"
        if any(len(name) > 64 or len(text) > 512 for name, text in (asked.get("metadata") or {}).items()):
            return "metadata is too long"
        return self.server.create(asked)

    def _list(self, asked: Mapping[str, str]) -> None:
        newest = list(self.server.batches.values())[::-1]
        if self.server.list_lags:
            self.server.list_lags -= 1
            newest = newest[1:]
        names = [batch["id"] for batch in newest]
        start = names.index(asked["after"]) + 1 if "after" in asked else 0
        page = newest[start : start + min(int(asked.get("limit", 20)), 3)]  # short pages: there must be several
        ends = {"first_id": page[0]["id"], "last_id": page[-1]["id"]} if page else {}
        self._send(200, {"object": "list", "data": page, "has_more": start + len(page) < len(newest), **ends})

    def _bytes(self, data: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def _jsonl(lines: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def _oddly(lines: list[dict[str, Any]], oddities: frozenset[str]) -> list[dict[str, Any]]:
    repeated = lines[:1] if "repeated" in oddities else []
    unknown = [{**lines[0], "custom_id": "of another batch"}] if "unknown" in oddities else []
    return [*lines, *repeated, *unknown]


@contextmanager
def batch_server(*fates: Fate, queue: float = 10**12) -> Iterator[BatchServer]:
    """A running stub whose batches have these fates, in turn."""
    server = BatchServer(list(fates), queue)
    with running(server):
        yield server
