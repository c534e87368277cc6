"""Router: a prompt -> a Bradley-Terry strength for each teacher, trained on part of the parallel prompts and measured
on the rest. `finetuned` is the paper's (a language model with a coefficient head), `linear` a frozen encoder with one
linear layer; `placement` adds a teacher to a trained router.

Legend: N prompts, M teachers.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from persyn.errors import InputError
from persyn.models import model_identity
from persyn.router.settings import RouterSettings
from persyn.training import Session

if TYPE_CHECKING:
    from persyn.training.monitors import Live


class Router(Protocol):
    """What routes."""

    teachers: list[str]

    def strengths(self, prompts: Sequence[str]) -> np.ndarray:
        """Strengths (N, M), in the order of the prompts and of `teachers`."""

    def save(self, folder: str | Path) -> None:
        """Write it to a folder, for load_router."""


def fit_router(
    prompts: pl.DataFrame,
    rewards: pl.DataFrame,
    pairs: pl.DataFrame,
    teachers: Sequence[str],
    settings: RouterSettings,
    anchored: Sequence[str] = (),
    device_batch_size: int | None = None,
    live: "Live | None" = None,
) -> tuple[Router, dict[str, Any], pl.DataFrame]:
    """Train a router on part of the parallel prompts and measure it on the rest, beside its controls.

    Args:
        prompts: PROMPTS of the parallel set; those without rewards are ignored.
        rewards: REWARDS of the parallel set.
        pairs: PAIRS of the parallel set.
        teachers: the order of the strengths.
        anchored: teachers that join the trained router by the prompts on which they have rewards; the router is
            measured without them.
        device_batch_size: prompts in one forward pass of the training at most; None takes the whole batch.
        live: receives the curves of the router's training, not of its control's, while it runs.

    Resumes from the last checkpoint of a killed run with the same inputs. If several processes train together, only
    the main one returns; the others end.

    Returns:
        The router, the metrics of metrics/router.json (metrics.health_card; placed: the anchored teachers' placement),
        and its metrics.reliability.

    Raises:
        InputError: a parameter is wrong, or no pair belongs to a prompt.
    """
    from persyn.router.linear import embed
    from persyn.router.metrics import (
        health_card,
        knn_strengths,
        majority_strengths,
        reliability,
        reward_matrix,
        source_strengths,
    )
    from persyn.router.placement import PlacedRouter, place_teacher
    from persyn.training.trainer import checkpoints, leave_to_main

    known = [teacher for teacher in teachers if teacher not in anchored]
    pairs = pairs.filter(pl.col("winner").is_in(known) & pl.col("loser").is_in(known))
    train, checked, held_out = router_split(prompts, rewards, settings)
    tables = train, rewards, pairs, known, settings, checked
    inputs = [table.write_json() for table in (prompts, rewards, pairs)]
    with checkpoints(
        *inputs, known, settings.model_dump(), model_identity(settings.model, settings.revision)
    ) as folder:
        router = train_router(*tables, False, Session(folder / "router", device_batch_size, live))
        shuffled = train_router(*tables, True, Session(folder / "shuffled", device_batch_size))
        leave_to_main()
        texts, learnt = held_out["prompt"].to_list(), train["prompt"].to_list()
        seen, unseen = (reward_matrix(rewards, part["prompt_id"].to_list(), known) for part in (train, held_out))
        vectors = embed(learnt + texts, settings.model, settings.revision, settings.max_length)
        strengths = router.strengths(texts)
        controls = {
            "majority": majority_strengths(seen, len(texts)),
            "source": source_strengths(train["source"].to_list(), seen, held_out["source"].to_list()),
            "knn": knn_strengths(vectors[: len(learnt)], seen, vectors[len(learnt) :], settings.neighbours),
            "shuffled": shuffled.strengths(texts),
        }
        card = health_card(strengths, unseen, known, controls)
        num_validation = checked.height if checked is not None else 0
        counts = {"num_train": train.height, "num_validation": num_validation, "num_held_out": held_out.height}
        placed = {name: place_teacher(router, name, prompts, rewards) for name in anchored}
        whole = PlacedRouter(router, placed, teachers) if placed else router
    return whole, card | counts | {"placed": placed}, reliability(strengths, unseen)


def router_split(
    prompts: pl.DataFrame, rewards: pl.DataFrame, settings: RouterSettings
) -> tuple[pl.DataFrame, pl.DataFrame | None, pl.DataFrame]:
    """The prompts that train the router, those that stop its training early (or None), and those that only measure it.

    Args:
        prompts: PROMPTS of the parallel set; those without rewards are left out.

    Raises:
        InputError: the settings leave nothing to train on, or to measure on.
    """
    from persyn.router.metrics import split_prompts

    train, held_out = split_prompts(prompts.join(rewards, on="prompt_id", how="semi"), settings.holdout)
    if settings.num_train is not None:
        if not 0 < settings.num_train <= train.height:
            raise InputError(
                f"router.num_train is {settings.num_train}; it must be 1 to {train.height}, what router.holdout leaves"
            )
        train = train[: settings.num_train]
    if not settings.validation:
        return train, None, held_out
    return *split_prompts(train, settings.validation, "router.validation"), held_out


def train_router(
    prompts: pl.DataFrame,
    rewards: pl.DataFrame,
    pairs: pl.DataFrame,
    teachers: Sequence[str],
    settings: RouterSettings,
    validation: pl.DataFrame | None = None,
    shuffled: bool = False,
    session: Session | None = None,
) -> Router:
    """Train one router. One forward pass per prompt serves all of the prompt's pairs.

    Args:
        prompts: columns prompt_id and prompt; those without a pair are ignored.
        rewards: REWARDS of these prompts, and of those of `validation`.
        pairs: PAIRS of these prompts.
        validation: as `prompts`: training stops early by the regret on them.
        shuffled: whether each prompt gets another one's pairs. Such a router, a control, can learn which teachers win,
            not on which prompts.
        session: where and how it runs; the light router ignores it.

    Raises:
        InputError: no pair belongs to a prompt.
    """
    from persyn.router.finetuned import finetune_router
    from persyn.router.linear import fit_light_router
    from persyn.router.losses import win_matrices
    from persyn.router.metrics import reward_matrix, shuffle_targets

    targets: Mapping[str, np.ndarray] = win_matrices(pairs, teachers, settings.by_margin)
    with_pairs = prompts.sort("prompt_id").filter(pl.col("prompt_id").is_in(list(targets)))
    if with_pairs.is_empty():
        raise InputError(f"none of the {len(targets)} prompts with pairs is among the {prompts.height} to train on")
    identities, texts = with_pairs["prompt_id"].to_list(), with_pairs["prompt"].to_list()
    if settings.loss == "listwise":
        targets = dict(zip(identities, reward_matrix(rewards, identities, teachers), strict=True))
    labels = [targets[identity] for identity in identities]
    labels = shuffle_targets(labels, settings.seed) if shuffled else labels
    if settings.light is not None:
        return fit_light_router(texts, labels, teachers, settings, settings.light)
    checked = None
    if validation is not None:
        checked = validation["prompt"].to_list(), reward_matrix(rewards, validation["prompt_id"].to_list(), teachers)
    session = session or Session()
    with nullcontext(session.scratch) if session.scratch else tempfile.TemporaryDirectory() as folder:
        return finetune_router(texts, labels, teachers, settings, replace(session, scratch=Path(folder)), checked)


def load_router(folder: str | Path, teachers: Sequence[str]) -> Router:
    """Read a saved router.

    Raises:
        InputError: it was trained for other teachers than `teachers`.
    """
    from persyn.router.finetuned import FinetunedRouter
    from persyn.router.linear import CONFIG, LightRouter
    from persyn.router.placement import PLACED, PlacedRouter

    placed = Path(folder) / PLACED
    router: Router = LightRouter.load(folder) if (Path(folder) / CONFIG).is_file() else FinetunedRouter.load(folder)
    if placed.is_file():
        router = PlacedRouter(router, **json.loads(placed.read_text()))
    if router.teachers != list(teachers):
        raise InputError(
            f"{folder} routes to {router.teachers}, params.yaml names {list(teachers)}; run `dvc repro router`"
        )
    return router
