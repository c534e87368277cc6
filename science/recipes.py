"""Recipes: a question -> its variants under every seed -> one table and one plot.

A variant's router and its students' accuracy become rows of SAMPLES, so that one comparison over seeds
(comparison.compare_seeds) serves all recipes.
"""

import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from pydantic import Field
from ruamel.yaml import YAML
from tqdm import tqdm

from persyn.comparison import compare_seeds
from persyn.errors import InputError, nearest
from persyn.schemas import SAMPLES, read_table
from persyn.settings import Settings
from science.project import RAW, WORK, make_project, reproduce, seeded, with_changes

ROUTER = ("hit_at_1", "hit_at_3", "hit_at_3_oracle", "regret", "pair_accuracy", "calibration")
"""The metrics taken from metrics/router.json."""


class Recipe(Settings):
    """One row of recipes.yaml."""

    question: str
    reference: str
    """The variant or strategy that all others are compared with."""
    axis: str = "strategy"
    """The name of what differs between the variants."""
    variants: dict[str, dict[str, Any]] = Field(default_factory=dict)
    """Label -> dotted path -> value. If empty, the strategies in `students` are compared."""
    students: list[str] = Field(default_factory=list)
    """Strategies whose student is trained and evaluated. `untuned`, or a name of evaluation.beside, is a finished model
    that is evaluated as it is."""
    changes: dict[str, Any] = Field(default_factory=dict)
    """Set in all variants."""


@dataclass(frozen=True)
class Job:
    """One variant under one seed: a project and its targets."""

    recipe: str
    variant: str
    seed: int
    name: str
    """Of the project."""
    params: Mapping[str, Any]
    targets: tuple[str, ...]
    raw: Path
    """The folder of raw prompts."""

    @property
    def folder(self) -> Path:
        """The project."""
        return WORK / self.name


def load_recipes(path: str | Path) -> dict[str, Recipe]:
    """The recipes of a file.

    Raises:
        InputError: a field is unknown or missing, or the reference is not among the variants.
    """
    recipes = {}
    for name, row in YAML(typ="safe", pure=True).load(Path(path)).items():
        recipes[name] = recipe = Recipe.parse(row, f"recipe {name}")
        compared = list(recipe.variants or recipe.students)
        if recipe.reference not in compared:
            raise InputError(f"recipe {name}: reference {recipe.reference!r} is not among {', '.join(compared)}")
    return recipes


def plan_jobs(
    profile: str, params: Mapping[str, Any], recipes: Mapping[str, Recipe], seeds: Sequence[int], raw: Path = RAW
) -> list[Job]:
    """Every variant of every recipe under every seed. `profile` is its name, `raw` its folder of raw prompts.

    Raises:
        InputError: a student is neither a strategy nor a finished model.
    """
    jobs = []
    for seed, (name, recipe) in itertools.product(seeds, recipes.items()):
        for number, (variant, changes) in enumerate((recipe.variants or {"": {}}).items()):
            changed = with_changes(seeded(params, seed), {**recipe.changes, **changes})
            known = [*changed["strategies"], "untuned", *changed["evaluation"].get("beside", ())]
            for student in recipe.students:
                if student not in known:
                    found = f"{student}{nearest(student, known)}"
                    raise InputError(f"recipe {name}: no strategy and no finished model is called {found}")
            trained = [student for student in recipe.students if student in changed["strategies"]]
            finished = ["beside"] if len(trained) < len(recipe.students) else []
            targets = ("router", *finished, *(f"evaluation@{strategy}" for strategy in trained))
            jobs.append(Job(name, variant, seed, f"{profile}/{name}-{number}-{seed}", changed, targets, raw))
    return jobs


def run_jobs(jobs: Sequence[Job], workers: int, prepare: Callable[[int], None]) -> None:
    """Run all jobs, several at once, with one progress bar; after a failure no further job starts.

    Args:
        prepare: called once for each seed, before its first job. The other jobs of the seed wait for the first one,
            since they reuse its results from the cache.
    """
    leads: dict[int, Future[None]] = {}

    def run(job: Job, lead: Future[None] | None) -> None:
        if lead:
            lead.result()
        else:
            prepare(job.seed)
        reproduce(make_project(job.name, job.params, job.seed, job.raw), *job.targets)

    order = sorted(jobs, key=lambda job: job is not next(each for each in jobs if each.seed == job.seed))
    with ThreadPoolExecutor(workers) as pool, tqdm(total=len(jobs), unit="run") as bar:
        futures: dict[Future[None], Job] = {}
        for job in order:
            future = pool.submit(run, job, leads.get(job.seed))
            leads.setdefault(job.seed, future)
            futures[future] = job
        for future in as_completed(futures):
            job = futures[future]
            bar.set_postfix_str(f"{job.recipe} {job.variant} {job.seed}")
            bar.update()
            if future.exception():
                pool.shutdown(cancel_futures=True)
            future.result()


def collect(recipe: Recipe, jobs: Sequence[Job]) -> dict[str, Any]:
    """The result of a recipe: compare_seeds over its variants, or over its strategies."""
    samples: dict[str, list[pl.DataFrame]] = {}
    for job in jobs:
        evaluated = {student: _responses(job, student) for student in recipe.students}
        if recipe.variants:
            card = json.loads((job.folder / "metrics/router.json").read_text())
            tables = [card_samples({metric: card[metric] for metric in ROUTER}), *evaluated.values()]
            samples.setdefault(job.variant, []).append(pl.concat(tables))
        else:
            for strategy, table in evaluated.items():
                samples.setdefault(strategy, []).append(table)
    return compare_seeds(samples, recipe.reference)


def _responses(job: Job, student: str) -> pl.DataFrame:
    """SAMPLES of one student, trained or finished."""
    folder = "evaluation" if student in job.params["strategies"] else "beside"
    return read_table(job.folder / f"data/{folder}/{student}.parquet", SAMPLES)


def card_samples(card: Mapping[str, float | None]) -> pl.DataFrame:
    """A router's metrics as SAMPLES: one item a metric. One that is None (Hit@3 of three teachers) is left out."""
    rows = [("router", "card", metric, float(value), "", None) for metric, value in card.items() if value is not None]
    return pl.DataFrame(rows, schema=SAMPLES, orient="row")
