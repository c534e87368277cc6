"""What a report is made of: the run that it shows, and the parts of its page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl
from markupsafe import Markup

from persyn.report.svg import STRATEGY_COLOURS, Look, looks

REFERENCE = "persyn"  # the strategy that all others are compared with
Tables = Mapping[str, pl.DataFrame]


@dataclass(frozen=True)
class Experiment:
    """A run of DVC's with other parameters."""

    name: str
    params: Mapping[str, Any]
    allocation: Mapping[str, Any]
    """strategy -> metrics/allocation/<strategy>.json."""
    evaluation: Mapping[str, Any]
    """strategy -> metrics/evaluation/<strategy>.json."""


@dataclass(frozen=True)
class Run:
    """All that a project has. What is not made yet is None, or left out."""

    params: Mapping[str, Any]
    name: str = "demo"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    """prompts, defects, rewards, router, comparison, cost: the files of metrics/; allocation, dataset, evaluation:
    strategy -> its file."""
    prompts: pl.DataFrame | None = None
    responses: Tables = field(default_factory=dict)
    quality: Tables = field(default_factory=dict)
    learnability: Tables = field(default_factory=dict)
    defects: pl.DataFrame | None = None
    rewards: pl.DataFrame | None = None
    pairs: pl.DataFrame | None = None
    routes: Tables = field(default_factory=dict)
    routed: Tables = field(default_factory=dict)
    dataset: Tables = field(default_factory=dict)
    samples: Tables = field(default_factory=dict)
    training: Tables = field(default_factory=dict)
    """strategy -> step, loss and what else its student's training has noted."""
    reliability: pl.DataFrame | None = None
    experiments: Sequence[Experiment] = ()
    experiments_note: str = ""
    """Why there are none, if that was not to be found out."""

    def metric(self, name: str) -> Mapping[str, Any]:
        """A metrics file, or {strategy: file}; empty where it is not made yet."""
        return self.metrics.get(name) or {}

    def section(self, name: str) -> Mapping[str, Any]:
        """A section of params.yaml; empty where there is none."""
        return self.params.get(name) or {}

    @property
    def anchored(self) -> list[str]:
        """Teachers that answer a few parallel prompts only, by params.yaml."""
        return [name for name, entry in self.section("teachers").items() if (entry or {}).get("anchors") is not None]

    @property
    def teachers(self) -> dict[str, Look]:
        """Teacher -> how it looks: those of params.yaml, then any other that something was allotted to."""
        others = {teacher for found in self.metric("allocation").values() for teacher in found["share"]}
        others |= {
            teacher for run in self.experiments for found in run.allocation.values() for teacher in found["share"]
        }
        return looks([*self.section("teachers"), *sorted(others)])

    @property
    def strategies(self) -> dict[str, Look]:
        """Strategy -> how it looks."""
        return looks(self.section("strategies"), STRATEGY_COLOURS)


@dataclass(frozen=True)
class Chart:
    """A picture, its legend (how a name looks) and what it shows."""

    svg: Markup
    caption: str
    legend: Mapping[str, Look] = field(default_factory=dict)
    marks: str = "bar"
    """What the legend shows a look by: bar, line or dot."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `words` columns are words, the others numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing` are the stages that must run for what it lacks."""

    id: str
    title: str
    lead: str
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    notes: Sequence[str] = ()
    missing: Sequence[str] = ()


def count(number: float | None) -> str:
    return "—" if number is None else f"{number:,.0f}"


def percent(share: float | None) -> str:
    return "—" if share is None else f"{100 * share:.1f} %"


def decimal(number: float | None, places: int = 3, sign: bool = False) -> str:
    """A number that is not there is a dash; the minus is a true one."""
    if number is None:
        return "—"
    return f"{number:{'+' if sign else ''}z.{places}f}".replace("-", "\u2212")


def interval(bounds: Sequence[float] | None) -> str:
    return "—" if bounds is None else f"{decimal(bounds[0], sign=True)} to {decimal(bounds[1], sign=True)}"


def listed(names: Sequence[str], most: int = 6) -> str:
    """a, b and c; of many, the first and how many more."""
    names = list(names)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
