"""Router: a prompt -> a strength for each teacher, trained on part of the parallel prompts and measured on the rest.

`finetuned` is the paper's (a language model with a coefficient head). `linear` and `smoothing` read a frozen encoder
(`features`). `shrinkage` says how far any of them may be trusted, `worth` what that is worth; `placement` adds a
teacher to a trained router.

Legend: N prompts, M teachers.
"""

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import polars as pl

from persyn.errors import InputError
from persyn.files import read_json
from persyn.models import model_identity
from persyn.router.reading import prompt_texts
from persyn.router.settings import BRADLEY_TERRY, Method, RouterSettings
from persyn.training import Session

if TYPE_CHECKING:
    from persyn.training.monitors import Live

logger = logging.getLogger(__name__)
BESIDE = "beside"
"""The folder, in a saved router's, of the methods trained beside it."""


class Router(Protocol):
    """What routes."""

    teachers: list[str]

    def strengths(
        self, prompts: Sequence[str], sources: Sequence[str] | None = None, features: np.ndarray | None = None
    ) -> np.ndarray:
        """Strengths (N, M), in the order of the prompts and of `teachers`.

        Args:
            prompts: as reading.prompt_texts gives them.
            sources: of the prompts; only methods source and blend read them.
            features: of the prompts, where they are known already (features.embed).
        """

    def save(self, folder: str | Path) -> None:
        """Write it to a folder, for load_router."""


@dataclass(frozen=True)
class Lesson:
    """What a router learns from."""

    prompts: pl.DataFrame
    """PROMPTS to train on, in the order of prompt_id."""
    rewards: np.ndarray
    """(N, M), Eq. 2."""
    pairs: pl.DataFrame
    """PAIRS of these prompts, and maybe of others."""
    teachers: Sequence[str]
    validation: tuple[Sequence[str], np.ndarray] | None = None
    """Prompts and rewards that end the fine-tuning early."""
    features: np.ndarray | None = None
    """(N, L, H), features.embed; None for the methods that read none."""

    def part(self, rows: np.ndarray) -> "Lesson":
        """These rows of it."""
        features = None if self.features is None else self.features[rows]
        return replace(self, prompts=self.prompts[rows], rewards=self.rewards[rows], features=features)

    def teaches(self, method: Method) -> bool:
        """Whether a method can learn from it: linear and finetuned need a pair."""
        with_pairs = self.prompts["prompt_id"].is_in(self.pairs["prompt_id"].to_list())
        return method not in BRADLEY_TERRY or bool(with_pairs.any())

    def shuffled(self, seed: int) -> "Lesson":
        """The same prompts, each with the rewards and pairs of another one. A router that learns from this, a control,
        can learn which teachers win, not on which prompts.
        """
        order = np.random.default_rng(seed).permutation(len(self.rewards))
        names = self.prompts["prompt_id"]
        moved = pl.DataFrame({"prompt_id": names[order], "now": names})
        pairs = self.pairs.join(moved, on="prompt_id", how="inner").with_columns(prompt_id="now").drop("now")
        return replace(self, rewards=self.rewards[order], pairs=pairs)


def fit_router(
    prompts: pl.DataFrame,
    rewards: pl.DataFrame,
    pairs: pl.DataFrame,
    teachers: Sequence[str],
    settings: RouterSettings,
    anchored: Sequence[str] = (),
    device_batch_size: int | None = None,
    live: "Live | None" = None,
) -> tuple["Routers", dict[str, Any], pl.DataFrame]:
    """Train a router on part of the parallel prompts and measure it on the rest, beside its controls.

    Args:
        prompts: PROMPTS of the parallel set; those without rewards are ignored.
        rewards: REWARDS of the parallel set.
        pairs: PAIRS of the parallel set.
        teachers: the order of the strengths.
        anchored: teachers that join the trained router by the prompts on which they have rewards; the router is
            measured without them. It is not trained again if that of the same inputs without them is kept.
        device_batch_size: prompts in one forward pass of the training at most; None takes the whole batch.
        live: receives the curves of the router's training, not of its controls', while it runs.

    Resumes from the last checkpoint of a killed run with the same inputs. If several processes train together, only
    the main one returns; the others end.

    Returns:
        The router and those beside it, the metrics of metrics/router.json (metrics.health_card and worth.worth; placed:
        the anchored teachers' placement), and its metrics.reliability.

    Raises:
        InputError: a parameter is wrong, or no pair belongs to a prompt.
    """
    from persyn.router.kept import Kept
    from persyn.router.placement import PlacedRouter, place_teacher
    from persyn.training.trainer import checkpoints, leave_to_main

    known = [teacher for teacher in teachers if teacher not in anchored]
    pairs = pairs.filter(pl.col("winner").is_in(known) & pl.col("loser").is_in(known))
    inputs = [table.write_json() for table in (prompts, rewards.filter(pl.col("teacher").is_in(known)), pairs)]
    decides = [*inputs, known, settings.model_dump(mode="json"), model_identity(settings.model, settings.revision)]
    kept = Kept(*decides)
    measured = kept.measured() if anchored else None
    if measured:
        leave_to_main()
        logger.info("no router is trained: the one of the same inputs without %s is kept", ", ".join(anchored))
        beside: dict[str, Router] = {method: load_router(kept.router, known, method) for method in settings.beside}
        router, (card, bins) = Routers(load_router(kept.router, known), beside), measured
    else:
        with checkpoints(*decides) as folder:
            session = Session(folder / "router", device_batch_size, live=live)
            router, card, bins = _train_measured(prompts, rewards, pairs, known, settings, session)
            kept.keep(router, card, bins)
    if not anchored:
        return router, card | {"placed": {}}, bins
    blends = {
        method: {name: place_teacher(each, name, prompts, rewards) for name in anchored}
        for method, each in [(None, router.router), *router.beside.items()]
    }
    whole = Routers(
        PlacedRouter(router.router, blends[None], teachers),
        {method: PlacedRouter(each, blends[method], teachers) for method, each in router.beside.items()},
    )
    return whole, card | {"placed": blends[None]}, bins


def _train_measured(
    prompts: pl.DataFrame,
    rewards: pl.DataFrame,
    pairs: pl.DataFrame,
    known: list[str],
    settings: RouterSettings,
    session: Session,
) -> tuple["Routers", dict[str, Any], pl.DataFrame]:
    """As fit_router, of teachers without anchors."""
    from persyn.router.features import embed, encoder_of
    from persyn.router.metrics import reward_matrix
    from persyn.training.trainer import leave_to_main

    assert session.scratch is not None
    folder = session.scratch.parent
    train, checked, held_out = router_split(prompts, rewards, settings)
    texts = [prompt_texts(part) for part in (train, held_out)]
    features = embed([*texts[0], *texts[1]], **encoder_of(settings))
    lesson = read_lesson(train, rewards, pairs, known, features[: train.height], checked)
    asked = texts[1], held_out["source"].to_list(), features[train.height :]
    router, trust = fit_trusted(lesson, settings, session)
    session = replace(session, live=None)
    shuffled = train_router(lesson.shuffled(settings.seed), settings, replace(session, scratch=folder / "shuffled"))
    beside: dict[str, Router] = {
        name: fit_trusted(lesson, settings.for_method(name), replace(session, scratch=folder / name))[0]
        for name in settings.beside
    }
    leave_to_main()
    unseen = reward_matrix(rewards, held_out["prompt_id"].to_list(), known)
    controls = {"shuffled": shuffled} | ({"unshrunk": router.router} if trust else {}) | beside
    card, bins = measure(lesson, settings, router, trust, asked, unseen, controls)
    num_validation = checked.height if checked is not None else 0
    counts = {"num_train": train.height, "num_validation": num_validation, "num_held_out": held_out.height}
    return Routers(router, beside), card | counts, bins


class Routers:
    """A router, and the methods trained beside it: name -> router."""

    def __init__(self, router: Router, beside: Mapping[str, Router]) -> None:
        self.router, self.teachers, self.beside = router, router.teachers, beside
        self.strengths = router.strengths

    def save(self, folder: str | Path) -> None:
        """Write all of them, for load_router."""
        self.router.save(folder)
        for name, router in self.beside.items():
            router.save(Path(folder) / BESIDE / name)


def read_lesson(
    prompts: pl.DataFrame,
    rewards: pl.DataFrame,
    pairs: pl.DataFrame,
    teachers: Sequence[str],
    features: np.ndarray | None = None,
    validation: pl.DataFrame | None = None,
) -> Lesson:
    """What a router learns on these prompts.

    Args:
        prompts: PROMPTS, each with REWARDS of all the teachers.
        pairs: PAIRS; those of other prompts are ignored.
        features: (N, L, H) of the prompts.
        validation: as `prompts`: fine-tuning stops early by the regret on them.
    """
    from persyn.router.metrics import reward_matrix

    checked = None
    if validation is not None:
        checked = prompt_texts(validation), reward_matrix(rewards, validation["prompt_id"].to_list(), teachers)
    order = prompts["prompt_id"].arg_sort()
    lesson = Lesson(
        prompts, reward_matrix(rewards, prompts["prompt_id"].to_list(), teachers), pairs, teachers, checked, features
    )
    return lesson.part(order.to_numpy())


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


def train_router(lesson: Lesson, settings: RouterSettings, session: Session | None = None) -> Router:
    """Train one router; nothing is shrunk.

    Args:
        session: where and how a fine-tuning runs; other methods ignore it. If its scratch folder holds the trained
            router of a killed run, this is returned.

    Raises:
        InputError: the method learns from pairs, and none belongs to a prompt.
    """
    from persyn.router.features import embed, encoder_of
    from persyn.router.finetuned import finetune_router
    from persyn.router.linear import fit_linear_router
    from persyn.router.losses import win_matrices
    from persyn.router.smoothing import fit_smoothing_router

    prompts, method = lesson.prompts, settings.method
    features = None if method in ("source", "finetuned") else lesson.features
    if features is None and method not in ("source", "finetuned"):
        features = embed(prompt_texts(prompts), **encoder_of(settings))
    if method not in BRADLEY_TERRY:
        return fit_smoothing_router(features, prompts["source"].to_list(), lesson.rewards, lesson.teachers, settings)
    wins = win_matrices(lesson.pairs, lesson.teachers, settings.by_margin)
    rows = np.flatnonzero(prompts["prompt_id"].is_in(list(wins)).to_numpy())
    if not len(rows):
        raise InputError(f"none of the {len(wins)} prompts with pairs is among the {prompts.height} to train on")
    labels: Sequence[np.ndarray] = [wins[identity] for identity in prompts["prompt_id"][rows]]
    if settings.loss == "listwise":
        labels = list(lesson.rewards[rows])
    if features is not None:
        return fit_linear_router(features[rows], labels, lesson.teachers, settings)
    texts, session = prompt_texts(prompts[rows]), session or Session()
    with nullcontext(session.scratch) if session.scratch else tempfile.TemporaryDirectory() as folder:
        place = replace(session, scratch=Path(folder))
        return finetune_router(texts, labels, lesson.teachers, settings, place, lesson.validation)


def fit_trusted(
    lesson: Lesson, settings: RouterSettings, session: Session | None = None
) -> tuple[Any, dict[str, Any] | None]:
    """Train a router and shrink it as far as cross-validation on its own training prompts says.

    With one training prompt nothing can be cross-validated, and nothing is learnt from folds without a pair (linear and
    finetuned); what is not supported falls back to the one best teacher.

    Args:
        session: as train_router's; routers of the folds have their scratch folders beside its own. Every one of several
            processes must call this, as all of them train each router together.

    Returns:
        The router (a ShrunkRouter, unless settings.shrink is false), and shrinkage.choose_trust's findings, or None.
    """
    from persyn.router.shrinkage import ShrunkRouter, choose_trust, cross_validate, fit_temperature
    from persyn.training.trainer import is_main

    session = session or Session()
    texts, sources = prompt_texts(lesson.prompts), lesson.prompts["source"].to_list()
    router = train_router(lesson, settings, session)
    if not settings.shrink:
        return router, None

    def predict(rows: np.ndarray) -> np.ndarray:
        name = f"{settings.method}-{hashlib.sha256(rows.tobytes()).hexdigest()[:12]}"
        scratch = session.scratch.parent / name if session.scratch else None
        part = lesson.part(rows)
        if not part.teaches(settings.method):
            return np.zeros(lesson.rewards.shape)
        trained = train_router(part, settings, replace(session, scratch=scratch, live=None))
        if scratch and is_main():
            for checkpoint in scratch.glob("checkpoint-*"):  # several times as large as the model, in every fold
                shutil.rmtree(checkpoint)
        return trained.strengths(texts, sources, lesson.features)

    is_reward = settings.method not in BRADLEY_TERRY
    found = cross_validate(predict, lesson.rewards, settings.folds, settings.seed, is_reward)
    trust = choose_trust(found, lesson.rewards, settings.seed)
    centre = router.strengths(texts, sources, lesson.features).mean(axis=0)
    temperature = fit_temperature(found, lesson.rewards, trust["trust"])
    scale = trust["trust"] * trust["slope"]
    return ShrunkRouter(router, lesson.rewards.mean(axis=0), centre, scale, temperature), trust


def measure(
    lesson: Lesson,
    settings: RouterSettings,
    router: Router,
    trust: dict[str, Any] | None,
    asked: tuple[list[str], list[str], np.ndarray],
    rewards: np.ndarray,
    others: Mapping[str, Router],
) -> tuple[dict[str, Any], pl.DataFrame]:
    """The card of a router, and metrics.reliability.

    Args:
        trust: as fit_trusted.
        asked: texts, sources and features of the prompts that measure.
        rewards: (N, M) on them.
        others: name -> router to show beside it, with the controls.

    Returns:
        metrics.health_card; worth.noise_floor, unless the method is finetuned (two more trainings) or a half teaches
        it nothing; and worth.worth, if cross-validated.
    """
    from persyn.router.metrics import health_card, majority_strengths, reliability
    from persyn.router.worth import noise_floor, worth

    controls = {"majority": majority_strengths(lesson.rewards, len(rewards))}
    methods: tuple[Method, ...] = ("source", "knn")
    for method in methods:
        controls[method] = train_router(lesson, settings.for_method(method)).strengths(*asked)
    controls |= {name: each.strengths(*asked) for name, each in others.items()}
    strengths = router.strengths(*asked)
    card = health_card(strengths, rewards, lesson.teachers, controls)
    if card["collapsed"] and (trust is None or trust["trust"]):
        logger.warning("the router gives almost everything to one teacher, the oracle does not: %s", card["share"])
    halves = [lesson.part(np.arange(start, len(lesson.rewards), 2)) for start in (0, 1)]
    possible = all(len(half.rewards) and half.teaches(settings.method) for half in halves)
    if possible and settings.method != "finetuned":
        said = [train_router(half, settings).strengths(*asked) for half in halves]
        card["noise_floor"] = noise_floor(*said, *(half.rewards for half in halves))
    if trust:
        card |= worth(trust, lesson.rewards, lesson.teachers)
    return card, reliability(strengths, rewards)


def load_router(folder: str | Path, teachers: Sequence[str], method: Method | None = None) -> Router:
    """Read a saved router, or the one of `method` that was trained beside it.

    Raises:
        InputError: it was trained for other teachers than `teachers`, or that method was not trained.
    """
    from persyn.router.finetuned import FinetunedRouter
    from persyn.router.linear import CONFIG, LinearRouter
    from persyn.router.placement import PLACED, PlacedRouter
    from persyn.router.shrinkage import SHRINKAGE, UNSHRUNK, ShrunkRouter
    from persyn.router.smoothing import CONFIG as SMOOTHING
    from persyn.router.smoothing import SmoothingRouter

    place = Path(folder) / BESIDE / method if method else Path(folder)
    if not place.is_dir():
        if method:
            raise InputError(f"{place} does not exist; name {method} in router.beside, then run `dvc repro router`")
        raise InputError(f"{place} does not exist; run `dvc repro router`")
    router: Router
    shrunk = (place / SHRINKAGE).is_file()
    inner = place / UNSHRUNK if shrunk else place
    if (inner / CONFIG).is_file():
        router = LinearRouter.load(inner)
    elif (inner / SMOOTHING).is_file():
        router = SmoothingRouter.load(inner)
    else:
        router = FinetunedRouter.load(inner)
    if shrunk:
        router = ShrunkRouter(router, **read_json(place / SHRINKAGE))
    if (place / PLACED).is_file():
        router = PlacedRouter(router, **read_json(place / PLACED))
    if router.teachers != list(teachers):
        raise InputError(
            f"{folder} routes to {router.teachers}, params.yaml names {list(teachers)}; run `dvc repro router`"
        )
    return router


def route_strengths(router: Router, parts: Iterable[pl.DataFrame]) -> np.ndarray:
    """Strengths (N, M) of prompts that come in parts, whose texts and features are in memory one part at a time.

    Args:
        parts: PROMPTS.
    """
    return np.concatenate([router.strengths(prompt_texts(part), part["source"].to_list()) for part in parts])
