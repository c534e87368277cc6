"""Studies: questions about the router alone, answered from the tables of a project that has run.

Each returns variant -> SAMPLES of the router's metrics for one seed, as the recipes do for theirs.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl

from persyn.router import Router, load_router, read_lesson, train_router
from persyn.router.metrics import reward_matrix, routing_metrics, split_prompts
from persyn.router.placement import PlacedRouter, place_teacher
from persyn.router.reading import prompt_texts
from persyn.router.settings import RouterSettings
from persyn.schemas import PAIRS, PROMPTS, REWARDS, read_table
from science.project import load_profile
from science.recipes import card_samples
from science.world import TEACHERS, wrong_digits

Card = Mapping[str, float | None]
Samples = dict[str, pl.DataFrame]
"""Variant -> SAMPLES."""

SECOND = "strategies-steps"
"""The recipe whose projects have another student."""
ANCHORS = (4, 16, 64, 256)
"""Numbers of prompts that a new teacher responds to."""


@dataclass(frozen=True)
class Tables:
    """The tables of a project, split as for its router."""

    rewards: pl.DataFrame
    pairs: pl.DataFrame
    train: pl.DataFrame
    held_out: pl.DataFrame
    teachers: Sequence[str]
    settings: RouterSettings


def read_tables(folder: Path) -> Tables:
    """The tables of the project in `folder`."""
    params = load_profile(folder / "params.yaml")
    settings = RouterSettings.parse(params["router"], "router")
    if (folder / settings.model).is_dir():  # named from there
        settings = settings.changed(model=str(folder / settings.model))
    rewards = read_table(folder / "data/rewards.parquet", REWARDS)
    prompts = read_table(folder / "data/prompts.parquet", PROMPTS).join(rewards, on="prompt_id", how="semi")
    train, held_out = split_prompts(prompts, settings.holdout)
    pairs = read_table(folder / "data/pairs.parquet", PAIRS)
    return Tables(rewards, pairs, train[: settings.num_train], held_out, list(params["teachers"]), settings)


def transfer(folder: Path, seed: int) -> Samples:
    """Does a router trained on some sources route others? Tested on every second source, then on the others."""
    tables = read_tables(folder)
    sources = tables.train["source"].unique().sort().to_list()
    found: dict[str, list[Card]] = {"all sources": [], "the same sources": [], "other sources": []}
    everything = _train(tables, tables.train, tables.teachers)
    for half in (sources[::2], sources[1::2]):
        inside = pl.col("source").is_in(half)
        measured = tables.held_out.filter(inside)
        apart = [_train(tables, tables.train.filter(part), tables.teachers) for part in (inside, ~inside)]
        for name, router in zip(found, [everything, *apart], strict=True):
            found[name].append(_measure(tables, measured, _ask(router, measured)))
    return {name: _samples(cards) for name, cards in found.items()}


def anchors(folder: Path, seed: int) -> Samples:
    """How many prompts must a new teacher respond to, to join a trained router? Each teacher is the new one in turn.
    Uses the linear router, because many are trained.
    """
    tables = read_tables(folder)
    tables = replace(tables, settings=tables.settings.for_method("linear").changed(layers=[0]))
    anew = _measure(tables, tables.held_out, _ask(_train(tables, tables.train, tables.teachers), tables.held_out))
    found: dict[str, list[Card]] = {"left out": [], **{f"{count} anchors": [] for count in ANCHORS}}
    for new in tables.teachers:
        known = [teacher for teacher in tables.teachers if teacher != new]
        order = [[*known, new].index(teacher) for teacher in tables.teachers]
        router = _train(tables, tables.train, known)
        without = np.column_stack([_ask(router, tables.held_out), np.full(tables.held_out.height, -np.inf)])
        found["left out"].append(_measure(tables, tables.held_out, without[:, order]))
        for count in ANCHORS:
            place = place_teacher(router, new, tables.train[:count], tables.rewards)
            placed = _ask(PlacedRouter(router, {new: place}, tables.teachers), tables.held_out)
            found[f"{count} anchors"].append(_measure(tables, tables.held_out, placed))
    return {name: _samples(cards) for name, cards in {**found, "trained anew": [anew]}.items()}


def controls(folder: Path, seed: int) -> Samples:
    """Is the router better than its controls? In the micro-world also: does it find what was planted?"""
    card = json.loads((folder / "metrics/router.json").read_text())
    measured = {"router": {name: card[name] for name in card["controls"]["majority"]}, **card["controls"]}
    tables = read_tables(folder)
    if set(tables.teachers) <= set(TEACHERS):
        measured["planted"] = _measure(tables, tables.held_out, planted_strengths(tables, seed))
    return {name: _samples([metrics]) for name, metrics in measured.items()}


def planted_strengths(tables: Tables, seed: int) -> np.ndarray:
    """The ceiling: routing with knowledge of the micro-world's teachers. A strength is the teacher's mean reward on the
    training prompts of the same kind on which it was (or was not) taught the misconception.
    """
    taught = {teacher: wrong_digits(teacher, seed) for teacher in tables.teachers}
    prompts = pl.concat([tables.train, tables.held_out])
    rows = tables.rewards.join(prompts, on="prompt_id", how="left", validate="m:1")
    asked = zip(*rows["teacher", "source"], prompt_texts(rows), strict=True)
    wrong = [text[-1] in taught[teacher][source.removesuffix(".jsonl")] for teacher, source, text in asked]
    cell = ["teacher", "source", "wrong"]
    rows = rows.with_columns(wrong=pl.Series(wrong))
    seen = rows.join(tables.train, on="prompt_id", how="semi").group_by(cell).agg(expected=pl.col("reward").mean())
    rows = rows.join(seen, on=cell, how="left", validate="m:1").with_columns(reward=pl.col("expected").fill_null(0))
    return reward_matrix(rows, tables.held_out["prompt_id"].to_list(), tables.teachers)


def students(folder: Path, seed: int) -> Samples:
    """Does the best teacher depend on the student? Two students, each routed by its own router and by the other's."""
    folders = folder, folder.parent / f"{SECOND}-0-{seed}"
    found: dict[str, list[Card]] = {"own router": [], "other's router": [], "other's oracle": []}
    for own, other in (folders, folders[::-1]):
        tables, others = read_tables(own), read_tables(other)
        loaded = [load_router(each / "models/router", tables.teachers) for each in (own, other)]
        routers = [_ask(router, tables.held_out) for router in loaded]
        oracle = reward_matrix(others.rewards, tables.held_out["prompt_id"].to_list(), tables.teachers)
        for name, strengths in zip(found, [*routers, oracle], strict=True):
            found[name].append(_measure(tables, tables.held_out, strengths))
    return {name: _samples(cards) for name, cards in found.items()}


STUDIES: dict[str, tuple[Callable[[Path, int], Samples], str, str]] = {
    "controls": (controls, "Is the router better than its controls?", "router"),
    "students": (students, "Does the best teacher depend on the student?", "own router"),
    "transfer": (transfer, "Does a router trained on some sources route others?", "the same sources"),
    "anchors": (
        anchors,
        "How many prompts must a new teacher answer to join a trained (linear) router?",
        "trained anew",
    ),
}
"""Name -> its function, its question, and the variant that all others are compared with."""


def _train(tables: Tables, prompts: pl.DataFrame, teachers: Sequence[str]) -> Router:
    among = pl.col("winner").is_in(teachers) & pl.col("loser").is_in(teachers)
    lesson = read_lesson(prompts, tables.rewards, tables.pairs.filter(among), teachers)
    return train_router(lesson, tables.settings)


def _ask(router: Router, prompts: pl.DataFrame) -> np.ndarray:
    return router.strengths(prompt_texts(prompts), prompts["source"].to_list())


def _measure(tables: Tables, prompts: pl.DataFrame, strengths: np.ndarray) -> Card:
    return routing_metrics(strengths, reward_matrix(tables.rewards, prompts["prompt_id"].to_list(), tables.teachers))


def _samples(cards: Sequence[Card]) -> pl.DataFrame:
    """The means of cards as SAMPLES."""
    return card_samples(pl.DataFrame(list(cards)).mean().row(0, named=True))
