"""Side by side: `persyn generate` with one served teacher, and with eight.

    python -m benchmarks.side_by_side                 about a minute on two cores
    python -m benchmarks.side_by_side --prompts 24 --rounds 1

Each teacher is a stub server of its own, in one process beside the command; each response takes it one second. A run is
timed from the start of the command's process to its end, start-up included, with an empty store; then again, with
nothing left to ask, which shows the start-up. Runs of one teacher and of all take turns; the figure is the ratio of
their medians, which must be at most 1.3.
"""

import argparse
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path

from ruamel.yaml import YAML

from persyn.schemas import PROMPTS, write_table
from persyn.store import shelves, verify
from tests.support.stub import stub_teacher
from tests.support.tables import prompts_table
from tests.support.tiny import tiny_params

DELAY = 1.0
MOST = 1.3
Run = tuple[float, float, float]
"""Seconds, CPU-seconds, seconds with nothing left to ask."""


def main() -> None:
    """Time the runs; the exit status is 1 if the ratio is above 1.3 or a response is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teachers", type=int, default=8)
    parser.add_argument("--prompts", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    ours, theirs = multiprocessing.Pipe()
    servers = multiprocessing.get_context("spawn").Process(target=serve, args=(theirs, asked.teachers), daemon=True)
    servers.start()
    urls = ours.recv()
    seconds: dict[int, list[Run]] = {1: [], asked.teachers: []}
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(asked.rounds):
            for count, taken in seconds.items():
                folder = Path(scratch, f"{turn}-{count}")
                prepare(folder, urls[:count], asked.prompts)
                wall, busy = timed(folder, count * asked.prompts)
                taken.append((wall, busy, timed(folder, count * asked.prompts)[0]))
    servers.terminate()
    print(f"\n{asked.prompts} prompts a teacher, {DELAY:g} s a response, {asked.rounds} rounds in turns\n")  # noqa: T201
    print("| teachers | responses | s | CPU-s | s with nothing left to ask |\n|--:|--:|--:|--:|--:|")  # noqa: T201
    walls = {}
    for count, runs in seconds.items():
        walls[count], busy, idle = (statistics.median(column) for column in zip(*runs, strict=True))
        each = ", ".join(f"{run[0]:.1f}" for run in runs)
        print(f"| {count} | {count * asked.prompts} | {walls[count]:.1f} ({each}) | {busy:.1f} | {idle:.1f} |")  # noqa: T201
    ratio = walls[asked.teachers] / walls[1]
    print(f"\nratio {ratio:.2f}; at most {MOST} is wanted")  # noqa: T201
    sys.exit(ratio > MOST)


def serve(connection: Connection, count: int) -> None:
    """Run the stub servers and send their addresses."""
    with ExitStack() as stack:
        connection.send([stack.enter_context(stub_teacher(delay=DELAY)).url for _ in range(count)])
        while True:
            time.sleep(60)


def prepare(folder: Path, urls: list[str], num_prompts: int) -> None:
    """A project with one served teacher an address, all of whose prompts are parallel."""
    params = tiny_params("none")
    entry = {"license": "x", "training": "allowed", "backend": "openai", "sampling": {"max_tokens": 40}}
    params["teachers"] = {f"teacher-{n}": {"model": f"model-{n}", **entry} for n in range(len(urls))}
    params["strategies"] = {"random": {"rule": "random"}}
    params["speed"]["teachers"] = {f"teacher-{n}": {"base_url": url} for n, url in enumerate(urls)}
    folder.mkdir()
    YAML().dump(params, folder / "params.yaml")
    prompts = prompts_table([f"Tell story number {number}." for number in range(num_prompts)])
    write_table(prompts, folder / "data/prompts.parquet", PROMPTS)


def timed(folder: Path, expected: int) -> tuple[float, float]:
    """Seconds and CPU-seconds that the command takes; ends the benchmark if it fails or lacks a response."""
    path = os.pathsep.join(filter(None, [str(Path.cwd()), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PERSYN_STORE": str(folder / "store"), "PYTHONPATH": path}
    command = [sys.executable, "-m", "persyn.cli", "generate"]
    started, before = time.monotonic(), cpu_seconds()
    run = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    taken = time.monotonic() - started, cpu_seconds() - before
    stored = sum(verify(shelf)[0].rows for shelf in shelves(folder / "store"))
    if run.returncode or stored != expected:
        sys.exit(f"status {run.returncode}, {stored} of {expected} responses\n{run.stderr}")
    return taken


def cpu_seconds() -> float:
    """Of the children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
