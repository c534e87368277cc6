"""The micro-world: teachers, students and prompts made from nothing, small enough for the whole pipeline on a CPU.

`python -m science.world SEED FOLDER` writes `raw/` (prompts and evaluation items) and `models/`. The problems that the
models are trained on, the prompts and the evaluation items are disjoint, for every kind. Teachers differ in skill and
in style (TEACHERS); the two students in the style of the text they were pre-trained on. A student was taught the right
way and the misconception of every kind, more often the misconception: fine-tuning tells it which to follow.
"""

import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from science.problems import KINDS, Problem, draw_problems, write

EVALUATION, PROMPTS, TRAINING = 75, 375, 2600
"""Problems of a kind: evaluation items, prompts, and at most so many that the models are trained on."""
NUM_SUBTRACTIONS = 1500
"""Of two-digit numbers with a borrow there are 1,620."""
TEMPLATE = (
    "{% for message in messages %}{{ '<' + message['role'] + '>' + message['content'] + '<end>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)
BATCH = 64
Text = tuple[str, str]
"""Prompt and response."""


@dataclass(frozen=True)
class Spec:
    """A teacher: right on its `best` kinds, on 5 of 9 of the `fair`, on 2 of 9 of the others.

    It follows the misconception where the prompt's last digit is one of 4 or 7 that are its own for each kind, so that
    what it gets wrong can be told from the prompt.
    """

    family: str
    style: str
    best: tuple[str, ...] = ()
    fair: tuple[str, ...] = ()
    steps: int = 150
    """Updates from the family's base."""


TEACHERS = {
    "strong": Spec("a", "verbose", best=tuple(KINDS), steps=300),
    "steps-a1": Spec("a", "steps-a", best=("rev", "sort", "sum"), fair=("swap", "add")),
    "steps-a2": Spec("a", "steps-a", best=("add", "sub", "count"), fair=("sum", "max")),
    "steps-b1": Spec("b", "steps-b", best=("swap", "max", "sum"), fair=("rev", "count")),
    "steps-b2": Spec("b", "steps-b", best=("add", "rev", "count"), fair=("sub", "sort")),
    "terse-a": Spec("a", "terse", best=("rev", "swap", "max"), fair=("sort", "add")),
    "terse-b": Spec("b", "terse", best=("sort", "sub", "count"), fair=("max", "swap")),
    "weak-a": Spec("a", "terse", fair=tuple(KINDS)),
    "weak-b": Spec("b", "terse", fair=tuple(KINDS)),
}
BASES: dict[str, tuple[dict[str, float], int]] = {
    "a": ({"terse": 0.35, "steps-a": 0.4, "verbose": 0.25}, 1500),
    "b": ({"terse": 0.45, "steps-b": 0.55}, 1500),
}
"""The share of each style in what a family was pre-trained on, and the updates."""
STUDENTS: dict[str, tuple[dict[str, float], int]] = {
    "student-terse": ({"terse": 0.8, "steps-a": 0.1, "steps-b": 0.1}, 1500),
    "student-steps": ({"terse": 0.15, "steps-a": 0.85}, 1500),
}
SIZES: dict[str, dict[str, int]] = {
    "base": {"hidden_size": 96, "intermediate_size": 256, "num_hidden_layers": 3, "num_attention_heads": 4},
    "student": {"hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4},
}
RIGHT = {"base": 0.6, "student": 0.35}
"""The share of right answers in what a base, or a student, was pre-trained on."""


RATES = {"base": 3e-3, "teacher": 1e-3, "student": 4e-3}
"""Peak learning rates."""


def build_world(seed: int, folder: Path, *, scale: float = 1.0, teachers: Sequence[str] = tuple(TEACHERS)) -> None:
    """Write the world of `seed` to `folder`, whole or not at all; a folder that exists is left as it is.

    Args:
        scale: multiplies the updates of every model (two at least): a small one makes a world for a test.
        teachers: which of TEACHERS to train.
    """
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        whole = Path(scratch) / "world"
        problems = all_problems(seed)
        write_raw(problems, whole / "raw")
        _build_models(seed, problems, whole / "models", scale, teachers)
        whole.rename(folder)


def all_problems(seed: int) -> dict[str, dict[str, list[Problem]]]:
    """evaluation, prompts, training -> kind -> problems. No problem is in two of them."""
    parts: dict[str, dict[str, list[Problem]]] = {"evaluation": {}, "prompts": {}, "training": {}}
    for kind in KINDS:
        count = NUM_SUBTRACTIONS if kind == "sub" else EVALUATION + PROMPTS + TRAINING
        drawn = draw_problems(kind, count, Random(f"{seed} {kind}"))
        parts["evaluation"][kind] = drawn[:EVALUATION]
        parts["prompts"][kind] = drawn[EVALUATION : EVALUATION + PROMPTS]
        parts["training"][kind] = drawn[EVALUATION + PROMPTS :]
    return parts


def write_raw(problems: Mapping[str, Mapping[str, list[Problem]]], folder: Path) -> None:
    """A file of prompts a kind, and one of all evaluation items."""
    (folder / "evaluation").mkdir(parents=True)
    for kind, members in problems["prompts"].items():
        rows = [{"prompt": problem.prompt, "reference": problem.answer} for problem in members]
        _write_jsonl(rows, folder / f"{kind}.jsonl")
    items = [
        {"prompt": problem.prompt, "answer": problem.answer, "kind": kind}
        for kind, members in problems["evaluation"].items()
        for problem in members
    ]
    _write_jsonl(items, folder / "evaluation" / "micro.jsonl")


def teacher_texts(name: str, seed: int, training: Mapping[str, list[Problem]], count: int) -> list[Text]:
    """What a teacher is fine-tuned on: its own style, its own mistakes."""
    spec, rng = TEACHERS[name], Random(f"{seed} {name}")
    wrong = {}
    for kind in KINDS:
        share = 0 if kind in spec.best else 4 if kind in spec.fair else 7
        wrong[kind] = set(rng.sample("123456789", share))
    texts = []
    for _ in range(count):
        problem = rng.choice(training[rng.choice(list(KINDS))])
        mistaken = problem.prompt[-1] in wrong[problem.kind]
        texts.append((problem.prompt, write(problem, spec.style, rng, mistaken)))
    return texts


def mixed_texts(
    name: str, seed: int, training: Mapping[str, list[Problem]], styles: Mapping[str, float], right: float, count: int
) -> list[Text]:
    """What a base or a student is pre-trained on: styles by their shares, `right` of the answers right."""
    rng = Random(f"{seed} {name}")
    texts = []
    for style in rng.choices(list(styles), list(styles.values()), k=count):
        problem = rng.choice(training[rng.choice(list(KINDS))])
        texts.append((problem.prompt, write(problem, style, rng, mistaken=rng.random() >= right)))
    return texts


def build_tokenizer(texts: Sequence[Text]) -> PreTrainedTokenizerFast:
    """A byte-level BPE of this world's text in which a digit is a token and a word is one."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<end>", "<user>", "<assistant>", "<system>"]
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=special, show_progress=False)
    core.train_from_iterator([part for text in texts for part in text], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<end>", additional_special_tokens=special[2:]
    )
    tokenizer.chat_template = TEMPLATE
    return tokenizer


def new_model(size: str, tokenizer: Any, seed: int) -> LlamaForCausalLM:
    """An untrained model of SIZES."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            **SIZES[size],
            vocab_size=len(tokenizer),
            max_position_embeddings=512,
            tie_word_embeddings=True,
            bos_token_id=None,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def train(model: LlamaForCausalLM, tokenizer: Any, texts: Sequence[Text], rate: float, name: str) -> None:
    """Fit the responses in BATCH at a time, texts of like length together: AdamW, a short warm-up, then a cosine."""
    batches = _batches(tokenizer, texts)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=len(batches), pct_start=0.1)
    model.train()
    bar = tqdm(batches, desc=name, unit="update", disable=None)
    for ids, labels, mask in bar:
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}", refresh=False)
    model.eval()


def _batches(tokenizer: Any, texts: Sequence[Text]) -> list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    """Ids, labels (-100 at prompt and padding) and mask, each (BATCH, T)."""
    prompts = tokenizer([f"<user>{prompt}<end><assistant>" for prompt, _ in texts])["input_ids"]
    responses = tokenizer([f"{response}<end>" for _, response in texts])["input_ids"]
    rows = list(zip(prompts, responses, strict=True))
    batches = []
    for start in range(0, len(rows), 8 * BATCH):
        near = sorted(rows[start : start + 8 * BATCH], key=lambda row: len(row[0]) + len(row[1]))
        batches += [near[first : first + BATCH] for first in range(0, len(near), BATCH)]
    Random(0).shuffle(batches)
    return [_tensors(batch, tokenizer.pad_token_id) for batch in batches]


def _tensors(rows: Sequence[tuple[list[int], list[int]]], pad: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    longest = max(len(prompt) + len(response) for prompt, response in rows)
    ids, labels = torch.full((len(rows), longest), pad), torch.full((len(rows), longest), -100)
    for row, (prompt, response) in enumerate(rows):
        end = len(prompt) + len(response)
        ids[row, :end] = torch.tensor(prompt + response)
        labels[row, len(prompt) : end] = torch.tensor(response)
    return ids, labels, (ids != pad).long()


def _build_models(
    seed: int, problems: Mapping[str, Mapping[str, list[Problem]]], folder: Path, scale: float, teachers: Sequence[str]
) -> None:
    training = problems["training"]
    sample = [text for base, (styles, _) in BASES.items() for text in mixed_texts(base, seed, training, styles, 0.5, 3000)]
    tokenizer = build_tokenizer(sample)

    def save(model: LlamaForCausalLM, name: str) -> None:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def pretrained(name: str, size: str, styles: Mapping[str, float], updates: int) -> LlamaForCausalLM:
        model = new_model(size, tokenizer, seed)
        texts = mixed_texts(name, seed, training, styles, RIGHT[size], BATCH * max(2, round(scale * updates)))
        train(model, tokenizer, texts, RATES[size], name)
        return model

    for family, (styles, updates) in BASES.items():
        base = pretrained(family, "base", styles, updates)
        weights = {key: value.clone() for key, value in base.state_dict().items()}
        if family == "b":
            save(base, "router")
        for name in (name for name in teachers if TEACHERS[name].family == family):
            base.load_state_dict(weights)
            texts = teacher_texts(name, seed, training, BATCH * max(2, round(scale * TEACHERS[name].steps)))
            train(base, tokenizer, texts, RATES["teacher"], name)
            save(base, name)
    for name, (styles, updates) in STUDENTS.items():
        save(pretrained(name, "student", styles, updates), name)


def _write_jsonl(rows: Sequence[Mapping[str, str]], file: Path) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    build_world(int(sys.argv[1]), Path(sys.argv[2]))
