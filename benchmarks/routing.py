"""How long routing 50,000 prompts takes: by word embeddings on all of them, by whole models on a sample.

python -m benchmarks.routing
"""

import itertools
import json
import time
from pathlib import Path
from typing import Any

import polars as pl

from persyn.pairs import PairSettings, build_pairs
from persyn.prompts import prompt_id
from persyn.router import Router, read_lesson, train_router
from persyn.router.settings import RouterSettings
from persyn.schemas import REWARDS

RAW = Path(__file__).parent.parent / "data" / "raw"
TEACHERS = [f"teacher-{number}" for number in range(19)]
NUM_PROMPTS, SAMPLE = 50_000, 1_000


def prompts(number: int) -> list[str]:
    """The project's own prompts, each with a number of its own, so that no two are equal."""
    texts = [json.loads(line)["prompt"] for name in ("instruction", "math") for line in (RAW / f"{name}.jsonl").open()]
    return [f"{text} ({n})" for n, text in zip(range(number), itertools.cycle(texts), strict=False)]


def seconds(router: Router, texts: list[str]) -> tuple[float, float]:
    """Wall seconds and CPU seconds of routing."""
    wall, cpu = time.perf_counter(), time.process_time()
    router.strengths(texts, ["instruction"] * len(texts))
    return time.perf_counter() - wall, time.process_time() - cpu


def main() -> None:
    """Print one row a router."""
    texts = prompts(64)
    sources = ["instruction", "math"] * (len(texts) // 2)
    table = pl.DataFrame({"prompt_id": [prompt_id(text) for text in texts], "prompt": texts, "source": sources})
    rows = [
        (row["prompt_id"], name, 0.0, 0.0, float((number + len(row["prompt"])) % len(TEACHERS)))
        for row in table.iter_rows(named=True)
        for number, name in enumerate(TEACHERS)
    ]
    rewards = pl.DataFrame(rows, schema=REWARDS, orient="row")
    small: dict[str, Any] = {
        "model": "packaged:all-minilm-l6-v2",
        "epochs": 1,
        "learning_rate": 1e-4,
        "max_length": 256,
    }
    lesson = read_lesson(table, rewards, build_pairs(rewards, PairSettings()), TEACHERS)
    many = prompts(NUM_PROMPTS)
    found = []
    for name, changes, asked in (
        ("blend, word embeddings (layers: [0])", {"method": "blend", "layers": [0]}, many),
        ("linear, word embeddings (layers: [0])", {"method": "linear", "layers": [0]}, many),
        ("blend", {"method": "blend"}, many[:SAMPLE]),
        ("finetuned", {"method": "finetuned"}, many[:SAMPLE]),
    ):
        router = train_router(lesson, RouterSettings(**small, **changes))
        wall, cpu = seconds(router, asked)
        found.append((name, len(asked), wall, cpu, wall * NUM_PROMPTS / len(asked)))
    characters = sum(map(len, many)) / len(many)
    print(f"{len(TEACHERS)} teachers, prompts of {characters:.0f} characters on average")  # noqa: T201
    with pl.Config(tbl_width_chars=200, fmt_str_lengths=60, float_precision=1):
        print(pl.DataFrame(found, schema=["router", "prompts", "wall s", "CPU s", "s for 50,000"], orient="row"))  # noqa: T201


if __name__ == "__main__":
    main()
