"""Invented projects: `invented` makes every table and metric of a small one, `made_up` the tables of any size."""

from typing import Any

import numpy as np
import polars as pl

from persyn.comparison import compare_strategies
from persyn.cost import build_ledger
from persyn.defects import Policies, count_defects, find_defects
from persyn.messages import user_message
from persyn.pairs import PairSettings, build_pairs
from persyn.project.snapshot import Snapshot
from persyn.prompts.conversations import prompt_id
from persyn.report import build_report
from persyn.rewards import RewardSettings, build_rewards
from persyn.router.metrics import health_card, majority_strengths, reliability, reward_matrix
from persyn.router.worth import noise_floor, worth
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
    SAMPLES,
)


def invented(
    teachers: list[str], strategies: list[str], tasks: list[str], count: int = 40, source: str = "s"
) -> Snapshot:
    """A project of this many prompts, half of them parallel; strategies choose at random, later ones score worse."""
    random = np.random.default_rng(0)
    ids = [f"{number:016x}" for number in range(count)]
    domains = [["instruction", "math"][number % 2] for number in range(count)]
    texts, parallel = [f"prompt {each}" for each in ids], [number % 4 < 2 for number in range(count)]
    prompts = _table(PROMPTS, ids, [user_message(text) for text in texts], domains, None, source, "MIT", parallel)
    asked = prompts.filter("parallel")["prompt_id"].to_list()
    responses = {name: _responses(teachers, [name] * len(asked), asked) for name in teachers}
    quality, learnability = {}, {}
    for number, name in enumerate(teachers):
        scores = random.random(len(asked)), -random.random(len(asked)) - number / 9
        quality[name] = _table(QUALITY, asked, name, scores[0])
        learnability[name] = _table(LEARNABILITY, asked, name, scores[1], 9, False)
    everything = pl.concat(responses.values())
    defects = find_defects(prompts, everything)
    scored = pl.concat(quality.values()), pl.concat(learnability.values()), defects
    rewards, reward_counts = build_rewards(*scored, teachers, Policies(), RewardSettings(alpha=0.4))
    matrix = reward_matrix(rewards, asked, teachers)
    strengths = matrix + random.normal(size=matrix.shape) / 3
    chosen = {name: random.choice(teachers, count).tolist() for name in strategies}
    routes = {name: _table(ROUTES, ids, who, None, None) for name, who in chosen.items()}
    routed = {name: _responses(teachers, who, ids) for name, who in chosen.items()}
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
        "beside": {},
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
        pairs=build_pairs(rewards, PairSettings()),
        routes=routes,
        routed=routed,
        dataset={name: pl.DataFrame(schema=DATASET) for name in strategies},
        samples=samples,
        training={name: _losses(random) for name in strategies},
        reliability=reliability(strengths, matrix),
    )


def made_up(count: int, teachers: int, characters: int, parallel: float = 1.0) -> dict[str, Any]:
    """The tables of a project with these numbers of prompts and teachers, as a Snapshot takes them.

    Args:
        characters: of every response; a prompt has a fifth.
        parallel: share of the prompts that are parallel; two strategies route the others.
    """
    random = np.random.default_rng(0)
    stream = _words(random, 4_000_000)

    def texts(number: int, length: int) -> list[str]:
        return [stream[start : start + length] for start in random.integers(0, len(stream) - length, number)]

    written = texts(count, max(characters // 5, 30))
    prompts = pl.DataFrame(
        {
            "prompt_id": [prompt_id(f"{number} {text}") for number, text in enumerate(written)],
            "prompt": [user_message(text) for text in written],
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
            "reasoning": pl.Series([None] * len(ids), dtype=pl.String),
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


def report_of(tables: dict[str, Any]) -> str:
    """The report of a project of these tables."""
    teachers: dict[str, Any] = {name: {"model": name} for name in tables["responses"]}
    strategies = {name: {"rule": name} for name in tables["routes"]}
    metrics = {"allocation": {name: allocation(routes, list(teachers)) for name, routes in tables["routes"].items()}}
    return build_report(Snapshot({"teachers": teachers, "strategies": strategies}, metrics=metrics, **tables))


def _table(schema: pl.Schema, *columns: Any) -> pl.DataFrame:
    return pl.DataFrame(dict(zip(schema, columns, strict=True)), schema=schema)


def _responses(teachers: list[str], who: list[str], to: list[str]) -> pl.DataFrame:
    """RESPONSES; those of one teacher have equal lengths."""
    lengths = [10 + 7 * (teachers.index(name) % 9) for name in who]
    reasons = ["length" if length > 50 else "stop" for length in lengths]
    return _table(RESPONSES, to, who, [f"answer {each}" for each in to], None, reasons, 9, lengths)


def _card(random: np.random.Generator, strengths: np.ndarray, rewards: np.ndarray, teachers: list[str]) -> Any:
    controls = {name: random.random(rewards.shape) for name in ("source", "knn", "shuffled", "unshrunk")}
    controls["majority"] = majority_strengths(rewards, len(rewards))
    card = health_card(strengths, rewards, teachers, controls)
    gain = {"difference": 0.05, "interval": [0.01, 0.09], "mde": 0.04}
    card |= worth({"trust": 0.5, "slope": 1.0, "gain": gain}, rewards, teachers)
    card["noise_floor"] = noise_floor(strengths, strengths, rewards, rewards)
    return card | {"num_train": len(rewards), "num_held_out": len(rewards), "num_validation": 0}


def _samples(random: np.random.Generator, tasks: list[str], number: int) -> pl.DataFrame:
    rows = [
        (task, f"item {item}", "accuracy", float(random.random() < 0.9 - number / 20), "answer", item % 10 < number)
        for task in tasks
        for item in range(200)
    ]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")


def _scores(samples: pl.DataFrame) -> dict[str, dict[str, dict[str, float]]]:
    means = samples.group_by("task", maintain_order=True).agg(pl.col("value").mean(), pl.col("cut").sum())
    return {
        task: {"accuracy": {"value": value, "stderr": 0.01, "n": 200, "cut": cut}}
        for task, value, cut in means.iter_rows()
    }


def _losses(random: np.random.Generator) -> pl.DataFrame:
    loss = 1 + 2 / np.arange(1, 1001) ** 0.5 + random.normal(size=1000) / 20
    return pl.DataFrame({"step": np.arange(1, 1001), "loss": loss})


def _words(random: np.random.Generator, count: int) -> str:
    """Words drawn from 2,000 by Zipf's law."""
    letters = random.integers(97, 123, (2000, 9)).astype(np.uint8)
    known = [bytes(row[: 3 + position % 7]).decode() for position, row in enumerate(letters)]
    weights = 1 / np.arange(1, 2001)
    return " ".join(known[position] for position in random.choice(2000, count, p=weights / weights.sum()))
