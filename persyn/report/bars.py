"""Bar charts of shares, measures and costs, each an svg element of the page."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from persyn.report.svg import INK, PAPER, RULE, Look, render, short

WIDTH = 1060  # pixels, of the page's text
ROW = 26  # pixels of a bar with its gap


def stacked_shares(name: str, title: str, shares: pl.DataFrame, looks: Mapping[str, Look]) -> Markup:
    """Stacked bars of `row`, `teacher`, `share`: a bar per row, a part per teacher, in order of appearance."""
    rows = shares["row"].unique(maintain_order=True).to_list()

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(rows))
        for teacher, look in looks.items():
            of = dict(shares.filter(teacher=teacher).select("row", "share").iter_rows())
            width = np.array([of.get(row, 0.0) for row in rows])
            if width.any():
                axes.barh(range(len(rows)), width, 0.72, left, color=look.colour, hatch=look.hatch, edgecolor=PAPER)
            for place in np.flatnonzero(width >= 0.06):
                _inside(axes, left[place] + width[place] / 2, place, f"{width[place]:.0%}", look)
            left += width
        name_rows(axes, rows)
        axes.set_xlim(0, max(1.0, left.max()))
        in_percent(axes.xaxis)

    return render(name, title, (WIDTH, ROW * len(rows) + 50), paint)


def small_bars(name: str, title: str, panels: Mapping[str, Mapping[str, float]], first: str) -> Markup:
    """A panel for each measure with a bar for each name; that of `first` in colour, the others grey."""
    rows = list(next(iter(panels.values())))

    def paint(figure: Figure) -> None:
        for axes, (measure, values) in zip(figure.subplots(1, len(panels), sharey=True), panels.items(), strict=True):
            bars = [values[row] for row in rows]
            colours = ["#0072b2" if row == first else "#9a9a9a" for row in rows]
            drawn = axes.barh(range(len(rows)), bars, 0.66, color=colours)
            axes.bar_label(drawn, [f"{value:.3f}" for value in bars], padding=4, color=INK, fontsize=11)
            axes.set_title(measure)
            axes.set_xlim(min(0, *bars) * 1.4, max(*bars, 0.01) * 1.4)
            name_rows(axes, rows)
            axes.xaxis.set_visible(False)
            axes.spines[["bottom", "left"]].set_visible(False)

    return render(name, title, (WIDTH, ROW * len(rows) + 46), paint)


def side_by_side(name: str, title: str, shares: Mapping[str, Mapping[str, float]], looks: Mapping[str, Look]) -> Markup:
    """Two shares for each teacher: a bar in its colour, and an outlined mark on it."""
    (ours, first), (theirs, second) = shares.items()
    teachers = [teacher for teacher in looks if teacher in first or teacher in second]

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        places = range(len(teachers))
        for place, teacher in enumerate(teachers):
            look = looks[teacher]
            style: dict[str, Any] = {"color": look.colour, "hatch": look.hatch, "edgecolor": PAPER}
            axes.barh(place, first.get(teacher, 0.0), 0.66, **style)
        axes.plot(
            [second.get(teacher, 0.0) for teacher in teachers],
            places,
            "D",
            color=PAPER,
            mec=INK,
            mew=1.8,
            ms=7,
            clip_on=False,
        )
        name_rows(axes, teachers)
        axes.set_xlim(0, None)
        axes.set_xlabel(f"bar: {ours}; diamond: {theirs}")
        axes.tick_params(axis="y", pad=9)
        in_percent(axes.xaxis)

    return render(name, title, (510, max(240, ROW * len(teachers) + 64)), paint)


def bill(name: str, title: str, uses: pl.DataFrame, parts: Mapping[str, Look]) -> Markup:
    """`row`, `part`, `calls`, `response_tokens` as stacked bars, a panel for each unit."""
    rows = uses["row"].unique(maintain_order=True).to_list()

    def paint(figure: Figure) -> None:
        for axes, unit in zip(figure.subplots(1, 2, sharey=True), ("calls", "response_tokens"), strict=True):
            left = np.zeros(len(rows))
            for part, look in parts.items():
                of = dict(uses.filter(part=part).select("row", unit).iter_rows())
                width = np.array([of.get(row, 0) for row in rows], dtype=float)
                axes.barh(range(len(rows)), width, 0.66, left, color=look.colour, hatch=look.hatch, edgecolor=PAPER)
                left += width
            for place, total in enumerate(left):
                axes.annotate(f"{total:,.0f}", (total, place), (5, 0), textcoords="offset points", va="center", size=11)
            axes.set_title(f"teacher {unit.replace('_', ' ')}")
            axes.set_xlim(0, max(left.max(), 1) * 1.22)
            name_rows(axes, rows)
            axes.xaxis.set_visible(False)
            axes.spines["bottom"].set_visible(False)

    return render(name, title, (WIDTH, ROW * len(rows) + 46), paint)


def name_rows(axes: Axes, rows: Sequence[str]) -> None:
    """Label the rows, from the top down."""
    axes.set_yticks(range(len(rows)), [short(row) for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.spines["left"].set_color(RULE)


def in_percent(axis: Any) -> None:
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:.3g}%"))


def _inside(axes: Axes, x: float, y: float, text: str, look: Look) -> None:
    dark = look.number % 8 in (0, 2, 5)
    box = {"facecolor": look.colour, "edgecolor": "none", "pad": 1.5}
    axes.text(x, y, text, ha="center", va="center", fontsize=11, color="#ffffff" if dark else "#000000", bbox=box)
