"""Store: what it costs to never pay twice, beside SQLite in the same run, and as a share of the demo's generation.

    python -m benchmarks.store                       about a minute; the demo's teachers must be installed
    python -m benchmarks.store --no-demo             without them
    python -m benchmarks.store --capacity 10000000   only: memory and time to open a store of so many rows of 4 KB

SQLite commits each batch with synchronous=FULL, the same promise as the store's fsync a batch.
"""

import argparse
import hashlib
import json
import os
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from persyn.generation import BackendSpeed, Teacher
from persyn.project.params import read_params
from persyn.prompts import build_prompts
from persyn.responses import generate_responses
from persyn.store import Store, response_key, shelves, verify
from tests.support.tiny import ROOT

BATCH = 32
Rows = dict[str, dict[str, Any]]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--no-demo", action="store_true")
    parser.add_argument("--capacity", type=int, default=0)
    parser.add_argument("--folder", type=Path, help="where the files go; default: the temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        if asked.capacity:
            capacity(Path(scratch) / "store", asked.capacity)
            return
        throughput(Path(scratch), asked.rows)
        if not asked.no_demo:
            overhead(Path(scratch))


def throughput(folder: Path, count: int) -> None:
    """Rows of 2 KB: written in batches of 32, then opened anew and every key looked up."""
    text = "".join(chr(97 + number % 26) for number in range(1850))
    rows = {
        response_key(model="m", messages=[{"role": "user", "content": str(number)}]): {
            "response": f"{number} {text}",
            "finish_reason": "stop",
            "num_prompt_tokens": 100,
            "num_response_tokens": 400,
        }
        for number in range(count)
    }
    store, database = folder / "store", folder / "rows.sqlite"
    measured = {
        "store": (clock(lambda: write_store(store, rows)), clock(lambda: look_up_store(store, rows))),
        "SQLite": (clock(lambda: write_sqlite(database, rows)), clock(lambda: look_up_sqlite(database, rows))),
    }
    size = len(json.dumps(next(iter(rows.values()))))
    print(f"{count:,} rows of {size} bytes, {BATCH} a batch")  # noqa: T201
    print("|        | rows written a second | CPU-s | all keys looked up, s | CPU-s |")  # noqa: T201
    for name, ((wrote, wrote_cpu), (read, read_cpu)) in measured.items():
        print(f"| {name:<6} | {count / wrote:>21,.0f} | {wrote_cpu:5.1f} | {read:>21.2f} | {read_cpu:5.1f} |")  # noqa: T201


OPENED = """
import os, sys, time
from pathlib import Path
from persyn.store import Store
from benchmarks.prompts import resident
from benchmarks.store import capacity_key
before = resident(os.getpid())  # ru_maxrss would be at least that of the process that started this one
wall, cpu = time.perf_counter(), time.process_time()
store = Store(Path(sys.argv[1]))
opened, opened_cpu = time.perf_counter() - wall, time.process_time() - cpu
count = int(sys.argv[2])
wall = time.perf_counter()
asked = range(0, count, max(1, count // 20_000))
assert all(store.get(capacity_key(number))["response"].startswith(f"{number} ") for number in asked)
assert store.get("absent") is None
each = (time.perf_counter() - wall) / len(asked)
most = resident(os.getpid())
grown = 1e9 * (most - before) / count
print(f"| {opened:.1f} | {opened_cpu:.1f} | {1e6 * each:.0f} | {1000 * most:,.0f} | {grown:.0f} |")
"""


def capacity(folder: Path, count: int) -> None:
    """A store of `count` rows, opened by two new processes: the first reads the journals, the second their indexes."""
    text = "x" * 3800
    for start in range(0, count, 1_000_000):  # a journal each
        store = Store(folder)
        for begin in range(start, min(start + 1_000_000, count), 5000):
            numbers = range(begin, min(begin + 5000, start + 1_000_000, count))
            store.put({capacity_key(n): {"response": f"{n} {text}", "finish_reason": "stop"} for n in numbers})
        del store
    size = sum(journal.stat().st_size for journal in folder.iterdir())
    print(f"{count:,} rows, {size / 1e9:.1f} GB")  # noqa: T201
    print("| opened in s | CPU-s | a look-up, us | most memory, MB | of it, bytes a row |", flush=True)  # noqa: T201
    for _ in range(2):
        subprocess.run([sys.executable, "-c", OPENED, str(folder), str(count)], check=True, cwd=ROOT)


def capacity_key(number: int) -> str:
    """A key as response_key makes them, quickly."""
    return hashlib.sha256(str(number).encode()).hexdigest()


def clock(work: Callable[[], None]) -> tuple[float, float]:
    """Seconds and CPU-seconds of `work`."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def batches(rows: Rows) -> list[Rows]:
    """`rows` in batches of BATCH."""
    items = list(rows.items())
    return [dict(items[start : start + BATCH]) for start in range(0, len(items), BATCH)]


def write_store(folder: Path, rows: Rows) -> None:
    """Into a new store."""
    store = Store(folder)
    for batch in batches(rows):
        store.put(batch)


def look_up_store(folder: Path, rows: Rows) -> None:
    """Open and get every row."""
    store = Store(folder)
    if not all(store.get(key) == row for key, row in rows.items()):
        sys.exit("the store lost a row")


def write_sqlite(path: Path, rows: Rows) -> None:
    """Into a new table."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode=WAL")
    database.execute("PRAGMA synchronous=FULL")
    database.execute("CREATE TABLE rows (key TEXT PRIMARY KEY, row TEXT)")
    for batch in batches(rows):
        with database:
            database.executemany(
                "INSERT INTO rows VALUES (?, ?)", [(key, json.dumps(row)) for key, row in batch.items()]
            )
    database.close()


def look_up_sqlite(path: Path, rows: Rows) -> None:
    """Open and get every row."""
    database = sqlite3.connect(path)
    for key, row in rows.items():
        [(found,)] = database.execute("SELECT row FROM rows WHERE key = ?", (key,))
        if json.loads(found) != row:
            sys.exit("SQLite lost a row")
    database.close()


def overhead(folder: Path) -> None:
    """What keys, look-ups and durable writes add to the demo's first stage of generation, teacher by teacher."""
    os.chdir(ROOT)
    params = read_params()
    prompts, _ = build_prompts(ROOT / "data" / "raw", params.prompts)
    parallel = prompts.filter("parallel")
    print("| teacher | generation, s | keys and look-ups, s | writes, s | share |")  # noqa: T201
    for name, teacher in params.teachers.items():
        speed, store = params.speed_of(name), folder / name
        generation, _ = clock(lambda: ask(parallel, name, teacher, store, speed))  # noqa: B023
        keys, _ = clock(lambda: ask(parallel, name, teacher, store, speed))  # noqa: B023
        [shelf] = shelves(store)
        rows = {key: json.loads(payload)["row"] for key, payload in verify(shelf)[1].items()}
        writes, _ = clock(lambda: write_store(folder / f"{name}-again", rows))  # noqa: B023
        share = (keys + writes) / generation
        print(f"| {name} | {generation:.1f} | {keys:.3f} | {writes:.3f} | {share:.2%} |")  # noqa: T201


def ask(prompts: Any, name: str, teacher: Teacher, store: Path, speed: BackendSpeed) -> None:
    """One teacher over all prompts."""
    generate_responses(prompts, name, teacher, store, speed)


if __name__ == "__main__":
    main()
