"""Charts of points and lines from tidy tables (mostly those of persyn.plots), each an svg element of the page."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from persyn.report.bars import ROW, WIDTH, in_percent, name_rows
from persyn.report.svg import INK, MUTED, PAPER, STRATEGY_COLOURS, Look, render, short
from persyn.report.svg import looks as looks_of

FEW = 10  # with so few values of quality, points would hide each other
MAX_POINTS = 1500
MAX_STEPS = 120


def landscape(
    name: str, title: str, rewards: pl.DataFrame, looks: Mapping[str, Look], domains: Mapping[str, str]
) -> Markup:
    """Every response by learnability and quality, a panel for each domain, with each teacher's mean as a larger point.

    Args:
        rewards: REWARDS; at most about MAX_POINTS rows are drawn, the first by prompt_id, which is a hash.
        looks: teacher -> its look.
        domains: prompt_id -> domain.
    """
    of = pl.Series([domains.get(prompt, "all") for prompt in rewards["prompt_id"]], dtype=pl.String)
    rewards = rewards.with_columns(domain=of)
    panels = rewards["domain"].unique().sort().to_list()

    def paint(figure: Figure) -> None:
        for axes, domain in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
            rows = rewards.filter(domain=domain)
            shown = rows.sort("prompt_id", "teacher").head(MAX_POINTS // len(panels))
            shift = _apart(shown["quality"].to_numpy())
            means = rows.group_by("teacher").agg(pl.col("quality", "learnability").mean())
            for teacher, look in looks.items():
                here = (shown["teacher"] == teacher).to_numpy()
                at = shown["learnability"].to_numpy()[here], (shown["quality"].to_numpy() + shift)[here]
                axes.plot(*at, look.marker, color=look.colour, ms=5.5, mew=0, alpha=0.45)
                for row in means.filter(teacher=teacher).iter_rows(named=True):
                    style: dict[str, Any] = {"color": look.colour, "ms": 12, "mec": INK, "mew": 1.6, "zorder": 5}
                    axes.plot(row["learnability"], row["quality"], look.marker, **style)
            axes.set_title(short(domain))
            axes.set_xlabel("learnability, nats a token")
            axes.set_ylabel("quality, as scored")
            axes.grid(visible=True)

    return render(name, title, (WIDTH, 400), paint)


def reliability(name: str, title: str, bins: pl.DataFrame) -> Markup:
    """`confidence`, `accuracy`, `pairs`: accuracy of the router by its confidence; dots grow with pairs."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0.5, 1], [0.5, 1], "--", color=MUTED, lw=1.2)
        axes.plot(bins["confidence"], bins["accuracy"], color="#0072b2")
        size = 30 + 170 * bins["pairs"].to_numpy() / max(bins["pairs"].to_list(), default=1)
        axes.scatter(bins["confidence"], bins["accuracy"], size, color="#0072b2", edgecolors=PAPER, zorder=3)
        axes.set(xlim=(0.48, 1.02), ylim=(-0.04, 1.06), xlabel="how sure the router is", ylabel="how often it is right")
        axes.grid(visible=True)

    return render(name, title, (510, 340), paint)


def alpha_lines(
    name: str, title: str, curve: pl.DataFrame, looks: Mapping[str, Look], alpha: float, scores: pl.DataFrame
) -> Markup:
    """`alpha`, `teacher`, `share` as lines; below, if there are any scores, `alpha`, `task`, `value` as dots."""
    tasks = score_looks(scores)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(2 if tasks else 1, 1, sharex=True, squeeze=False)[:, 0]
        for teacher, look in looks.items():
            of = curve.filter(teacher=teacher)
            if of.height:
                style: dict[str, Any] = {"color": look.colour, "ls": look.line, "marker": look.marker, "ms": 4}
                panels[0].plot(of["alpha"], of["share"], **style)
        panels[0].set_ylabel("best on so many prompts")
        panels[0].set_ylim(0, 1.15 * max(curve["share"].to_list(), default=1))
        in_percent(panels[0].yaxis)
        for task, look in tasks.items():
            of = scores.filter(task=task).sort("alpha")
            panels[1].plot(of["alpha"], of["value"], look.marker, color=look.colour, ms=8, mec=PAPER)
        for axes in panels:
            axes.axvline(alpha, color=INK, lw=1.2, ls=(0, (2, 2)))
            axes.grid(visible=True)
        if tasks:
            panels[1].set_ylabel("evaluation")
        panels[0].text(alpha + 0.008, panels[0].get_ylim()[1], f"now {alpha:g}", va="top", fontsize=11)
        panels[-1].set_xlabel("alpha: 0 is quality alone, 1 learnability alone")

    return render(name, title, (WIDTH, 520 if tasks else 330), paint)


def score_looks(scores: pl.DataFrame) -> dict[str, Look]:
    """Task -> its look."""
    return looks_of(scores["task"].unique().sort(), STRATEGY_COLOURS)


def forest(name: str, title: str, curve: pl.DataFrame) -> Markup:
    """`task`, `metric`, `strategy`, `difference`, `low`, `high`, `verdict`: a panel per metric, a row per strategy."""
    cells = curve.select("task", "metric").unique(maintain_order=True).rows()
    strategies = curve["strategy"].unique(maintain_order=True).to_list()
    columns = min(3, len(cells))
    lines = -(-len(cells) // columns)

    def paint(figure: Figure) -> None:
        panels = figure.subplots(lines, columns, sharex=True, sharey=True, squeeze=False).flat
        for (task, metric), axes in zip(cells, panels, strict=False):  # in this order, or zip consumes a panel too many
            axes.axvline(0, color=MUTED, lw=1.2)
            for row in curve.filter(task=task, metric=metric).iter_rows(named=True):
                place, differs = strategies.index(row["strategy"]), row["verdict"] == "differs"
                colour = "#d55e00" if differs else "#0072b2"
                if row["low"] is not None:
                    axes.plot([row["low"], row["high"]], [place, place], color=colour, lw=2.2, solid_capstyle="round")
                mark = {"color": colour if differs else PAPER, "mec": colour, "mew": 2, "ms": 8}
                axes.plot(row["difference"], place, "o", **mark)
            axes.set_title(f"{short(task, 26)}\n{short(metric, 30)}")
            axes.grid(axis="x")
            axes.xaxis.set_major_locator(MaxNLocator(5))
            name_rows(axes, strategies)
        for axes in list(panels):  # unused panels
            axes.set_visible(False)

    return render(name, title, (WIDTH, lines * (ROW * len(strategies) + 74) + 10), paint)


def losses(name: str, title: str, training: Mapping[str, pl.DataFrame], looks: Mapping[str, Look]) -> Markup:
    """`step`, `loss` of each strategy; more than MAX_STEPS steps are averaged in equal groups."""

    def paint(figure: Figure) -> None:
        axes = figure.subplots()
        for strategy, steps in training.items():
            width, look = -(-steps.height // MAX_STEPS), looks[strategy]
            row = pl.int_range(pl.len()) // width
            means = steps.group_by(row.alias("bucket"), maintain_order=True).agg(pl.col("step", "loss").mean())
            axes.plot(means["step"], means["loss"], color=look.colour, ls=look.line)
        axes.set(xlabel="step", ylabel="loss, nats a token")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(visible=True)

    return render(name, title, (WIDTH, 320), paint)


def _apart(values: np.ndarray) -> np.ndarray:
    """Vertical shifts, the same each time, so that points with equal values do not hide each other."""
    if len(values) == 0 or len(np.unique(values)) > FEW:
        return np.zeros(len(values))
    return np.random.default_rng(0).uniform(-0.03, 0.03, len(values)) * (np.ptp(values) or 1.0)
