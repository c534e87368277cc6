"""Prompts by the million: the memory and the time of the stages that read them all, and of those that read all
responses.

    python -m benchmarks.prompts                                a million prompts of 60 words; some minutes
    python -m benchmarks.prompts --responses                    then also the stages routed and dataset
    python -m benchmarks.prompts --rows 300000 1000000 --responses   two sizes, and what a further million rows takes
    python -m benchmarks.prompts --in-memory                    the peer: the same rows as one list, as json reads them

Each stage runs in a process of its own, as `dvc repro` runs it. Peak memory is what the system reports of that process.
The responses, of 200 words, are in the store before the stage routed: nothing is generated. A million rows need about
1 GB of disk for the prompts, and 6 GB with responses.
"""

import argparse
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import polars as pl
import yaml

from persyn.files import markdown_table
from persyn.generation import Teacher
from persyn.generation.openai import OpenAISpeed
from persyn.generation.requests import open_store, prepare_requests
from persyn.responses import generate_responses
from persyn.schemas import PARALLEL, PROMPTS, RESPONSES, REWARDS, ROUTES, read_parts, read_table, write_table
from tests.support.tiny import ROOT

WORDS, SAID = 60, 200
TEACHERS = ["first", "second", "third"]
NOBODY = "http://127.0.0.1:9/v1"
"""Where no server is: nobody is asked."""
COLUMNS = ["what", "rows", "peak memory, GB", "CPU-seconds", "rows a CPU-second"]
SLOPE = ["what", "memory of a further million rows, GB", "ten million rows, derived from it, GB"]
PEER = """
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
"""
Measured = tuple[str, int, float, float]
"""What, rows, peak memory in GB, and CPU-seconds."""


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000])
    parser.add_argument("--responses", action="store_true")
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files go; default: the temporary folder")
    asked = parser.parse_args()
    measured: list[Measured] = []
    for rows in sorted(asked.rows):
        with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
            of_size = measure_stages(
                Path(scratch).resolve(), rows, responses=asked.responses, in_memory=asked.in_memory
            )
        cells = [(what, f"{n:,}", f"{peak:.2f}", f"{cpu:.0f}", f"{n / cpu:,.0f}") for what, n, peak, cpu in of_size]
        print(markdown_table(COLUMNS, cells), flush=True)  # noqa: T201
        measured += of_size
    if len(asked.rows) > 1:
        print(markdown_table(SLOPE, slopes(measured, *sorted(asked.rows)[-2:])))  # noqa: T201


def slopes(measured: list[Measured], fewer: int, more: int) -> list[tuple[str, str, str]]:
    """What, the memory of a further million rows by the two largest sizes, and that of ten million."""
    peaks = {(what, rows): peak for what, rows, peak, _ in measured}
    found = []
    for what in dict.fromkeys(what for what, *_ in measured):
        million = 1e6 * (peaks[what, more] - peaks[what, fewer]) / (more - fewer)
        found.append((what, f"{million:.2f}", f"{peaks[what, more] + million * (1e7 - more) / 1e6:.1f}"))
    return found


def measure_stages(folder: Path, rows: int, *, responses: bool, in_memory: bool) -> list[Measured]:
    """Each stage over so many prompts."""
    write_project(folder, rows)
    prompts, routes, routed = (f"data/{name}.parquet" for name in ("prompts", "routes", "routed"))
    scores, cleaning = ["rewards.parquet", "models/router", "data/responses"], "metrics/prompts.json"
    stages = {
        "stage prompts": ["-m", "stages.prompts", "data/raw", prompts, cleaning],
        "stage routes, rule random": [
            *("-m", "stages.routes", "random", prompts, *scores, routes, "metrics/routes.json")
        ],
    }
    if in_memory:
        stages["json, one list"] = ["-c", PEER, "data/raw/many.jsonl"]
    measured = [(what, rows, *measure(command, folder)) for what, command in stages.items()]
    if not responses:
        return measured
    fill_store(folder)
    stages = {
        "stage routed, responses in the store": ["-m", "stages.routed", prompts, routes, "data/responses", routed],
        "stage dataset": [
            *("-m", "stages.dataset", "random", prompts, cleaning, routes, routed),
            *("data/dataset.parquet", "metrics/dataset.json", "card.md"),
        ],
    }
    return measured + [(what, rows, *measure(command, folder)) for what, command in stages.items()]


def write_project(folder: Path, rows: int) -> None:
    """params.yaml, a source of so many different prompts, and a table of rewards."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prompts"] |= {
        "sources": [{"path": "many.jsonl", "domain": "math", "reference": "answer"}],
        "decontaminate": [],
        "num_parallel": 2500,
    }
    params["teachers"] = {
        name: {"model": f"teacher-{name}", "license": "MIT", "training": "allowed", "backend": "openai"}
        | {"sampling": {"max_tokens": 400}}
        for name in TEACHERS
    }
    params["strategies"] = {"random": {"rule": "random"}}
    params["dataset"] = {}
    params["speed"] = {"openai": {"base_url": NOBODY}}
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "data/raw").mkdir(parents=True)
    texts = drawn_texts(0)
    with (folder / "data/raw/many.jsonl").open("w") as file:
        for number in range(rows):
            file.write(json.dumps({"prompt": f"{next(texts)} {number}", "answer": str(number)}) + "\n")
    scores = pl.DataFrame([("none", "none", 0.0, 0.0, 0.0)], schema=REWARDS, orient="row")
    write_table(scores, folder / "rewards.parquet", REWARDS)


def drawn_texts(seed: int, words: int = WORDS - 1) -> Iterator[str]:
    """Texts of random words, without end."""
    draw = random.Random(seed)
    known = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    while True:
        yield " ".join(draw.choices(known, k=words))


def fill_store(folder: Path) -> None:
    """A response to each prompt from its routed teacher, and of all teachers to the parallel set."""
    prompts, store, texts = folder / "data/prompts.parquet", folder / "store", drawn_texts(1, SAID)
    teachers = {
        name: Teacher.parse(fields, f"teachers.{name}")
        for name, fields in yaml.safe_load((folder / "params.yaml").read_text())["teachers"].items()
    }
    counts = {"finish_reason": "stop", "num_prompt_tokens": 80, "num_response_tokens": 300, "reasoning": None}

    def put(asked: pl.DataFrame, teacher: Teacher) -> None:
        requests = prepare_requests(asked, teacher)
        rows = [{"response": text, **counts} for text in islice(texts, len(requests))]
        open_store(store, teacher).put({one.key: row for one, row in zip(requests, rows, strict=True)})

    parallel = read_table(prompts, PROMPTS, PARALLEL)
    for name, teacher in teachers.items():
        put(parallel, teacher)
        table = generate_responses(parallel, name, teacher, store, OpenAISpeed(base_url=NOBODY))
        write_table(table, folder / f"data/responses/{name}.parquet", RESPONSES)
    for asked, routes in read_parts(prompts, (folder / "data/routes.parquet", ROUTES)):
        for name, teacher in teachers.items():
            put(asked.join(routes.filter(teacher=name), on="prompt_id", how="semi"), teacher)


def measure(command: list[str], folder: Path) -> tuple[float, float]:
    """Peak memory in GB and CPU-seconds of a Python process."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(ROOT), "PERSYN_STORE": str(folder / "store")}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen([sys.executable, *command], cwd=folder, env=environment, stderr=errors)
        peak = 0.0
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.05)
        errors.seek(0)
        if process.returncode:
            sys.exit(f"error: {' '.join(command)} ended with exit code {process.returncode}: {errors.read()[-2000:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return peak, seconds


def resident(pid: int) -> float:
    """The most memory that a process had so far, in GB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return 1024 * int(found[0]) / 1e9 if found else 0.0


if __name__ == "__main__":
    main()
