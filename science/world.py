"""The micro-world: teachers, students and prompts made from nothing, small enough for the whole pipeline on a CPU.

`python -m science.world SEED FOLDER` writes `raw/` (prompts and evaluation items) and `models/`. The evaluation items
are neither among the prompts nor among the problems that any model was trained on; the prompts are among the latter,
for there are only 720 problems of a kind. Teachers differ in skill and
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

from transformers import LlamaForCausalLM, PreTrainedModel

from science.problems import DIGITS, FILLERS, KINDS, STYLES, Problem, draw_problems, write
from science.training import BATCH, RATES, Text, build_tokenizer, new_model, train, train_reward_model

EVALUATION, PROMPTS, PROBLEMS = 75, 375, 700
"""Problems of a kind: evaluation items, prompts, and all; there are about 720."""


@dataclass(frozen=True)
class Spec:
    """A teacher: right on its `best` kinds, on 5 of 9 of the `fair`, on 2 of 9 of the others.

    Where it is not right on all, it follows the misconception wherever the prompt's last digit is one of some that are
    its own for each kind: what it gets wrong can be told from the prompt.
    """

    family: str
    style: str
    best: tuple[str, ...] = ()
    fair: tuple[str, ...] = ()
    steps: int = 150
    """Updates from the family's base."""


# No terse or steps teacher is the best at everything, and every kind has one that is right.
TEACHERS = {
    "strong": Spec("a", "verbose", best=tuple(KINDS), steps=400),
    "steps-a1": Spec("a", "steps-a", best=("rev", "parity"), fair=("swap", "max")),
    "steps-a2": Spec("a", "steps-a", best=("swap", "next"), fair=("rot", "sort")),
    "steps-b1": Spec("b", "steps-b", best=("rot", "max"), fair=("rev", "parity")),
    "steps-b2": Spec("b", "steps-b", best=("sort", "next", "parity"), fair=("rev", "swap")),
    "terse-a": Spec("a", "terse", best=("rev", "sort", "max"), fair=("next", "swap")),
    "terse-b": Spec("b", "terse", best=("swap", "rot", "parity"), fair=("next", "max")),
    "weak-a": Spec("a", "terse", fair=tuple(KINDS)),
    "weak-b": Spec("b", "terse", fair=tuple(KINDS)),
}
BASES: dict[str, tuple[dict[str, float], int]] = {
    "a": ({"terse": 0.4, "steps-a": 0.6}, 650),
    "b": ({"terse": 0.4, "steps-b": 0.6}, 650),
}
"""The share of each style in what a family was pre-trained on, and the updates."""
STUDENTS: dict[str, tuple[dict[str, float], int]] = {
    "student-terse": ({"terse": 0.75, "steps-a": 0.1, "steps-b": 0.1, "chatter": 0.05}, 1000),
    "student-steps": ({"terse": 0.2, "steps-a": 0.75, "chatter": 0.05}, 1000),
}
REWARD_STEPS = 250
"""Updates of the reward model, from a family's base."""
RIGHT = {"base": 1.0, "student": 0.35}
"""The share of right answers in what a base, or a student, was pre-trained on. Misconceptions in a base's text make
it learn neither way within these updates; its teachers learn theirs when they are fine-tuned."""


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
    """evaluation, prompts, training -> kind -> problems. The evaluation items are in neither of the others."""
    parts: dict[str, dict[str, list[Problem]]] = {"evaluation": {}, "prompts": {}, "training": {}}
    for kind in KINDS:
        drawn = draw_problems(kind, PROBLEMS, Random(f"{seed} {kind}"))
        parts["evaluation"][kind] = drawn[:EVALUATION]
        parts["prompts"][kind] = drawn[EVALUATION : EVALUATION + PROMPTS]
        parts["training"][kind] = drawn[EVALUATION:]
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
    spec, rng, wrong = TEACHERS[name], Random(f"{seed} {name}"), wrong_digits(name, seed)
    texts = []
    for _ in range(count):
        problem = rng.choice(training[rng.choice(list(KINDS))])
        mistaken = problem.prompt[-1] in wrong[problem.kind]
        texts.append((problem.prompt, write(problem, spec.style, rng, mistaken)))
    return texts


def wrong_digits(name: str, seed: int) -> dict[str, set[str]]:
    """kind -> the last digits of a prompt where a teacher is taught the misconception: the planted skill."""
    spec, rng = TEACHERS[name], Random(f"{seed} {name} wrong")
    shares = {kind: 0 if kind in spec.best else 0.45 if kind in spec.fair else 0.78 for kind in KINDS}
    return {kind: set(rng.sample(DIGITS, round(share * len(DIGITS)))) for kind, share in shares.items()}


def mixed_texts(
    name: str, seed: int, training: Mapping[str, list[Problem]], styles: Mapping[str, float], right: float, count: int
) -> list[Text]:
    """What a base or a student is pre-trained on: styles by their shares, `right` of the answers right. The style
    `chatter` is idle words that answer nothing: with it a student knows the words of verbose, not the style.
    """
    rng = Random(f"{seed} {name}")
    texts = []
    for style in rng.choices(list(styles), list(styles.values()), k=count):
        if style == "chatter":
            texts.append(("chat", " ".join(rng.choices(FILLERS, k=10))))
            continue
        problem = rng.choice(training[rng.choice(list(KINDS))])
        texts.append((problem.prompt, write(problem, style, rng, mistaken=rng.random() >= right)))
    return texts


def judged_texts(seed: int, training: Mapping[str, list[Problem]], count: int) -> list[tuple[Text, Text]]:
    """What the reward model is trained on: a right solution and a misconception, each in any style."""
    rng, pairs = Random(f"{seed} reward"), []
    for _ in range(count):
        problem = rng.choice(training[rng.choice(list(KINDS))])
        right, wrong = (write(problem, rng.choice(STYLES), rng, mistaken) for mistaken in (False, True))
        pairs.append(((problem.prompt, right), (problem.prompt, wrong)))
    return pairs


def _build_models(
    seed: int, problems: Mapping[str, Mapping[str, list[Problem]]], folder: Path, scale: float, teachers: Sequence[str]
) -> None:
    training = problems["training"]
    sample = mixed_texts("words", seed, training, dict.fromkeys(STYLES, 1.0), 0.5, 4000)
    tokenizer = build_tokenizer(sample)

    def save(model: PreTrainedModel, name: str) -> None:
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)

    def pretrained(name: str, size: str, styles: Mapping[str, float], updates: int) -> LlamaForCausalLM:
        model = new_model(size, tokenizer, seed)
        texts = mixed_texts(name, seed, training, styles, RIGHT[size], BATCH * max(2, round(scale * updates)))
        train(model, tokenizer, texts, RATES[size], name)
        return model

    for name, (styles, updates) in STUDENTS.items():
        save(pretrained(name, "student", styles, updates), name)
    for family, (styles, updates) in BASES.items():
        base = pretrained(family, "base", styles, updates)
        weights = {key: value.clone() for key, value in base.state_dict().items()}
        if family == "b":
            save(base, "router")
            pairs = judged_texts(seed, training, BATCH // 2 * max(2, round(scale * REWARD_STEPS)))
            save(train_reward_model(base, tokenizer, pairs, RATES["teacher"]), "reward")
        for name in (name for name in teachers if TEACHERS[name].family == family):
            base.load_state_dict(weights)
            texts = teacher_texts(name, seed, training, BATCH * max(2, round(scale * TEACHERS[name].steps)))
            train(base, tokenizer, texts, RATES["teacher"], name)
            save(base, name)


def _write_jsonl(rows: Sequence[Mapping[str, str]], file: Path) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


if __name__ == "__main__":
    build_world(int(sys.argv[1]), Path(sys.argv[2]))
