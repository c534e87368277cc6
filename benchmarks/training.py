"""Training: LoRA beside a base in float32, the same computed in bfloat16, and beside a base in bfloat16.

    python -m benchmarks.training               SmolLM2-135M, a few rows of data/raw/code.jsonl, three seeds; minutes
    python -m benchmarks.training --steps 40    longer

Each training is a process of its own. The second is how a GPU trains beside weights in float32 (autocast); a CPU has no
autocast by default. The difference is the third's from the second. The validation loss is that of the same held-out
rows everywhere. A seed decides the adapter's first weights and the
order of rows, so the spread over seeds is the noise that the two precisions are compared with. Memory: of the weights,
and what the peak in training adds to the process before the model is loaded. CPU-seconds are of training steps alone.
A CPU without bfloat16 units takes up to 100 times as long for a product in bfloat16; there, products are made in
float32 and rounded, which is what such units do. Its seconds then say nothing about a GPU.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from persyn.files import markdown_table
from persyn.models import Student
from persyn.student import SftSettings, train_student
from persyn.training.lora import LoraSettings
from persyn.training.monitors import Live
from tests.support.tiny import ROOT

MODEL = "packaged:smollm2-135m-instruct"
BATCH = 2
HELD_OUT = 6
PRECISIONS = ("float32", "autocast", "bfloat16")
"""Weights and products in float32; weights in float32, products in bfloat16; both in bfloat16."""


def main() -> None:
    """Train with every precision and seed, and print the curves side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--one", nargs=2, metavar=("PRECISION", "SEED"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.one:
        print(json.dumps(measure(asked.one[0], int(asked.one[1]), asked.steps)))  # noqa: T201
    else:
        compare(asked.steps, asked.seeds)


def compare(steps: int, seeds: int) -> None:
    """Each training in a new process, and the tables."""
    found: dict[str, list[dict[str, Any]]] = {precision: [] for precision in PRECISIONS}
    pairs = [(precision, seed) for seed in range(seeds) for precision in PRECISIONS]
    for precision, seed in tqdm(pairs, desc="trainings", unit="training"):
        command = [sys.executable, "-m", "benchmarks.training", "--steps", str(steps), "--one", precision, str(seed)]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
        found[precision].append(json.loads(done.stdout.splitlines()[-1]))
    for name in ("loss", "eval_loss"):
        print(f"\n{name}, nats a token: mean and standard deviation over {seeds} seeds\n")  # noqa: T201
        print(markdown_table(["step", *PRECISIONS, "difference"], curves(found, name)))  # noqa: T201
    columns = ["frozen base", "weights, MB", "peak in training adds, MB", "CPU-s a step"]
    rows = [
        [precision, *(f"{statistics.mean(run[name] for run in runs):.{digits}f}" for name, digits in MEASURED)]
        for precision, runs in found.items()
    ]
    print("\n" + markdown_table(columns, rows))  # noqa: T201


MEASURED = (("weights", 0), ("peak", 0), ("cpu", 1))
"""What is measured beside the losses, and decimals."""


def curves(found: dict[str, list[dict[str, Any]]], name: str) -> list[list[str]]:
    """A row a step at which `name` was measured; differences are taken seed by seed."""
    rows = []
    for step in found["float32"][0][name]:
        values = {precision: [run[name][step] for run in runs] for precision, runs in found.items()}
        differences = [a - b for a, b in zip(values["bfloat16"], values["autocast"], strict=True)]
        rows.append([step, *map(spread, values.values()), spread(differences, sign="+")])
    return rows


def spread(values: list[float], sign: str = "") -> str:
    """Mean and standard deviation."""
    return f"{statistics.mean(values):{sign}.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"


def measure(precision: str, seed: int, steps: int) -> dict[str, Any]:
    """One training: its losses by step, memory and time."""
    count = steps * BATCH + HELD_OUT
    settings = SftSettings(
        learning_rate=2e-4,
        epochs=1,
        batch_size=BATCH,
        lora=LoraSettings(),
        dtype="bfloat16" if precision == "bfloat16" else "float32",
        validation=HELD_OUT / count,
        eval_steps=0.25,
        seed=seed,
    )
    student = Student(model=MODEL, license="Apache-2.0", max_length=512)
    meter = Meter("unused", None)
    products = nullcontext() if torch.ops.mkldnn._is_mkldnn_bf16_supported() else RoundedProducts()
    casts = torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast", cache_enabled=False)
    with casts, products, tempfile.TemporaryDirectory() as folder:
        losses = train_student(rows(count), student, Path(folder) / "student", settings, live=meter)
    measured = losses.drop_nulls()
    by_step = {
        name: dict(zip(table["step"], table[name], strict=True))
        for name, table in (("loss", losses), ("eval_loss", measured))
    }
    return by_step | meter.seen


def rows(count: int) -> pl.DataFrame:
    """DATASET of so many prompts of the demo's sources and their given solutions."""
    lines = (ROOT / "data/raw/code.jsonl").read_text().splitlines()
    found = [json.loads(line) for line in lines][:: max(1, len(lines) // count)][:count]
    return pl.DataFrame(
        {
            "prompt_id": [f"{number:04}" for number in range(len(found))],
            "prompt": [[{"role": "user", "content": row["prompt"]}] for row in found],
            "completion": [[{"role": "assistant", "content": row["solution"]}] for row in found],
        }
    )


def memory(field_name: str) -> float:
    """A field of /proc/self/status, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field_name)) * 1024 / 1e6


class RoundedProducts(TorchDispatchMode):
    """Makes products of bfloat16 matrices in float32 and rounds them."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in PRODUCTS and args[-1].dtype is torch.bfloat16:
            return func(*(matrix.float() for matrix in args), **(kwargs or {})).bfloat16()
        return func(*args, **(kwargs or {}))


PRODUCTS = (torch.ops.aten.mm.default, torch.ops.aten.addmm.default, torch.ops.aten.bmm.default)


@dataclass(frozen=True)
class Meter(Live):
    """Measures a training instead of reporting it."""

    seen: dict[str, float] = field(default_factory=dict)

    def callbacks(self) -> list[Any]:
        from transformers import TrainerCallback

        seen, started, taken = self.seen, {}, []
        imported = memory("RssAnon")

        class Watch(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **others: Any) -> None:
                seen["weights"] = sum(weight.numel() * weight.element_size() for weight in model.parameters()) / 1e6
                seen["peak"] = 0.0

            def on_step_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                started["step"] = time.process_time()
                Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew

            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                taken.append(time.process_time() - started["step"])
                seen["cpu"] = statistics.mean(taken)
                seen["peak"] = max(seen["peak"], memory("VmHWM") - memory("RssFile") - memory("RssShmem") - imported)

        return [Watch()]


if __name__ == "__main__":
    main()
