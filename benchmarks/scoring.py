"""Scoring: learnability of the demo's rows, ours beside its peers, each in a process of its own.

    python -m benchmarks.scoring            after `make demo`; some minutes
    python -m benchmarks.scoring --rate     ours as a share of this machine's matmul rate, on SmolLM2-135M
    python -m benchmarks.scoring --long     memory for responses of 256, 1,024 and 2,048 tokens, one and three a prompt
    python -m benchmarks.scoring --curve    ours for 1, 3, 8 and 19 teachers, beside the ideal (P + R) / (P / n + R)

CPU-seconds are of scoring alone, without loading. Memory is what the peak adds to the loaded model. Every method gets
the same tokens; `error` is the largest difference from the naive loop, in nats a token.
"""

import argparse
import importlib.util
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import polars as pl
import torch
from tqdm import tqdm

from persyn.chat import encode_completion, with_chat_template
from persyn.learnability import LearnabilitySettings
from persyn.learnability.scoring import score_group, score_groups
from persyn.models import load_causal_lm, load_tokenizer, locate_model
from tests.support.tiny import ROOT

STUDENT = "packaged:gemma3-270m"
BATCH_TOKENS = 512
"""As forest.prepare says for a CPU."""
Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of a response."""


def main() -> None:
    """Run every method in a process of its own and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--curve", action="store_true")
    parser.add_argument("--rate", action="store_true")
    parser.add_argument("--long", action="store_true")
    parser.add_argument("--memory", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--teachers", type=int, default=0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.method:
        measure(asked.method, asked.teachers)
    elif asked.memory:
        memory(*asked.memory)
    elif asked.curve:
        curve()
    elif asked.rate:
        rate()
    elif asked.long:
        long()
    else:
        compare()


def compare() -> None:
    """All methods on all rows of the demo. A peer that fails is named, and the others stand."""
    results = {}
    for name in tqdm(METHODS, desc="methods", unit="method"):
        try:
            results[name] = run(name)
        except subprocess.CalledProcessError as failed:
            print(f"{name} failed, see above: exit status {failed.returncode}", flush=True)  # noqa: T201
    if not {"naive", "ours"} <= results.keys():
        sys.exit("there is nothing to compare; `make demo` makes the rows")
    naive = results["naive"]
    print("| method | CPU-s | times naive | added memory, GB | error |\n|---|--:|--:|--:|--:|")  # noqa: T201
    for name, result in results.items():
        error = max(abs(a - b) for a, b in zip(result["scores"], naive["scores"], strict=True))
        times = naive["cpu"] / result["cpu"]
        print(f"| {name} | {result['cpu']:.1f} | {times:.2f} | {result['memory']:.2f} | {error:.1e} |")  # noqa: T201


def curve() -> None:
    """CPU-seconds a row, as teachers share a prompt: the demo's responses, repeated up to 19 teachers."""
    rows = read_rows()
    prompt = sum(len(p) for p, _ in rows) / len(rows)
    response = sum(len(r) for _, r in rows) / len(rows)
    alone = None
    print(f"P = {prompt:.0f}, R = {response:.0f} tokens\n| teachers | CPU-ms a row | gain | ideal |\n|--:|--:|--:|--:|")  # noqa: T201
    for teachers in (1, 3, 8, 19):
        result = run("ours", teachers)
        cost = result["cpu"] / len(result["scores"])
        alone = alone or cost
        ideal = (prompt + response) / (prompt / teachers + response)
        print(f"| {teachers} | {1000 * cost:.0f} | {alone / cost:.2f} | {ideal:.2f} |")  # noqa: T201


def rate() -> None:
    """Useful FLOP a CPU-second of scoring, as a share of what a large matrix product reaches here."""
    matrix = torch.randn(2048, 2048)
    matrix @ matrix
    cpu = time.process_time()
    for _ in range(20):
        matrix @ matrix
    best = 20 * 2 * 2048**3 / (time.process_time() - cpu)
    model = load_causal_lm("packaged:smollm2-135m-instruct")
    head = model.get_output_embeddings().weight
    trunk = sum(p.numel() for p in model.base_model.parameters() if p.dim() > 1 and p.shape != head.shape)
    rows = read_rows()
    groups: dict[tuple[int, ...], list[list[int]]] = {}
    for prompt, response in rows:
        ids = [token % len(head) for token in prompt], [token % len(head) for token in response]
        groups.setdefault(tuple(ids[0]), []).append(ids[1])
    responses = sum(len(response) for _, response in rows)
    work = 2 * trunk * (sum(map(len, groups)) + responses) + 2 * head.numel() * responses
    cpu = time.process_time()
    trees = [(list(shared), group) for shared, group in groups.items()]
    for _ in score_groups(model, trees, LearnabilitySettings(), BATCH_TOKENS):
        pass
    reached = work / (time.process_time() - cpu)
    print(f"matmul {best / 1e9:.0f} GFLOP/CPU-s, scoring {reached / 1e9:.0f}: {reached / best:.0%}")  # noqa: T201


def long() -> None:
    """What the peak adds to the loaded model, each size in a process of its own."""
    print("| response tokens | responses a prompt | added memory, GB |\n|--:|--:|--:|")  # noqa: T201
    for tokens in (256, 1024, 2048):
        for responses in (1, 3):
            command = [sys.executable, "-m", "benchmarks.scoring", "--memory", str(tokens), str(responses)]
            done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
            print(f"| {tokens} | {responses} | {float(done.stdout.splitlines()[-1]):.2f} |")  # noqa: T201


def memory(tokens: int, responses: int) -> None:
    """Print what scoring responses of so many tokens adds to the peak."""
    model, row = load_causal_lm(STUDENT), read_rows()[0]
    score_group(model, row[0], [row[1]], LearnabilitySettings(), BATCH_TOKENS)
    before = peak()
    score_group(model, row[0], [list(range(9, 9 + tokens))] * responses, LearnabilitySettings(), BATCH_TOKENS)
    print(peak() - before)  # noqa: T201


def run(method: str, teachers: int = 0) -> dict[str, Any]:
    """One method in a new process."""
    command = [sys.executable, "-m", "benchmarks.scoring", "--method", method, "--teachers", str(teachers)]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(method: str, teachers: int) -> None:
    """Score all rows and print CPU-seconds, added memory and the scores."""
    rows = read_rows()
    if teachers:  # as many rows a prompt as there are teachers, of the lengths there are
        prompts = list({tuple(prompt): prompt for prompt, _ in rows}.values())[:8]
        pool = [response for _, response in rows]
        rows = [(p, pool[(7 * n + k) % len(pool)]) for n, p in enumerate(prompts) for k in range(teachers)]
    score = METHODS[method]()
    score(rows[:2])
    before, cpu = peak(), time.process_time()
    scores = score(rows)
    print(json.dumps({"cpu": time.process_time() - cpu, "memory": peak() - before, "scores": scores}))  # noqa: T201


def peak() -> float:
    """The process's peak memory so far, GB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def read_rows() -> list[Row]:
    """The demo's parallel rows as the student's tokens, in the order of their prompts."""
    files = sorted((ROOT / "data" / "responses").glob("*.parquet"))
    if not files:
        sys.exit("run `make demo` first: this scores its responses")
    table = pl.concat(pl.read_parquet(file) for file in files)
    table = table.join(pl.read_parquet(ROOT / "data" / "prompts.parquet"), on="prompt_id").sort("prompt_id", "teacher")
    tokenizer = with_chat_template(load_tokenizer(STUDENT))
    return [
        encode_completion(tokenizer, row["prompt"], row["response"], row["finish_reason"] == "stop")
        for row in table.iter_rows(named=True)
        if row["response"]
    ]


def ours() -> Callable[[list[Row]], list[float]]:
    """persyn.learnability: trees of prompts in full forward passes, the head on response positions only."""
    model = load_causal_lm(STUDENT)

    def score(rows: list[Row]) -> list[float]:
        by_prompt: dict[tuple[int, ...], list[int]] = {}
        for position, (prompt, _) in enumerate(rows):
            by_prompt.setdefault(tuple(prompt), []).append(position)
        places = list(by_prompt.values())
        groups = [(rows[group[0]][0], [rows[place][1] for place in group]) for group in places]
        scores = [0.0] * len(rows)
        for part in score_groups(model, groups, LearnabilitySettings(), BATCH_TOKENS):
            for group, index, value in part:
                scores[places[group][index]] = value
        return scores

    return score


def naive() -> Callable[[list[Row]], list[float]]:
    """One row at a time, log_softmax over everything."""
    model = load_causal_lm(STUDENT)

    @torch.inference_mode()
    def score(rows: list[Row]) -> list[float]:
        scores = []
        for prompt, response in rows:
            logprobs = torch.log_softmax(model(torch.tensor([prompt + response])).logits[0].float(), dim=-1)
            picked = logprobs[len(prompt) - 1 : -1].gather(1, torch.tensor(response)[:, None])
            scores.append(picked.double().mean().item())
        return scores

    return score


def padded(batch_size: int = 16) -> Callable[[list[Row]], list[float]]:
    """Batches sorted by length, padded on the right, log_softmax over everything."""
    model = load_causal_lm(STUDENT)

    @torch.inference_mode()
    def score(rows: list[Row]) -> list[float]:
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda position: -sum(map(len, rows[position])))
        for start in range(0, len(order), batch_size):
            batch = [rows[position] for position in order[start : start + batch_size]]
            ids, mask = pad(batch)
            logprobs = torch.log_softmax(model(ids, attention_mask=mask).logits.float(), dim=-1)
            for index, (prompt, response) in enumerate(batch):
                steps = slice(len(prompt) - 1, len(prompt) + len(response) - 1)
                picked = logprobs[index, steps].gather(1, torch.tensor(response)[:, None])
                scores[order[start + index]] = picked.double().mean().item()
        return scores

    return score


def trl(batch_size: int = 1) -> Callable[[list[Row]], list[float]]:
    """TRL's log-probability path: full logits, then its selective_log_softmax."""
    from trl.trainer.utils import selective_log_softmax

    model = load_causal_lm(STUDENT)

    @torch.inference_mode()
    def score(rows: list[Row]) -> list[float]:
        scores = []
        for start in range(0, len(rows), batch_size):
            batch = rows[start : start + batch_size]
            ids, mask = pad(batch)
            logprobs = selective_log_softmax(model(ids, attention_mask=mask).logits[:, :-1], ids[:, 1:])
            for index, (prompt, response) in enumerate(batch):
                steps = logprobs[index, len(prompt) - 1 : len(prompt) + len(response) - 1]
                scores.append(steps.double().mean().item())
        return scores

    return score


def lm_eval(batch_size: int = 1) -> Callable[[list[Row]], list[float]]:
    """lm-eval's HFLM, its own loglikelihood on our tokens."""
    from lm_eval.models.huggingface import HFLM

    folder = locate_model(STUDENT, None)["pretrained_model_name_or_path"]
    model: Any = HFLM(pretrained=folder, device="cpu", dtype="float32", batch_size=batch_size)

    def score(rows: list[Row]) -> list[float]:
        requests = [(("", str(index)), prompt, response) for index, (prompt, response) in enumerate(rows)]
        found = model._loglikelihood_tokens(requests, disable_tqdm=True)
        return [total / len(response) for (total, _), (_, response) in zip(found, rows, strict=True)]

    return score


def vllm() -> Callable[[list[Row]], list[float]]:
    """vLLM's prompt_logprobs, offline; only where vLLM is installed."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_NO_USAGE_STATS": "1"}
    from vllm import LLM, SamplingParams

    folder = locate_model(STUDENT, None)["pretrained_model_name_or_path"]
    knobs: dict[str, Any] = {"enforce_eager": True, "max_model_len": 1024, "enable_prefix_caching": False}
    engine = LLM(model=folder, dtype="float32", gpu_memory_utilization=0.5, **knobs)  # on a CPU a share of its memory

    def score(rows: list[Row]) -> list[float]:
        asked: Any = [{"prompt_token_ids": prompt + response} for prompt, response in rows]
        found = engine.generate(asked, SamplingParams(max_tokens=1, prompt_logprobs=0), use_tqdm=False)
        scores = []
        for (prompt, response), output in zip(rows, found, strict=True):
            steps = output.prompt_logprobs[len(prompt) :]
            chosen = [step[token].logprob for step, token in zip(steps, response, strict=True)]
            scores.append(sum(chosen) / len(chosen))
        return scores

    return score


def pad(batch: list[Row]) -> Iterator[torch.Tensor]:
    """Token ids and mask (B, T), padded on the right."""
    longest = max(len(prompt) + len(response) for prompt, response in batch)
    rows = [prompt + response for prompt, response in batch]
    yield torch.tensor([row + [0] * (longest - len(row)) for row in rows])
    yield torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


METHODS: dict[str, Callable[[], Callable[[list[Row]], list[float]]]] = {
    "naive": naive,
    "padded": padded,
    "lm-eval": lm_eval,
    "TRL": trl,
    **({"vLLM": vllm} if importlib.util.find_spec("vllm") else {}),
    "ours": ours,
}

if __name__ == "__main__":
    main()
