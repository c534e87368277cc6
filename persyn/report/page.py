"""The parts of a page, the looks of teachers and strategies, and the formats of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from markupsafe import Markup

from persyn.comparison import detectable
from persyn.project.snapshot import Snapshot
from persyn.report.svg import STRATEGY_COLOURS, Look, looks

REFERENCE = "persyn"  # the strategy that all others are compared with


def teacher_looks(run: Snapshot) -> dict[str, Look]:
    """Teacher -> its look: those of params.yaml, then any other with an allocation."""
    shown = (run, *run.experiments)
    others = {teacher for each in shown for found in each.metric("allocation").values() for teacher in found["share"]}
    return looks([*run.teachers, *sorted(others)])


def strategy_looks(run: Snapshot) -> dict[str, Look]:
    """Strategy -> its look."""
    return looks(run.section("strategies"), STRATEGY_COLOURS)


@dataclass(frozen=True)
class Chart:
    """A picture, its caption and its legend (name -> look)."""

    svg: Markup
    caption: str
    legend: Mapping[str, Look] = field(default_factory=dict)
    marks: str = "bar"
    """The symbol in the legend: bar, line or dot."""


@dataclass(frozen=True)
class Table:
    """Rows of text; the first `words` columns hold words, the others numbers."""

    caption: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    folded: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page. `missing`: the stages that must still run for it."""

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
    """A number with a typographic minus; a dash for None."""
    if number is None:
        return "—"
    return f"{number:{'+' if sign else ''}z.{places}f}".replace("-", "\u2212")


def interval(bounds: Sequence[float] | None) -> str:
    return "—" if bounds is None else f"{decimal(bounds[0], sign=True)} to {decimal(bounds[1], sign=True)}"


def smallest(found: Mapping[str, Any]) -> str:
    """The smallest detectable difference of a comparison; in words where none could be found."""
    told = detectable(found)
    return "—" if told == "-" else told


def listed(names: Sequence[str], most: int = 6) -> str:
    """`a, b and c`; of many, the first ones and the number of the others."""
    names = list(names)
    if len(names) > most:
        names = [*names[: most - 1], f"{len(names) - most + 1} more"]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
