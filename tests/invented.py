"""An invented project: everything made, of random numbers, by the pipeline's own functions."""

import html
import re
from typing import Any

import numpy as np
import polars as pl

from persyn.comparison import compare_strategies
from persyn.cost import build_ledger
from persyn.defects import Policies, count_defects, find_defects
from persyn.pairs import build_pairs
from persyn.project.snapshot import Snapshot
from persyn.rewards import build_rewards
from persyn.router.metrics import health_card, majority_strengths, reliability, reward_matrix
from persyn.schemas import DATASET, LEARNABILITY, PROMPTS, QUALITY, RESPONSES, ROUTES, SAMPLES


def invented(
    teachers: list[str], strategies: list[str], tasks: list[str], count: int = 40, source: str = "s"
) -> Snapshot:
    """So many prompts, half of them parallel; strategies choose at random, and the later ones have worse students."""
    random = np.random.default_rng(0)
    ids = [f"{number:016x}" for number in range(count)]
    domains = [["instruction", "math"][number % 2] for number in range(count)]
    texts, parallel = [f"prompt {each}" for each in ids], [number % 4 < 2 for number in range(count)]
    prompts = _table(PROMPTS, ids, texts, domains, None, source, "MIT", parallel)
    asked = prompts.filter("parallel")["prompt_id"].to_list()
    responses = {name: _answers(teachers, [name] * len(asked), asked) for name in teachers}
    quality, learnability = {}, {}
    for number, name in enumerate(teachers):
        scores = random.random(len(asked)), -random.random(len(asked)) - number / 9
        quality[name] = _table(QUALITY, asked, name, scores[0])
        learnability[name] = _table(LEARNABILITY, asked, name, scores[1], 9, False)
    everything = pl.concat(responses.values())
    defects = find_defects(prompts, everything)
    scored = pl.concat(quality.values()), pl.concat(learnability.values()), defects
    rewards, reward_counts = build_rewards(*scored, teachers, Policies(), alpha=0.4)
    matrix = reward_matrix(rewards, asked, teachers)
    strengths = matrix + random.normal(size=matrix.shape) / 3
    chosen = {name: random.choice(teachers, count).tolist() for name in strategies}
    routes = {name: _table(ROUTES, ids, who, None, None) for name, who in chosen.items()}
    routed = {name: _answers(teachers, who, ids) for name, who in chosen.items()}
    samples = {name: _samples(random, tasks, number) for number, name in enumerate(strategies)}
    shares = {name: {teacher: who.count(teacher) / count for teacher in teachers} for name, who in chosen.items()}
    read = {"read": count + 3, "dropped": {"duplicate": 3}, "kept": count, "parallel": len(asked)}
    metrics = {
        "prompts": read | {"domains": {"instruction": count // 2, "math": count // 2}},
        "defects": count_defects(defects, everything),
        "rewards": reward_counts,
        "router": _card(random, strengths, matrix, teachers),
        "allocation": {name: {"prompts": count, "entropy": 1.0, "share": share} for name, share in shares.items()},
        "dataset": {name: {"rows": count, "kept": count - 1, "dropped": {"empty": 1}} for name in strategies},
        "evaluation": {name: _scores(table) for name, table in samples.items()},
        "comparison": compare_strategies(samples),
        "cost": build_ledger(prompts, everything, routed),
    }
    params = {
        "teachers": {name: {"model": "m"} for name in teachers},
        "strategies": {name: {"rule": "persyn"} for name in strategies},
        "student": {"model": "student/model"},
        "rewards": {"alpha": 0.4},
        "evaluation": {"tasks": tasks},
    }
    return Snapshot(
        params,
        name="invented",
        metrics=metrics,
        prompts=prompts,
        responses=responses,
        quality=quality,
        learnability=learnability,
        defects=defects,
        rewards=rewards,
        pairs=build_pairs(rewards),
        routes=routes,
        routed=routed,
        dataset={name: pl.DataFrame(schema=DATASET) for name in strategies},
        samples=samples,
        training={name: _losses(random) for name in strategies},
        reliability=reliability(strengths, matrix),
    )


def _table(schema: pl.Schema, *columns: Any) -> pl.DataFrame:
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)


def _answers(teachers: list[str], who: list[str], to: list[str]) -> pl.DataFrame:
    """Each teacher's are of one length."""
    lengths = [10 + 7 * (teachers.index(name) % 9) for name in who]
    reasons = ["length" if length > 50 else "stop" for length in lengths]
    return _table(RESPONSES, to, who, [f"answer {each}" for each in to], reasons, 9, lengths)


def _card(random: np.random.Generator, strengths: np.ndarray, rewards: np.ndarray, teachers: list[str]) -> Any:
    controls = {"majority": majority_strengths(rewards, len(rewards)), "knn": random.random(rewards.shape)}
    card = health_card(strengths, rewards, teachers, controls)
    return card | {"num_train": len(rewards), "num_held_out": len(rewards), "num_validation": 0}


def _samples(random: np.random.Generator, tasks: list[str], number: int) -> pl.DataFrame:
    rows = [
        (task, f"item {item}", "accuracy", float(random.random() < 0.9 - number / 20), "answer")
        for task in tasks
        for item in range(200)
    ]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


def _scores(samples: pl.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    means = samples.group_by("task", maintain_order=True).agg(pl.col("value").mean())
    return {task: {"accuracy": {"value": value, "stderr": 0.01, "n": 200}} for task, value in means.iter_rows()}


def _losses(random: np.random.Generator) -> pl.DataFrame:
    loss = 1 + 2 / np.arange(1, 1001) ** 0.5 + random.normal(size=1000) / 20
    return pl.DataFrame({"step": np.arange(1, 1001), "loss": loss})


def rows(page: str) -> list[list[str]]:
    """The cells of every row of every table."""
    return [
        [html.unescape(cell) for cell in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)]
        for row in re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    ]
