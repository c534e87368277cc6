"""Report: how large its page is, how long it takes to make, and how soon it can be browsed in Chromium.

    python -m benchmarks.report             about two minutes; needs chromium and chromedriver

The project is made up: 5,000 prompts, each answered by every teacher, in words drawn at random from 2,000 (Zipf's law).
Opening is from the start of navigation to the moment the sample can be filtered, of a file.
"""

import argparse
import re
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from benchmarks.chromium import missing, open_chromium, open_page
from persyn.project.snapshot import Snapshot
from persyn.prompts import prompt_id
from persyn.report import build_report
from persyn.routes import allocation
from persyn.schemas import (
    DATASET,
    DEFECTS,
    DOMAINS,
    FINISH_REASONS,
    LEARNABILITY,
    PROMPTS,
    QUALITY,
    RESPONSES,
    REWARDS,
    ROUTES,
)

RUNS = 5


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=5000)
    parser.add_argument("--characters", type=int, nargs="+", default=[300, 2000])
    parser.add_argument("--teachers", type=int, nargs="+", default=[3, 19])
    asked = parser.parse_args()
    if reason := missing():
        parser.error(reason)
    print("| teachers | characters of a response | cut at | page, MB | made in, s | opens in, s: min, median, max |")  # noqa: T201
    for teachers in asked.teachers:
        for characters in asked.characters:
            print(row(asked.prompts, teachers, characters))  # noqa: T201


def row(prompts: int, teachers: int, characters: int) -> str:
    """One line of the table."""
    tables = made_up(prompts, teachers, characters)
    start = time.perf_counter()
    text = report_of(tables)
    made = time.perf_counter() - start
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "report.html"
        page.write_text(text)
        seconds = opening(page)
        size = page.stat().st_size / 1e6
    cut = re.search(r"responses at\s+([\d,]+)", text)
    times = ", ".join(f"{value:.2f}" for value in (min(seconds), statistics.median(seconds), max(seconds)))
    return f"| {teachers} | {characters:,} | {cut[1] if cut else 'whole'} | {size:.2f} | {made:.1f} | {times} |"


def report_of(tables: dict[str, Any]) -> str:
    """The report of a project of these tables."""
    teachers: dict[str, Any] = {name: {"model": name} for name in tables["responses"]}
    strategies = {name: {"rule": name} for name in tables["routes"]}
    metrics = {"allocation": {name: allocation(routes, list(teachers)) for name, routes in tables["routes"].items()}}
    return build_report(Snapshot({"teachers": teachers, "strategies": strategies}, metrics=metrics, **tables))


def opening(page: Path) -> list[float]:
    """Seconds from the start of navigation until the sample can be browsed, run by run."""
    seconds = []
    with open_chromium() as driver:
        for _ in range(RUNS):
            open_page(driver, page)
            mark = driver.execute_script("return performance.getEntriesByName('browse-ready')[0].startTime")
            seconds.append(mark / 1000)
    return seconds


def made_up(count: int, teachers: int, characters: int, parallel: float = 1.0) -> dict[str, Any]:
    """The tables of a project of so many prompts and teachers, as a Snapshot takes them.

    Args:
        characters: of every response; a prompt has a fifth.
        parallel: share of the prompts that every teacher answers; two strategies route the others.
    """
    random = np.random.default_rng(0)
    stream = _words(random, 4_000_000)

    def texts(number: int, length: int) -> list[str]:
        return [stream[start : start + length] for start in random.integers(0, len(stream) - length, number)]

    written = texts(count, max(characters // 5, 30))
    prompts = pl.DataFrame(
        {
            "prompt_id": [prompt_id(f"{number} {text}") for number, text in enumerate(written)],
            "prompt": written,
            "domain": pl.Series(random.choice(["instruction", "math", "code"], count).tolist(), dtype=DOMAINS),
            "reference": [None] * count,
            "source": random.choice(["one.jsonl", "two.jsonl"], count).tolist(),
            "license": ["MIT"] * count,
            "parallel": random.random(count) < parallel,
        },
        schema=PROMPTS,
    )
    names = [f"teacher-{number + 1}" for number in range(teachers)]

    def answers(ids: pl.Series, named: list[str]) -> pl.DataFrame:
        columns = {
            "prompt_id": ids,
            "teacher": named,
            "response": texts(len(ids), characters),
            "finish_reason": pl.Series(["stop"] * len(ids), dtype=FINISH_REASONS),
            "num_prompt_tokens": [50] * len(ids),
            "num_response_tokens": random.integers(1, 500, len(ids)),
        }
        return pl.DataFrame(columns, schema=RESPONSES)

    ids = prompts.filter("parallel")["prompt_id"]
    responses = {name: answers(ids, [name] * len(ids)) for name in names}
    scores = pl.concat([table.select("prompt_id", "teacher") for table in responses.values()]).with_columns(
        quality=random.random(len(ids) * teachers),
        learnability=-3 * random.random(len(ids) * teachers),
        reward=random.random(len(ids) * teachers),
        num_tokens=pl.lit(100, dtype=pl.Int64),
        truncated=pl.lit(False),
        **{kind: pl.Series(random.random(len(ids) * teachers) < 0.02) for kind in DEFECTS.names()[2:]},
    )
    routes, routed, dataset = {}, {}, {}
    for strategy in ("persyn", "random"):
        chosen = random.choice(names, count).tolist()
        margin = random.exponential(1.0, count) if strategy == "persyn" else [None] * count
        columns = {"prompt_id": prompts["prompt_id"], "teacher": chosen, "strength": margin, "margin": margin}
        routes[strategy] = pl.DataFrame(columns, schema=ROUTES)
        routed[strategy] = answers(prompts["prompt_id"], chosen)
        kept = routes[strategy].sample(fraction=0.95, seed=0).select("prompt_id", "teacher")
        terms = [pl.lit("MIT").alias(name) for name in DATASET.names()[4:]]
        messages = [pl.lit([], dtype=DATASET[name]).alias(name) for name in ("prompt", "completion")]
        dataset[strategy] = kept.with_columns(*messages, *terms)
    by_teacher = {name: scores.filter(teacher=name) for name in names}
    return {
        "prompts": prompts,
        "responses": responses,
        "quality": {name: table.select(QUALITY.names()) for name, table in by_teacher.items()},
        "learnability": {name: table.select(LEARNABILITY.names()) for name, table in by_teacher.items()},
        "rewards": scores.select(REWARDS.names()),
        "defects": scores.select(DEFECTS.names()),
        "routes": routes,
        "routed": routed,
        "dataset": dataset,
    }


def _words(random: np.random.Generator, count: int) -> str:
    """So many words of 2,000, the commonest first by Zipf's law."""
    letters = random.integers(97, 123, (2000, 9)).astype(np.uint8)
    known = [bytes(row[: 3 + position % 7]).decode() for position, row in enumerate(letters)]
    weights = 1 / np.arange(1, 2001)
    return " ".join(known[position] for position in random.choice(2000, count, p=weights / weights.sum()))


if __name__ == "__main__":
    main()
