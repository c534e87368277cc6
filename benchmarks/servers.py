"""Servers: what servers say and do, row by row, and what comes of it: calls, bills, rows, messages.

    python -m benchmarks.servers                 about a minute: the table of behaviours, loopback only
    python -m benchmarks.servers --only quota    the rows whose name has this text
    python -m benchmarks.servers --load 20000    our stage and the bare official client on so many requests

Billed are the tokens by the server's own count, counted are those that the budget sees. A row holds if they are equal
(near, where the server does not say), no call was repeated that cannot change, every text that was paid for is kept, a
second run asks nothing again, and the message has the server's words without key and prompt. The exit status is 1 if a
row does not hold.
"""

import argparse
import asyncio
import json
import logging
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from persyn.errors import InputError
from persyn.generation import Sampling, Teacher
from persyn.generation.budget import Budget
from persyn.generation.openai import OpenAISpeed
from persyn.responses import generate_responses
from persyn.store import shelves, verify
from tests.support.behaviours import BEHAVIOURS, KEY, MAX_TOKENS, NUM_PROMPTS, BehavingServer, Behaviour, behaving
from tests.support.tables import prompts_table

PROMPTS = prompts_table([f"Tell an anecdote-{number}9 that only grandmother knows." for number in range(NUM_PROMPTS)])
SIDE_BY_SIDE = 12
"""Rows at once: most of their time is waiting."""
ROUNDS = 3
IN_FLIGHT = 64
FAST_SERVER = """
import asyncio, json
body = {"id": "x", "object": "chat.completion", "created": 0, "model": "stub", "choices": [{"index": 0,
        "finish_reason": "stop", "message": {"role": "assistant", "content": "the old clock struck four " * 8}}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 40, "total_tokens": 52}}
data = json.dumps(body).encode()
head = b"HTTP/1.1 200 OK\\r\\nContent-Type: application/json\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(data)
async def serve(reader, writer):
    try:
        while True:
            lines = (await reader.readuntil(b"\\r\\n\\r\\n")).lower().split(b"\\r\\n")
            [length] = [int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")]
            await reader.readexactly(length)
            writer.write(head + data)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()
async def main():
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()
asyncio.run(main())
"""
LEAST = 0.9
"""Of the bare client's requests a CPU-second."""
GROWTH = 30.0
"""MB that the second half of a load may add to this process."""


@dataclass(frozen=True)
class Outcome:
    """A row of the table."""

    name: str
    calls: int
    billed: int
    counted: int
    rows: int
    exit: int
    seconds: float
    message: str
    faults: tuple[str, ...] = ()
    """What does not hold."""


def main() -> None:
    """Run what is asked for; the exit status is 1 if something does not hold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    parser.add_argument("--load", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    asked = parser.parse_args()
    if asked.load:
        sys.exit(compare_load(asked.load, asked.rounds))
    sys.exit(print_table([row for part in PARTS for row in part(asked.only)]))


def behaviours(only: str) -> list["Outcome"]:
    """What comes of the behaviours whose name has this text."""
    return run([row for row in BEHAVIOURS if only in row.name])


PARTS: list[Callable[[str], list["Outcome"]]] = [behaviours]
"""The parts of the table; one that needs a server of another kind (batches, say) adds itself here."""


def run(rows: Sequence[Behaviour]) -> list[Outcome]:
    """What comes of each behaviour."""
    os.environ["STUB_KEY"] = KEY
    with ThreadPoolExecutor(SIDE_BY_SIDE) as pool, tempfile.TemporaryDirectory() as scratch, listening() as heard:
        folders = [Path(scratch) / str(number) for number in range(len(rows))]
        return list(pool.map(lambda row, folder: try_out(row, folder, heard), rows, folders))


def print_table(outcomes: Sequence[Outcome]) -> int:
    """Print the table and how many rows hold; returns 1 if one does not."""
    print("| server | calls | billed | counted | rows | exit | s | message |\n|---|--:|--:|--:|--:|--:|--:|---|")  # noqa: T201
    for row in outcomes:
        numbers = f"{row.calls} | {row.billed} | {row.counted} | {row.rows} | {row.exit} | {row.seconds:.1f}"
        failed = f" DOES NOT HOLD: {'; '.join(row.faults)}" if row.faults else ""
        print(f"| {row.name} | {numbers} | {row.message[:160].replace('|', '/')} |{failed}")  # noqa: T201
    held = sum(not row.faults for row in outcomes)
    print(f"\n{held} of {len(outcomes)} rows hold")  # noqa: T201
    return int(held < len(outcomes))


def try_out(row: Behaviour, folder: Path, heard: dict[int, list[str]]) -> Outcome:
    """Ask a server that behaves so, then once more, and compare with what must come of it."""
    with behaving(row.act) if row.act else nullcontext() as server:
        started = time.monotonic()
        status, message = _ask(row, server, folder, heard)
        seconds = time.monotonic() - started
        calls, billed = (server.calls, server.billed) if server else (0, 0)
        counted = Budget().spent(folder)
        texts = len(server.texts) if server else 0
        rows = [row for shelf in shelves(folder) for row in _rows(shelf)]
        kept = sum(row["finish_reason"] != "error" for row in rows)
        never = sum(row.get("final", False) for row in rows)
        faults = {
            f"{calls} calls, not {row.calls}": not row.calls[0] <= calls <= row.calls[1],
            "billed is not counted": abs(billed - counted) > row.inexact * billed,
            f"{kept} rows, not {texts if row.rows is None else row.rows}": kept
            != (texts if row.rows is None else row.rows),
            f"{never} are never answered, not {row.never}": never != row.never,
            f"exit {status}, not {row.exit}": status != row.exit,
            f"more than {row.seconds} s": seconds > row.seconds,
            f"no word of {row.says!r}": row.says not in message,
            "the key is shown": KEY in message,
            "the prompt is shown": "anecdote" in message or "grandmother" in message,
            "longer than one line": "\n" in message or len(message) > 900,
        }
        if row.again is not None and server:
            _ask(row, server, folder, heard)
            faults[f"{server.calls - calls} calls again"] = server.calls - calls != row.again
    failed = tuple(fault for fault, happened in faults.items() if happened)
    return Outcome(row.name, calls, billed, counted, kept, status, seconds, message, failed)


def _rows(shelf: Path) -> Iterator[dict[str, Any]]:
    return (json.loads(payload)["row"] for payload in verify(shelf)[1].values())


def _ask(row: Behaviour, server: BehavingServer | None, folder: Path, heard: dict[int, list[str]]) -> tuple[int, str]:
    """Exit status of a stage that asks the server, and its messages."""
    said = heard[threading.get_ident()] = []
    speed = {
        "timeout": 5.0,
        "max_attempts": 4,
        "concurrency": 8,
        "max_outage": 20.0,
        "api_key_env": "STUB_KEY",
        **row.speed,
    }
    knobs = OpenAISpeed.parse({"base_url": server.url if server else f"http://127.0.0.1:{closed_port()}/v1", **speed})
    teacher = Teacher.parse(
        {
            "model": "stub",
            "license": "x",
            "backend": "openai",
            "sampling": {"max_tokens": MAX_TOKENS, **row.sampling},
        },
        "teachers.t",
    )
    try:
        generate_responses(PROMPTS, "t", teacher, folder, knobs)
    except InputError as error:
        return 1, str(error)
    return 0, "; ".join(said)


def compare_load(count: int, rounds: int) -> int:
    """Requests a CPU-second through the stage and through the bare official client, in turns; returns 1 on a miss."""
    rates: dict[str, list[float]] = {"bare": [], "ours": []}
    grown = 0.0
    with stub_process() as url, tempfile.TemporaryDirectory() as scratch:
        for number in range(rounds):
            rates["bare"].append(count / clocked(lambda: asyncio.run(bare_calls(url, count))))
            with watched_memory() as memory:
                rates["ours"].append(count / clocked(lambda: our_calls(url, count, Path(scratch) / str(number))))  # noqa: B023
            grown = max(grown, memory[-1] - memory[len(memory) // 2])
            print(f"round {number + 1}: {rates['bare'][-1]:.0f} bare, {rates['ours'][-1]:.0f} ours", flush=True)  # noqa: T201
    ratio = max(rates["ours"]) / max(rates["bare"])
    print(f"\n{count:,} requests: {ratio:.2f} of the bare client's requests a CPU-second (at least {LEAST});")  # noqa: T201
    print(f"the second half of a run added {grown:.0f} MB (at most {GROWTH:.0f})")  # noqa: T201
    return int(ratio < LEAST or grown > GROWTH)


def clocked(turn: Callable[[], None]) -> float:
    """CPU-seconds of this process that `turn` takes."""
    started = time.process_time()
    turn()
    return time.process_time() - started


async def bare_calls(url: str, count: int) -> None:
    """The official client as its documentation has it, with as many calls in flight as we allow."""
    import openai

    client = openai.AsyncOpenAI(base_url=url, api_key="none")
    numbers = iter(range(count))

    async def ask() -> None:
        for number in numbers:
            await client.chat.completions.create(
                model="stub",
                messages=[{"role": "user", "content": f"Tell story number {number}."}],
                max_tokens=40,
                temperature=0,
            )

    await asyncio.gather(*(ask() for _ in range(IN_FLIGHT)))
    await client.close()


def our_calls(url: str, count: int, folder: Path) -> None:
    """The stage: keys, calls, the store, the table."""
    texts = [f"Tell story number {number}." for number in range(count)]
    teacher = Teacher(model="stub", license="x", backend="openai", sampling=Sampling(max_tokens=40))
    speed = OpenAISpeed(base_url=url, concurrency=IN_FLIGHT)
    table = generate_responses(prompts_table(texts), "t", teacher, folder, speed)
    assert (table["finish_reason"] != "error").all()


@contextmanager
def watched_memory() -> Iterator[list[float]]:
    """Resident MB of this process, four times a second."""
    memory, done, process = list[float](), threading.Event(), psutil.Process()

    def watch() -> None:
        while not done.wait(0.25):
            memory.append(process.memory_info().rss / 1e6)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield memory
    finally:
        done.set()
        thread.join()
        memory.append(process.memory_info().rss / 1e6)


@contextmanager
def stub_process() -> Iterator[str]:
    """The address of a fast server in a process of its own, so that its work is not counted as ours."""
    process = subprocess.Popen([sys.executable, "-c", FAST_SERVER], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}/v1"
    finally:
        process.kill()
        process.wait()


def closed_port() -> int:
    """A port on which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@contextmanager
def listening() -> Iterator[dict[int, list[str]]]:
    """Thread -> the warnings that it gave."""
    heard: dict[int, list[str]] = {}
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: heard.get(record.thread or 0, []).append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("persyn")
    logger.addHandler(handler)
    propagate, logger.propagate = logger.propagate, False
    try:
        yield heard
    finally:
        logger.removeHandler(handler)
        logger.propagate = propagate


if __name__ == "__main__":
    main()
