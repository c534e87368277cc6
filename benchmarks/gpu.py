"""One GPU: every part of the pipeline that uses one, at true sizes, beside its peers in the same run.

    make gpu                                            some minutes on one H100
    python -m benchmarks.gpu --parts scoring,reward     only these
    python -m benchmarks.gpu --toy                      tiny models: whether everything runs; without a GPU always so

Models have random weights of a real model's shape, since speed and memory do not depend on what the weights are. Each
part is a process of its own, so that one that fails or runs out of memory leaves the others alone. A row's tokens are
those of its prompt and its response, however often a method reads them. MFU is useful floating-point operations, 2 a
weight and token forward and 6 in training (4 where the base is frozen), as a share of the card's measured matmul rate.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
LIMIT = 240 if torch.cuda.is_available() else 900
"""Seconds of one part at most: on a GPU all parts are to end in some minutes, on a CPU they are to end."""
QWEN = {"vocab_size": 151_936, "max_position_embeddings": 32_768, "num_key_value_heads": 2, "tie_word_embeddings": True}
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen2.5-0.5B": (
        "qwen2",
        QWEN | {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14},
    ),
    "Qwen2.5-1.5B": (
        "qwen2",
        QWEN | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12},
    ),
    "Qwen2.5-7B": (
        "qwen2",
        QWEN
        | {"hidden_size": 3584, "intermediate_size": 18_944, "num_hidden_layers": 28, "num_attention_heads": 28}
        | {"num_key_value_heads": 4, "vocab_size": 152_064, "tie_word_embeddings": False},
    ),
    "Qwen3-4B": (
        "qwen3",
        QWEN
        | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32}
        | {"num_key_value_heads": 8, "head_dim": 128},
    ),
    "Gemma-3-1B": (
        "gemma3_text",
        {"hidden_size": 1152, "intermediate_size": 6912, "num_hidden_layers": 26, "num_attention_heads": 4}
        | {"num_key_value_heads": 1, "head_dim": 256, "vocab_size": 262_144, "sliding_window": 512},
    ),
}
TOY = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
TOY |= {"num_key_value_heads": 2, "vocab_size": 512, "head_dim": 8}
PARTS = (
    *("scoring-0.5B", "scoring-1.5B", "scoring-7B", "vocabulary", "reward", "generation"),
    *("student-0.5B", "student-1.5B", "router", "routing", "graph"),
)
"""The parts; what follows a hyphen is the size of the model."""
Row = tuple[list[int], list[int]]
"""Token ids of a prompt and of a response."""
Table = list[dict[str, Any]]


def main() -> None:
    """Run the parts, each in a process of its own, and print their tables as they end."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS), help="of " + ", ".join(PARTS))
    parser.add_argument("--toy", action="store_true", default=not torch.cuda.is_available())
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--rate", type=float, default=0.0, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    bench = Bench(asked.toy, asked.rate)
    if asked.part:
        part, *size = asked.part.split("-")
        print(json.dumps(getattr(bench, part)(*size)))  # noqa: T201
        return
    rate = bench.matmul_rate()
    why = "" if torch.cuda.is_available() else "no GPU, so "
    sizes = f"; {why}toy sizes: a model's name is only its family's" if asked.toy else ""
    print(f"{bench.device_name()}, torch {torch.__version__}: matmul {rate / 1e12:.3g} TFLOP/s{sizes}\n", flush=True)  # noqa: T201
    failed = []
    for part in asked.parts.split(","):
        command = [sys.executable, "-m", "benchmarks.gpu", "--part", part, "--rate", str(rate)]
        start = time.perf_counter()
        error, table = run(command + ["--toy"] * asked.toy)
        print(f"## {part} ({time.perf_counter() - start:.0f} s)\n\n{error or markdown(table)}\n", flush=True)  # noqa: T201
        failed += [part] * bool(error)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


def run(command: list[str]) -> tuple[str, Table]:
    """Why a part failed, or its table."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
    except subprocess.TimeoutExpired as late:
        return f"failed: it took over {LIMIT} s: {last_lines((late.stderr or b'').decode())}", []
    if done.returncode:
        return f"failed ({done.returncode}): {last_lines(done.stderr)}", []
    return "", json.loads(done.stdout.splitlines()[-1])


def last_lines(text: str) -> str:
    """The end of what a process said."""
    return " / ".join(text.strip().splitlines()[-12:])


def markdown(table: Table) -> str:
    """The rows as a table; a number has three digits that count."""
    names = list({name: None for row in table for name in row})
    cells = [[show(row.get(name)) for name in names] for row in table]
    return "\n".join("| " + " | ".join(row) + " |" for row in [names, ["--"] * len(names), *cells])


def show(value: Any) -> str:
    """A cell."""
    if value is None:
        return ""
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}" if abs(value) < 0.1 else f"{value:.3g}"


class Bench:
    """The parts. Each returns its table.

    Args:
        toy: tiny models and few rows.
        rate: measured floating-point operations a second of a large matrix product.
    """

    def __init__(self, toy: bool, rate: float) -> None:
        self.toy, self.rate = toy, rate
        self.on_gpu = torch.cuda.is_available()
        self.device = "cuda" if self.on_gpu else "cpu"
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32

    def device_name(self) -> str:
        """The card, or the CPU."""
        return torch.cuda.get_device_name() if self.on_gpu else "CPU"

    def matmul_rate(self) -> float:
        """Floating-point operations a second of a large matrix product, the best of three."""
        size = 8192 if self.on_gpu else 1024
        left, right = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        left @ right
        return max(20 * 2 * size**3 / self.seconds(lambda: [left @ right for _ in range(20)]) for _ in range(3))

    def seconds(self, work: Callable[[], Any]) -> float:
        """Wall seconds of `work`, the device's included."""
        self.wait()
        start = time.perf_counter()
        work()
        self.wait()
        return time.perf_counter() - start

    def wait(self) -> None:
        """Until the device has done what it was given."""
        if self.on_gpu:
            torch.cuda.synchronize()

    def measured(self, work: Callable[[], Any]) -> tuple[Any, float, float | None]:
        """What `work` returns, its seconds, and the GB that its peak adds to what is allocated."""
        found: list[Any] = []
        before = torch.cuda.memory_allocated() if self.on_gpu else 0
        if self.on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        spent = self.seconds(lambda: found.append(work()))
        return found[0], spent, (torch.cuda.max_memory_allocated() - before) / 1e9 if self.on_gpu else None

    def model(self, name: str, kind: str = "AutoModelForCausalLM", dtype: Any = None, **changes: Any) -> Any:
        """A model of this shape with random weights, on the device."""
        import transformers

        family, sizes = SHAPES[name]
        config = transformers.AutoConfig.for_model(family, **(TOY if self.toy else sizes) | changes)
        torch.manual_seed(0)
        with torch.device(self.device):
            return getattr(transformers, kind).from_config(config, dtype=dtype or self.dtype).eval()

    def saved(self, folder: Path, name: str, kind: str = "AutoModelForCausalLM", **changes: Any) -> str:
        """A folder with such a model and a small tokenizer."""
        from tests.support.tiny import build_tokenizer

        tokenizer = build_tokenizer(None)
        ends = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
        self.model(name, kind, **ends | changes).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return str(folder)

    def rows(self, prompts: int, teachers: int, vocabulary: int) -> list[Row]:
        """Rows of random tokens: prompts of 60 to 180, responses of 150 to 750."""
        draw, small = random.Random(0), 20 if self.toy else 1

        def ids(low: int, high: int) -> list[int]:
            size = draw.randint(low, high) // small
            return [draw.randrange(5, vocabulary) for _ in range(size)]

        asked = [ids(60, 180) for _ in range(prompts)]
        return [(prompt, ids(150, 750)) for prompt in asked for _ in range(teachers)]

    def scoring(self, size: str) -> Table:
        """Learnability: ours beside the naive loop, padded batches and TRL's log-probabilities."""
        name, prompts = f"Qwen2.5-{size}", {"0.5B": 24, "1.5B": 16, "7B": 4}[size]
        model = self.model(name, dtype=torch.float32)
        rows = self.rows(2 if self.toy else prompts, 3 if self.toy else 19, model.config.vocab_size)
        exact = naive(model, rows[:4])
        model, table = model.to(self.dtype), []
        for method, score, given in (
            ("naive loop", naive, rows[:38]),
            ("padded batches of 16", padded, rows[:38]),
            ("TRL, batches of 16", trl, rows[:38]),
            ("ours", ours, rows),
            ("ours, as for large jobs", partial(ours, large=True), rows),
        ):
            table.append({"model": name, "method": method} | self.scored(model, score, given, exact))
            table[-1]["times naive"] = table[-1]["tokens/s"] / table[0]["tokens/s"]
            note(table[-1])
        return table

    def scored(
        self, model: Any, score: Callable[[Any, list[Row]], list[float]], rows: list[Row], exact: list[float]
    ) -> dict[str, Any]:
        """Speed, memory and error of one way to score rows; a first run of it warms up."""
        first = self.seconds(lambda: score(model, rows))
        found, spent, memory = self.measured(lambda: score(model, rows))
        shared = {tuple(prompt): len(prompt) for prompt, _ in rows}
        responses = sum(len(response) for _, response in rows)
        head = model.get_output_embeddings().weight
        trunk = sum(p.numel() for p in model.base_model.layers.parameters() if p.dim() > 1)
        useful = 2 * trunk * (sum(shared.values()) + responses) + 2 * head.numel() * responses
        return {
            "rows": len(rows),
            "tokens/s": sum(len(p) + len(r) for p, r in rows) / spent,
            "MFU": useful / spent / self.rate,
            "added GB": memory,
            "first pass, s": first,
            "error, nats a token": max(abs(a - b) for a, b in zip(found, exact, strict=False)),
        }

    def vocabulary(self) -> Table:
        """Memory of long responses under a vocabulary of 262,144 tokens."""
        model = self.model("Gemma-3-1B")
        draw, long = random.Random(0), 100 if self.toy else 4000
        ids = [draw.randrange(5, model.config.vocab_size) for _ in range(96 + 2 * long)]
        rows = [(ids[:96], ids[96 : 96 + long]), (ids[:96], ids[-long:])]
        table = []
        for method, score in (("naive loop", naive), ("ours", ours)):
            found, spent, memory = self.measured(partial(score, model, rows))
            table.append({"model": "Gemma-3-1B", "method": method, "tokens a row": 96 + long, "added GB": memory})
            table[-1] |= {"tokens/s": 2 * (96 + long) / spent, "nats a token": found[0]}
        return table

    def reward(self) -> Table:
        """A reward model of 7B: ours beside one by one and padded batches."""
        from persyn.quality.reward_model import Reading, _scores

        name = "Qwen2.5-1.5B" if self.toy else "Qwen2.5-7B"
        model = self.model(name, "AutoModelForSequenceClassification", num_labels=1, pad_token_id=0)
        pairs = self.rows(8, 2 if self.toy else 16, model.config.vocab_size)
        rows = [prompt + response for prompt, response in pairs]

        @torch.inference_mode()
        def alone() -> list[float]:
            return [model(torch.tensor([row], device=self.device)).logits.item() for row in rows]

        @torch.inference_mode()
        def batches() -> list[float]:
            scores = [0.0] * len(rows)
            order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
            for part in (order[at : at + 16] for at in range(0, len(order), 16)):
                ids, mask = pad([rows[i] for i in part], model.device)
                for i, value in zip(part, model(ids, attention_mask=mask).logits.flatten().tolist(), strict=True):
                    scores[i] = value
            return scores

        def packed() -> list[float]:
            readings = [Reading(str(n), row, len(row)) for n, row in enumerate(rows)]
            found = {of.key: value for part in _scores(model, readings) for of, value in part}
            return [found[str(n)] for n in range(len(rows))]

        trunk, tokens = sum(p.numel() for p in model.base_model.layers.parameters()), sum(map(len, rows))
        expected: list[float] = []
        table: Table = []
        for method, work in (("one by one", alone), ("padded batches of 16", batches), ("ours", packed)):
            work()  # warms up
            found, spent, memory = self.measured(work)
            expected = expected or found
            error = max(abs(a - b) for a, b in zip(found, expected, strict=True))
            table.append({"model": name, "method": method, "rows": len(rows), "tokens/s": tokens / spent})
            table[-1] |= {"MFU": 2 * trunk * tokens / spent / self.rate, "added GB": memory, "difference": error}
            note(table[-1])
        for row in table:
            row["times one by one"] = row["tokens/s"] / table[0]["tokens/s"]
        return table

    def generation(self) -> Table:
        """The backend transformers beside a bare `generate` of the same batches."""
        from persyn.generation import Sampling, Teacher
        from persyn.generation.transformers import TransformersBackend, TransformersSpeed

        size, tokens = (4, 8) if self.toy else (64, 128)
        with tempfile.TemporaryDirectory() as folder:
            model = self.saved(Path(folder), "Qwen2.5-0.5B")
            teacher = Teacher(
                model=model, sampling=Sampling(max_tokens=tokens, temperature=0.7), license="x", backend="transformers"
            )
            backend = TransformersBackend(teacher, TransformersSpeed(batch_size=size))
        asked = [[{"role": "user", "content": words(n, 60)}] for n in range(2 * size)]
        keys = [str(n) for n in range(len(asked))]

        def through() -> int:
            done = [g for batch in backend.generate(asked, keys, teacher.sampling) for g in batch.values()]
            return sum(generation.num_response_tokens for generation in done)

        def bare() -> int:
            ids = torch.randint(5, 400, (size, 80), device=self.device)
            kwargs = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": True, "pad_token_id": 0}
            return sum(backend.model.generate(ids, **kwargs)[:, 80:].numel() for _ in range(2))

        table = []
        for method, work in (("bare generate", bare), ("ours", through)):
            work()
            made, spent, memory = self.measured(work)
            table.append({"model": "Qwen2.5-0.5B", "method": method, "batch": size, "tokens/s": made / spent})
            table[-1] |= {"tokens": made, "added GB": memory}
        return table

    def student(self, size: str) -> Table:
        """Updates of fine-tuning, whole (0.5B) or by LoRA."""
        return [self.trained(f"Qwen2.5-{size}", None if size == "0.5B" else {})]

    def trained(self, name: str, lora: dict[str, Any] | None) -> dict[str, Any]:
        """Speed of training this student on rows of some 600 tokens."""
        import polars as pl

        from persyn.models import Student
        from persyn.student import SftSettings, train_student
        from persyn.training.lora import LoraSettings

        updates, batch = (2, 2) if self.toy else (8, 16)
        table = pl.DataFrame(
            {
                "prompt": [words(n, 40) for n in range(updates * batch)],
                "completion": [[{"role": "assistant", "content": words(n, 200)}] for n in range(updates * batch)],
            }
        )
        clock: Any = Clock(self)
        with tempfile.TemporaryDirectory() as folder:
            base = self.saved(Path(folder) / "base", name, dtype=torch.float32)
            settings = SftSettings(epochs=1, batch_size=batch, lora=None if lora is None else LoraSettings(**lora))
            train_student(table, Student(model=base, license="x"), Path(folder) / "out", settings, live=clock)
        return self.updates(name, "LoRA" if lora is not None else "all weights", clock, frozen=lora is not None)

    def updates(self, name: str, what: str, clock: "Clock", frozen: bool) -> dict[str, Any]:
        """Speed of a training's updates after the first."""
        spent, tokens = clock.times[-1] - clock.times[0], clock.tokens[-1] - clock.tokens[0]
        weights = clock.weights * (4 if frozen else 6)
        return {
            "model": name,
            "trained": what,
            "updates": len(clock.times) - 1,
            "s an update": spent / (len(clock.times) - 1),
            "tokens/s": tokens / spent,
            "MFU": weights * tokens / spent / self.rate,
            "peak GB": torch.cuda.max_memory_allocated() / 1e9 if self.on_gpu else None,
        }

    def router(self) -> Table:
        """Updates of fine-tuning a router over 19 teachers, and its routing."""
        import numpy as np

        from persyn.router.finetuned import finetune_router
        from persyn.router.settings import RouterSettings
        from persyn.training import Session

        name, batch, updates = "Qwen2.5-1.5B", 2 if self.toy else 32, 3 if self.toy else 8
        prompts, teachers = [words(n, 60) for n in range(updates * batch)], [f"teacher-{n}" for n in range(19)]
        wins = np.triu(np.ones((19, 19), dtype=np.float32), 1)
        clock = Clock(self)
        with tempfile.TemporaryDirectory() as folder:
            base = self.saved(Path(folder) / "base", name)
            settings = RouterSettings(model=base, method="finetuned", batch_size=batch, max_length=512)
            session: Any = Session(scratch=Path(folder) / "scratch", live=clock)  # type: ignore[arg-type]
            trained = finetune_router(prompts, [wins] * len(prompts), teachers, settings, session)
            many = [words(n, 60) for n in range(16 if self.toy else 2000)]
            trained.strengths(many[:64])
            routing = self.seconds(lambda: trained.strengths(many))
        return [self.updates(name, "router", clock, frozen=False) | {"prompts routed/s": len(many) / routing}]

    def routing(self) -> Table:
        """Routing by word embeddings of an encoder as large as MiniLM, on the CPU or GPU that there is."""
        import polars as pl

        from benchmarks.routing import TEACHERS, prompts, seconds
        from persyn.pairs import PairSettings, build_pairs
        from persyn.prompts import prompt_id
        from persyn.router import read_lesson, train_router
        from persyn.router.settings import RouterSettings
        from persyn.schemas import REWARDS

        texts, table = prompts(64), []
        asked = pl.DataFrame({"prompt_id": [prompt_id(t) for t in texts], "prompt": texts, "source": ["math"] * 64})
        scores = [
            (i, t, 0.0, 0.0, float((n + len(i)) % 19)) for i in asked["prompt_id"] for n, t in enumerate(TEACHERS)
        ]
        rewards = pl.DataFrame(scores, schema=REWARDS, orient="row")
        lesson = read_lesson(asked, rewards, build_pairs(rewards, PairSettings()), TEACHERS)
        many = prompts(500 if self.toy else 50_000)
        with tempfile.TemporaryDirectory() as folder:
            encoder = self.encoder(Path(folder))
            for layers in ([0], None):
                router = train_router(lesson, RouterSettings(model=encoder, method="regression", layers=layers))
                wall, cpu = seconds(router, many)
                table.append({"layers": str(layers or "default"), "prompts": len(many), "s": wall, "CPU-s": cpu})
        return table

    def encoder(self, folder: Path) -> str:
        """A BERT of MiniLM's shape with random weights."""
        import transformers

        from tests.support.tiny import build_tokenizer

        sizes: dict[str, Any] = {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        }
        sizes = {name: size // 6 for name, size in sizes.items()} if self.toy else sizes
        transformers.BertModel(transformers.BertConfig(**sizes, vocab_size=30_522)).save_pretrained(folder)
        build_tokenizer(None).save_pretrained(folder)
        return str(folder)

    def graph(self) -> Table:
        """The whole pipeline of dvc.yaml on tiny models."""
        from tests.support.tiny import build_model, tiny_params, tiny_project

        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "project"
            tiny_project(folder, tiny_params(build_model(Path(scratch) / "model")))
            dvc = [sys.executable, "-m", "dvc"]
            subprocess.run([*dvc, "init", "-q", "--no-scm"], cwd=folder, check=True)
            start = time.perf_counter()
            subprocess.run([*dvc, "repro"], cwd=folder, check=True, stdout=sys.stderr)
            stages = sum(1 for _ in (folder / "dvc.lock").open() if _.startswith("    cmd:"))
            left = subprocess.run([*dvc, "status"], cwd=folder, check=True, capture_output=True, text=True).stdout
            return [{"stages": stages, "s": time.perf_counter() - start, "dvc status": left.strip()[:80]}]


class Clock:
    """In the place of a training's curves: notes when each update ends, and the tokens it has read."""

    def __init__(self, bench: Bench) -> None:
        self.bench, self.times, self.tokens, self.weights = bench, list[float](), list[float](), 0

    def callbacks(self) -> list[Any]:
        """A Trainer's."""
        from transformers import TrainerCallback

        clock = self

        class Notes(TrainerCallback):
            def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                args.include_num_input_tokens_seen = "non_padding"
                trunk = others["model"]
                clock.weights = sum(p.numel() for p in trunk.parameters() if p.dim() > 1)

            def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
                clock.bench.wait()
                clock.times.append(time.perf_counter())
                clock.tokens.append(float(state.num_input_tokens_seen))

        return [Notes()]


def note(row: dict[str, Any]) -> None:
    """Say how far a part has come, should it not come to its end."""
    print({name: show(value) for name, value in row.items()}, file=sys.stderr, flush=True)  # noqa: T201


def words(seed: int, number: int) -> str:
    """Random words of some three tokens each."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghijklmnop", k=draw.randint(1, 5))) for _ in range(number))


@torch.inference_mode()
def naive(model: Any, rows: list[Row]) -> list[float]:
    """One row at a time, log_softmax over everything."""
    scores = []
    for prompt, response in rows:
        ids = torch.tensor([prompt + response], device=model.device)
        logprobs = torch.log_softmax(model(ids).logits[0].float(), dim=-1)
        picked = logprobs[len(prompt) - 1 : -1].gather(1, ids[0, len(prompt) :, None])
        scores.append(picked.double().mean().item())
    return scores


def padded(model: Any, rows: list[Row]) -> list[float]:
    """Batches sorted by length, log_softmax over everything."""
    return in_batches(model, rows, lambda logits, ids: torch.log_softmax(logits.float(), -1).gather(2, ids[..., None]))


def trl(model: Any, rows: list[Row]) -> list[float]:
    """Batches sorted by length, TRL's selective_log_softmax."""
    from trl.trainer.utils import selective_log_softmax

    return in_batches(model, rows, lambda logits, ids: selective_log_softmax(logits, ids)[..., None])


@torch.inference_mode()
def in_batches(
    model: Any, rows: list[Row], logprobs: Callable[[torch.Tensor, torch.Tensor], torch.Tensor], size: int = 16
) -> list[float]:
    """Batches padded on the right."""
    scores = [0.0] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: -sum(map(len, rows[i])))
    for part in (order[at : at + size] for at in range(0, len(order), size)):
        ids, mask = pad([[*rows[i][0], *rows[i][1]] for i in part], model.device)
        found = logprobs(model(ids, attention_mask=mask).logits[:, :-1], ids[:, 1:])
        for n, i in enumerate(part):
            prompt, response = rows[i]
            scores[i] = found[n, len(prompt) - 1 : len(prompt) + len(response) - 1].double().mean().item()
    return scores


def ours(model: Any, rows: list[Row], large: bool = False) -> list[float]:
    """persyn.learnability: forests; compiled if the job counts as large."""
    from persyn.learnability import LearnabilitySettings
    from persyn.learnability.scoring import score_groups
    from persyn.models.forest import LARGE, prepare

    batch_tokens = prepare(model, LARGE if large else 0)
    places: dict[tuple[int, ...], list[int]] = {}
    for place, (prompt, _) in enumerate(rows):
        places.setdefault(tuple(prompt), []).append(place)
    groups = [(rows[group[0]][0], [rows[place][1] for place in group]) for group in places.values()]
    every, scores = list(places.values()), [0.0] * len(rows)
    for part in score_groups(model, groups, LearnabilitySettings(), batch_tokens):
        for group, index, value in part:
            scores[every[group][index]] = value
    return scores


def pad(rows: Sequence[list[int]], device: Any) -> Iterator[torch.Tensor]:
    """Token ids and mask (B, T), padded on the right."""
    longest = max(map(len, rows))
    yield torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=device)
    yield torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)


if __name__ == "__main__":
    main()
