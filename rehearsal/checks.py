"""Checks of the results of a profile's run, after a rehearsal."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from persyn.chat import encode_completion
from persyn.errors import InputError
from persyn.models import load_tokenizer
from persyn.router import load_router
from persyn.schemas import DATASET, REWARDS, read_table
from persyn.settings import UNTUNED
from rehearsal.families import family_of

ROOM = 1024
"""Tokens that must be left for a prompt."""


def check(folder: Path, small: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    """Check the results of a project.

    Args:
        folder: the project.
        small: its parameters.
        params: the profile's.

    Returns:
        The checks, in words.

    Raises:
        InputError: names everything that is wrong.
    """
    teachers, strategies = list(small["teachers"]), list(small["strategies"])
    wrong = [
        *_rewards(folder, teachers, _json(folder / "metrics/prompts.json")["parallel"]),
        *_router(folder, teachers),
    ]
    wrong += [fault for name in strategies for fault in _strategy(folder, name, small, params)]
    compared = {*_json(folder / "metrics/comparison.json"), "persyn"}
    beside = {UNTUNED, *small["evaluation"].get("beside", ())}
    if compared != {*strategies, *beside}:
        expected = sorted({*strategies, *beside})
        wrong.append(f"metrics/comparison.json has {sorted(compared)}, and should have {expected}")
    if wrong:
        raise InputError(f"{folder.name} ran, but: {'; '.join(wrong)}")
    return [
        f"{len(teachers)} teachers rewarded and in the router",
        f"{len(strategies)} strategies with a dataset, a student of the right family that can end its turn, and scores",
    ]


def check_contexts(params: Mapping[str, Any]) -> None:
    """Check that every teacher's longest response leaves room for a prompt in the real model's context.

    Raises:
        InputError: a teacher's does not.
    """
    for name, teacher in params["teachers"].items():
        context, most = family_of(teacher["model"]).context, teacher["sampling"]["max_tokens"]
        if most + ROOM > context:
            raise InputError(
                f"teachers.{name}: sampling.max_tokens {most} leaves no {ROOM} tokens for a prompt in the {context} "
                f"that {teacher['model']} reads; lower it to {context - ROOM}"
            )


def _rewards(folder: Path, teachers: list[str], num_parallel: int) -> list[str]:
    rewards = read_table(folder / "data/rewards.parquet", REWARDS)
    counts = dict(rewards.group_by("teacher").len().rows())
    return [
        f"{teacher} has {counts.get(teacher, 0)} rewards, not {num_parallel}"
        for teacher in teachers
        if counts.get(teacher, 0) != num_parallel
    ]


def _router(folder: Path, teachers: list[str]) -> list[str]:
    measured, wrong = set(_json(folder / "metrics/router.json")["share"]), []
    if measured != set(teachers):
        wrong.append(f"the router of metrics/router.json lacks {sorted(set(teachers) - measured)}")
    try:
        load_router(folder / "models/router", teachers)
    except InputError as error:
        wrong.append(str(error))
    return wrong


def _strategy(folder: Path, name: str, small: Mapping[str, Any], params: Mapping[str, Any]) -> list[str]:
    wrong, rows = [], read_table(folder / f"data/dataset/{name}.parquet", DATASET)
    counts = _json(folder / f"metrics/dataset/{name}.json")
    joined = sum(one["kept"] for one in counts.get("mix", {}).values())
    if not 0 < rows.height == counts["rows"] - sum(counts["dropped"].values()) + joined:
        wrong.append(f"dataset {name} has {rows.height} rows of {counts}")
    scores = set(_json(folder / f"metrics/evaluation/{name}.json"))
    missing = [task for task in small["evaluation"]["tasks"] if not any(found.startswith(task) for found in scores)]
    if missing:
        wrong.append(f"evaluation {name} lacks {missing}, it has {sorted(scores)}")
    student = folder / f"models/student/{name}"
    [built] = _json(student / "config.json")["architectures"]
    expected = f"{family_of(params['student']['model']).architecture}ForCausalLM"
    if built != expected:
        wrong.append(f"student {name} is a {built}, not a {expected}")
    return wrong + _ending(student, name, rows)


def _ending(student: Path, name: str, rows: pl.DataFrame) -> list[str]:
    """Check that generation stops at the token with which the student learned to end its turn."""
    tokenizer = load_tokenizer(str(student))
    _, response = encode_completion(tokenizer, "Name a colour.", "Red.", finished=True)
    ends = _json(student / "generation_config.json").get("eos_token_id")
    if response[-1] == tokenizer.eos_token_id and response[-1] in (ends if isinstance(ends, list) else [ends]):
        return []
    taught = tokenizer.convert_ids_to_tokens(response[-1])
    return [f"student {name} is taught to end its turn with {taught}, which nothing stops at (eos is {ends})"]


def _json(path: Path) -> Any:
    return json.loads(path.read_text())
