"""Prompts by the million: the memory and the time of the stages that read them all.

    python -m benchmarks.prompts                      a million prompts of 60 words; some minutes
    python -m benchmarks.prompts --rows 10000000      needs about 10 GB of disk
    python -m benchmarks.prompts --in-memory          the peer: the same rows as one list, as json reads them

Each stage runs in a process of its own, as `dvc repro` runs it. Peak memory is what the system reports of that process.
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
from pathlib import Path

import polars as pl
import yaml

from persyn.files import markdown_table
from persyn.schemas import REWARDS, write_table
from tests.support.tiny import ROOT

WORDS = 60
COLUMNS = ["what", "rows", "peak memory, GB", "CPU-seconds", "rows a CPU-second"]
PEER = """
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
"""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--in-memory", action="store_true")
    parser.add_argument("--folder", type=Path, help="where the files go; default: the temporary folder")
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=asked.folder) as scratch:
        folder = Path(scratch)
        write_project(folder, asked.rows)
        prompts, routes = "data/prompts.parquet", ["rewards.parquet", "models/router", "data/responses"]
        stages = {
            "stage prompts": ["-m", "stages.prompts", "data/raw", prompts, "metrics/prompts.json"],
            "stage routes, rule random": [
                *("-m", "stages.routes", "random", prompts, *routes, "data/routes.parquet", "metrics/routes.json")
            ],
        }
        if asked.in_memory:
            stages["json, one list"] = ["-c", PEER, "data/raw/many.jsonl"]
        measured = [(what, asked.rows, *measure(command, folder, asked.rows)) for what, command in stages.items()]
        print(markdown_table(COLUMNS, measured))  # noqa: T201


def write_project(folder: Path, rows: int) -> None:
    """params.yaml, a source of so many different prompts, and a table of rewards."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text())
    params["prompts"] |= {
        "sources": [{"path": "many.jsonl", "domain": "math", "reference": "answer"}],
        "decontaminate": [],
        "num_parallel": 2500,
    }
    (folder / "params.yaml").write_text(yaml.safe_dump(params))
    (folder / "data/raw").mkdir(parents=True)
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=draw.randint(2, 9))) for _ in range(20_000)]
    with (folder / "data/raw/many.jsonl").open("w") as file:
        for number in range(rows):
            text = " ".join([*draw.choices(words, k=WORDS - 1), str(number)])
            file.write(json.dumps({"prompt": text, "answer": str(number)}) + "\n")
    scores = pl.DataFrame([("none", "none", 0.0, 0.0, 0.0)], schema=REWARDS, orient="row")
    write_table(scores, folder / "rewards.parquet", REWARDS)


def measure(command: list[str], folder: Path, rows: int) -> tuple[str, str, str]:
    """Peak memory in GB, CPU-seconds, and rows a CPU-second, of a Python process."""
    before, environment = resource.getrusage(resource.RUSAGE_CHILDREN), os.environ | {"PYTHONPATH": str(ROOT)}
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
    return f"{peak:.2f}", f"{seconds:.0f}", f"{rows / seconds:,.0f}"


def resident(pid: int) -> float:
    """The most memory that a process had so far, in GB; 0 where it has ended."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM")]
    return int(found[0]) / 1e6 if found else 0.0


if __name__ == "__main__":
    main()
