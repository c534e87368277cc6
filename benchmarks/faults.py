"""Faults: what the response store promises, under kill -9, damage, a full disk and two writers. One table.

    python -m benchmarks.faults            about a minute; loopback and subprocesses only
    python -m benchmarks.faults --kills 5  a short version

Each line says what was done, what was found and what is allowed; the exit status is 1 if anything is over.
"""

import argparse
import json
import logging
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.schemas import PROMPTS, write_table
from persyn.store import Store, shelves, verify
from persyn.store.journal import read_records
from tests.support.stub import FAULTS, StubServer, stub_teacher
from tests.support.tables import prompts_table

CONCURRENCY = 8
Row = tuple[str, str, int, int]
"""What was done, what was counted, how many were found, how many are allowed."""

# The run that is killed: one teacher, through the store, to a sealed table, as stages/responses.py does it.
GENERATE = """
import json
from pathlib import Path
from persyn.generation import Sampling, Teacher
from persyn.generation.openai import OpenAISpeed
from persyn.responses import generate_responses
from persyn.schemas import PROMPTS, RESPONSES, read_table, write_table
from stages import run

def main(prompts, speed, store, out):
    sampling = Sampling(max_tokens=40, temperature=1.0)
    teacher = Teacher(model="stub", license="x", backend="openai", sampling=sampling)
    speed = OpenAISpeed.parse({"concurrency": 8, "timeout": 2.0, "max_attempts": 8} | json.loads(speed))
    write_table(generate_responses(read_table(prompts, PROMPTS), "stub", teacher, Path(store), speed), out, RESPONSES)

run(main)
"""


def main() -> None:
    """Run every fault and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--prompts", type=int, default=400)
    parser.add_argument("--flips", type=int, default=3000)
    asked = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prompts = write_prompts(folder / "prompts.parquet", asked.prompts)
        rows += killed(folder, prompts, asked.kills)
        rows += damaged(folder / "damage", asked.flips)
        rows += full_disk(folder, prompts)
        rows += two_writers(folder, prompts)
    sys.exit(print_table(rows))


def print_table(rows: list[Row]) -> int:
    """Print `rows`; returns 1 if one is over what is allowed."""
    print(f"| {'fault':<58} | {'counted':<34} | found | allowed |\n|{'-' * 60}|{'-' * 36}|------:|--------:|")  # noqa: T201
    for fault, counted, found, allowed in rows:
        print(f"| {fault:<58} | {counted:<34} | {found:>5} | {allowed:>7} |{'' if found <= allowed else ' OVER'}")  # noqa: T201
    return int(any(found > allowed for _, _, found, allowed in rows))


def write_prompts(path: Path, count: int) -> Path:
    """PROMPTS with this many rows."""
    texts = [f"Tell story number {number}." for number in range(count)]
    write_table(prompts_table(texts), path, PROMPTS)
    return path


def generation(
    folder: Path, prompts: Path, server: StubServer, speed: Mapping[str, Any] | None = None, **options: Any
) -> subprocess.Popen[str]:
    """The run as a process of its own, with these speed knobs; its store and its sealed table are in `folder`."""
    knobs = json.dumps({"base_url": server.url, **(speed or {})})
    arguments = str(prompts), knobs, str(folder / "store"), str(folder / "sealed.parquet")
    command = [sys.executable, "-c", GENERATE, *arguments]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, **options)


def sealed(folder: Path, prompts: Path, faults: dict[str, float], delay: float = 0.0) -> bytes:
    """The sealed table of a run that nothing disturbs."""
    with stub_teacher(faults, delay=delay, hang=3.0) as server:
        run = generation(folder, prompts, server)
        _, errors = run.communicate()
    if run.returncode:
        sys.exit(errors)
    return (folder / "sealed.parquet").read_bytes()


def killed(folder: Path, prompts: Path, kills: int) -> Iterator[Row]:
    """kill -9 at random times, over a teacher that itself fails in five ways; then a run to the end."""
    expected = sealed(folder / "calm", prompts, {})
    count, draw, hit = pl.read_parquet(prompts).height, random.Random(0), 0
    target = folder / "killed"
    # Slow enough that all kills fit in: each run gets through about one in `kills` of the prompts.
    with stub_teacher(FAULTS, delay=0.05, hang=3.0) as server:
        for _ in tqdm(range(kills), desc="kill -9", unit="kill"):
            calls = server.counts["ok"]
            run = generation(target, prompts, server)
            while run.poll() is None and server.counts["ok"] == calls:
                time.sleep(0.01)
            time.sleep(draw.uniform(0, 2 * count / kills * 0.05 / CONCURRENCY))
            hit += run.poll() is None
            run.kill()
            run.wait()
        run = generation(target, prompts, server)
        run.communicate()
        paid, most = server.counts["ok"], server.counts["most in flight"]
    fault = f"kill -9 x {hit} over {count} prompts, {sum(FAULTS.values()):.0%} of calls fail"
    answers = pl.read_parquet(target / "sealed.parquet")
    report, _ = verify(shelves(target / "store")[0])
    yield fault, "prompts without their answer", count - answers.filter(pl.col("finish_reason") != "error").height, 0
    yield fault, "rows answered twice", report.records - report.rows + report.conflicts, 0
    yield fault, f"extra calls ({most} in flight at most)", paid - count, hit * CONCURRENCY
    yield fault, "sealed table differs by a byte", differs(target, expected), 0
    yield fault, "kills that came too late to count", kills - hit, kills // 5


def damaged(folder: Path, flips: int) -> Iterator[Row]:
    """Random bits flipped, and the journal cut at every offset of its last three records."""
    rows = {f"k{number}": {"response": f"text {number} é" * 20, "number": number} for number in range(50)}
    Store(folder).put(rows)
    [journal] = folder.glob("j*-*.log")
    data, draw, wrong, lost = journal.read_bytes(), random.Random(0), 0, 0
    for _ in tqdm(range(flips), desc="bit flips", unit="flip"):
        changed = bytearray(data)
        changed[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        journal.write_bytes(changed)
        served = read_quietly(folder, rows)
        wrong += sum(row is not None and row != rows[key] for key, row in served.items())
        lost += max(0, sum(row is None for row in served.values()) - 1)
    yield f"one random bit flipped x {flips}", "wrong rows served", wrong, 0
    yield f"one random bit flipped x {flips}", "rows lost beyond the one that was hit", lost, 0
    ends = [end for _, end, _ in read_records(data)]
    cuts, wrong = range(ends[-4], len(data)), 0
    for length in cuts:
        journal.write_bytes(data[:length])
        whole = {key: row for (key, row), end in zip(rows.items(), ends, strict=True) if end <= length}
        served = read_quietly(folder, rows)
        wrong += {key: row for key, row in served.items() if row is not None} != whole
    yield f"cut at each of {len(cuts)} offsets of the last 3 records", "not exactly the whole records", wrong, 0


def read_quietly(folder: Path, keys: dict[str, Any]) -> dict[str, Any]:
    """What the store serves; its warnings are expected here."""
    logging.disable(logging.WARNING)
    store = Store(folder)
    logging.disable(logging.NOTSET)
    return {key: store.get(key) for key in keys}


def full_disk(folder: Path, prompts: Path) -> Iterator[Row]:
    """A file-size limit stands in for the disk's end: writes stop half-way through a record."""
    expected, target = (folder / "calm" / "sealed.parquet").read_bytes(), folder / "full"
    with stub_teacher() as server:
        run = generation(target, prompts, server, preexec_fn=limit_files(20_000))
        _, errors = run.communicate()
        stored = verify(shelves(target / "store")[0])[0].rows
        said = "free" in errors or "stored before are safe" in errors
        run_again = generation(target, prompts, server)
        run_again.communicate()
    yield "disk full", "exit status 0, or no clear line", int(run.returncode == 0 or not said), 0
    yield "disk full", "store unreadable or empty after", int(stored == 0), 0
    yield "disk full, then space again", "sealed table differs by a byte", differs(target, expected), 0


def differs(folder: Path, expected: bytes) -> int:
    """1 if the sealed table is missing or not these bytes."""
    path = folder / "sealed.parquet"
    return int(not path.is_file() or path.read_bytes() != expected)


def limit_files(size: int) -> Callable[[], None]:
    """For a child process: no file may grow beyond `size` bytes."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def two_writers(folder: Path, prompts: Path) -> Iterator[Row]:
    """Two runs of the same work at once, one of them killed and started again on the way."""
    expected, target, count = (folder / "calm" / "sealed.parquet").read_bytes(), folder / "two", 0
    with stub_teacher(delay=0.02) as server:
        first, second = generation(target, prompts, server), generation(target, prompts, server)
        time.sleep(2.5)
        first.send_signal(signal.SIGKILL)
        first.wait()
        first = generation(target, prompts, server)
        first.communicate()
        second.communicate()
        paid, count = server.counts["ok"], pl.read_parquet(prompts).height
    report, _ = verify(shelves(target / "store")[0])
    fault = "two runs of the same work at once, one killed"
    yield fault, "sealed table differs by a byte", differs(target, expected), 0
    yield fault, "rows stored twice", report.records - report.rows, 0
    yield fault, "extra calls", paid - count, CONCURRENCY


if __name__ == "__main__":
    main()
