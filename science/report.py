"""The result of a recipe as a table, a plot and a json file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from persyn.comparison import seeds_table, told_cuts
from persyn.files import write_json, write_text

TITLES = {
    "hit_at_1": "router: Hit@1",
    "hit_at_3": "router: Hit@3",
    "regret": "router: regret, reward units",
    "math_verify": "student: accuracy",
}
"""Metrics to plot first, in this order."""
ROUTER_ALONE = "No student was trained: this is about how prompts are routed, not about accuracy."
UNPLOTTED = {"hit_at_3_oracle", "pair_accuracy", "calibration"}


def write_report(name: str, question: str, axis: str, comparison: Mapping[str, Any], command: str, out: Path) -> str:
    """Write `<name>.json`, `.md` and `.svg` to `out`. Returns the table with its question.

    Args:
        comparison: what compare_seeds returned; its keys are the variants.
        command: reproduces it.
    """
    some = next(metric for tasks in comparison.values() for metrics in tasks.values() for metric in metrics.values())
    tasks = {task for found in comparison.values() for task in found}
    about = f" {ROUTER_ALONE}" if tasks == {"router"} else ""
    table = seeds_table(comparison)
    cuts = "".join(f"{told}\n\n" for told in told_cuts(_cut(comparison)))
    text = f"## {name}\n\n{question}{about}\n\n{table}\n\n{cuts}{some['n_seeds']} seeds. `{command}`\n"
    write_json({"question": question, "command": command, "variants": comparison}, out / f"{name}.json")
    write_text(text, out / f"{name}.md")
    _plot(question, axis, comparison, out / f"{name}.svg")
    return text


def _cut(comparison: Mapping[str, Any]) -> dict[str, dict[str, float | None]]:
    """Task -> variant -> share of cut responses, from what compare_seeds returned."""
    shares: dict[str, dict[str, float | None]] = {}
    for variant, tasks in comparison.items():
        for task, metrics in tasks.items():
            shares.setdefault(task, {})[variant] = next(iter(metrics.values())).get("cut")
    return shares


def _plot(question: str, axis: str, comparison: Mapping[str, Any], file: Path) -> None:
    """Means over seeds with their 95 % intervals, one panel a metric; each seed a dot."""
    cells = [(task, metric) for tasks in list(comparison.values())[:1] for task in tasks for metric in tasks[task]]
    shown = [cell for cell in cells if cell[1] not in UNPLOTTED]
    shown.sort(key=lambda cell: list(TITLES).index(cell[1]) if cell[1] in TITLES else len(TITLES))
    labels = list(comparison)
    with mpl.rc_context({"svg.hashsalt": file.stem, "font.size": 9}):
        figure = Figure(figsize=(max(4.5, 0.45 * len(labels) + 3) * len(shown), 4), layout="constrained")
        for panel, (task, metric) in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
            for place, label in enumerate(labels):
                found = comparison[label][task][metric]
                low, high = found["interval"] or (found["mean"], found["mean"])
                error = [[found["mean"] - low], [high - found["mean"]]]
                panel.errorbar(place, found["mean"], error, fmt="o", color="C0", capsize=3)
                panel.plot([place] * len(found["seeds"]), found["seeds"], ".", color="C1", alpha=0.6, zorder=0)
            panel.set_xticks(range(len(labels)), labels, rotation=30, ha="right")
            panel.set_title(TITLES.get(metric, f"{task}: {metric}"))
            panel.set_xlabel(axis)
            panel.grid(axis="y", alpha=0.3)
        figure.suptitle(f"{question} Mean and 95 % interval over seeds; dots are seeds.")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, metadata={"Date": None})
