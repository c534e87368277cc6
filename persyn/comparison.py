"""Comparison: every strategy, the untuned student and finished models against one strategy, item by item, with its
uncertainty. What stands beside the strategies is compared as if it were one.

Legend: N items of one task and metric, S seeds (students trained anew).
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl

from persyn.errors import InputError, nearest
from persyn.files import markdown_table
from persyn.statistics import are_shares, holm, mean_interval, paired_difference, seed_difference, verdict

REFERENCE = "persyn"
KEYS = ["task", "metric", "sample_id"]
UNLIKE = 0.05
"""Shares of cut responses that are further apart than this are called unlike."""
Seeds = Mapping[str, Sequence[pl.DataFrame]]  # strategy -> S SAMPLES
Values = dict[tuple[str, str], dict[str, np.ndarray]]  # (task, metric) -> strategy -> (N,), items in the same order


def compare_strategies(samples: Mapping[str, pl.DataFrame], seed: int = 0) -> dict[str, Any]:
    """Paired differences of every strategy to `persyn` on each task and metric.

    Args:
        samples: strategy (or what stands beside them) -> SAMPLES.
        seed: of the sign flips, where they are drawn at random.

    Returns:
        strategy -> task -> metric -> the fields of paired_difference, p_holm (p corrected by `holm` for the number of
        strategies compared on this task and metric, not for the number of tasks) and statistics.verdict of p_holm.
        Intervals and mde are not corrected.

    Raises:
        InputError: `persyn` is missing, an item occurs twice, or two strategies were evaluated on different items.
    """
    if REFERENCE not in samples:
        raise InputError(f"strategies are {', '.join(samples)}; the comparison needs one called {REFERENCE}")
    comparison: dict[str, Any] = {strategy: {} for strategy in samples if strategy != REFERENCE}
    for (task, metric), values in _aligned(samples, REFERENCE).items():
        found = {name: paired_difference(values[REFERENCE], values[name], seed) for name in comparison}
        _decide(found.values())
        for strategy, fields in found.items():
            comparison[strategy].setdefault(task, {})[metric] = fields
    return comparison


def compare_seeds(samples: Seeds, reference: str = REFERENCE, seed: int = 0) -> dict[str, Any]:
    """Compare strategies over S seeds, so that the conclusion holds for newly trained students too.

    Args:
        samples: strategy -> S SAMPLES; the i-th of every strategy have the same seed and the same items; another seed
            may have other items.
        reference: the strategy that all others are compared with.
        seed: of the sign flips, where they are drawn at random.

    Returns:
        strategy -> task -> metric -> mean (over seeds, of the means over items), interval (statistics.mean_interval; it
        stays in [0, 1] if all values of all strategies are there), seeds (the S means), n_seeds, n_items (over all
        seeds), cut (the share of responses that were cut, of all seeds; None if nothing was generated); for all but the
        reference also the fields of seed_difference, p_holm and verdict as in compare_strategies. With one seed, or
        equal differences for all seeds, the tests are None and the verdict is "not tested", or "identical" if no item
        differs; Holm counts such a p as 1.

    Raises:
        InputError: `reference` is missing, strategies have no or unequally many seeds, an item occurs twice, or
            strategies of a seed were evaluated on different items, or seeds on different tasks or metrics.
    """
    by_seed = _aligned_seeds(samples, reference)
    cut = cut_shares({name: pl.concat(tables) for name, tables in samples.items()})
    comparison: dict[str, Any] = {strategy: {} for strategy in samples}
    for task, metric in by_seed[0]:
        values = {name: [aligned[task, metric][name] for aligned in by_seed] for name in samples}
        shares = are_shares([part for parts in values.values() for part in parts])
        for strategy in samples:
            means = np.array([each.mean() for each in values[strategy]])
            interval = mean_interval(means, shares)
            scores = {"mean": float(means.mean()), "interval": interval, "seeds": means.tolist()}
            counts = {"n_seeds": len(means), "n_items": sum(map(len, values[strategy])), "cut": cut[task][strategy]}
            comparison[strategy].setdefault(task, {})[metric] = scores | counts
        others = {name: comparison[name][task][metric] for name in samples if name != reference}
        for strategy, fields in others.items():
            fields |= seed_difference(values[reference], values[strategy], seed)
        _decide(others.values())
    return comparison


def comparison_table(samples: Mapping[str, pl.DataFrame], comparison: Mapping[str, Any]) -> str:
    """The comparison as a markdown table: a row per strategy, task and metric; the value is the mean over items.

    A metric that is 0 for every student tells nothing where its task has another; it is named below the table.
    """
    means = pl.concat([table.with_columns(strategy=pl.lit(name)) for name, table in samples.items()])
    keys, rows = ["task", "metric", "strategy"], []
    means = means.group_by(keys).agg(pl.col("value").mean()).sort(keys)
    means, notes = without_silent(means)
    for task, metric, strategy, value in means.rows():
        found = comparison.get(strategy, {}).get(task, {}).get(metric)
        gap = ("-",) * 5
        if found:
            interval = "[{:+z.3f}, {:+z.3f}]".format(*found["interval"]) if found["interval"] else "-"
            shown = _shown(found["p_holm"]), detectable(found), found["verdict"]
            gap = (f"{found['difference']:+z.3f}", interval, *shown)
        rows.append((task, metric, strategy, f"{value:.3f}", *gap))
    columns = [*keys, "value", f"{REFERENCE} minus it", "95 %", "p (Holm)", "smallest detectable", "verdict"]
    return "\n\n".join([markdown_table(columns, rows, aligned=True), *notes, *told_cuts(cut_shares(samples))])


def cut_shares(samples: Mapping[str, pl.DataFrame]) -> dict[str, dict[str, float | None]]:
    """Task -> strategy -> share of its responses that reached the token limit before their end; None if nothing was
    generated. An item with several metrics counts once for each.

    Args:
        samples: strategy -> SAMPLES.
    """
    shares: dict[str, dict[str, float | None]] = {}
    for strategy, table in samples.items():
        for task, share in table.group_by("task", maintain_order=True).agg(pl.col("cut").mean()).rows():
            shares.setdefault(task, {})[strategy] = share
    return shares


def told_cuts(shares: Mapping[str, Mapping[str, float | None]]) -> list[str]:
    """A sentence for each task of which responses were cut; it warns where students are unlike in that.

    Args:
        shares: as of cut_shares.
    """
    told = []
    for task, found in shares.items():
        known = {strategy: share for strategy, share in found.items() if share is not None}
        if not any(known.values()):
            continue
        each = ", ".join(f"{strategy} {share:.1%}" for strategy, share in known.items())
        told.append(f"Responses to {task} that reached the token limit and were cut: {each}.")
        if unlike_cuts(known.values()):
            told[-1] += (
                " Where these differ, scores may differ for the length of the responses alone: a higher "
                "evaluation.max_tokens would tell, unless a student ends no response."
            )
    return told


def unlike_cuts(shares: Collection[float]) -> bool:
    """Whether the shares of cut responses are so unlike that length may decide between the students."""
    return max(shares) - min(shares) > UNLIKE


def without_silent(scores: pl.DataFrame) -> tuple[pl.DataFrame, list[str]]:
    """Scores to be shown without the metrics that are 0 for every student, and a sentence for each of those.

    Args:
        scores: task, metric and value. A task that is 0 on all its metrics keeps them.
    """
    zero = pl.col("value") == 0
    silent = zero.all().over("task", "metric") & ~zero.all().over("task")
    named = scores.filter(silent).select("task", "metric").unique(maintain_order=True).rows()
    notes = [f"Left out: {metric} of {task}, which is 0 for all of them." for task, metric in named]
    return scores.filter(~silent), notes


def seeds_table(comparison: Mapping[str, Any]) -> str:
    """The result of compare_seeds as a markdown table: a row for each task, metric and strategy, the best first."""
    cells = [
        (task, metric, -fields["mean"], strategy, fields)
        for strategy, tasks in comparison.items()
        for task, metrics in tasks.items()
        for metric, fields in metrics.items()
    ]
    reference, rows = "reference", []
    for task, metric, _, strategy, fields in sorted(cells, key=lambda cell: cell[:4]):
        gap = ("-",) * 4
        if "difference" in fields:
            shown = _with_interval(fields["difference"], fields["difference_interval"], "+z.3f")
            gap = (shown, _shown(fields["p_holm"]), detectable(fields), fields["verdict"])
        else:
            reference = strategy
        rows.append((task, metric, strategy, _with_interval(fields["mean"], fields["interval"], "z.3f"), *gap))
    measured = ["mean [95 % over seeds]", f"{reference} minus it [95 %]", "p (Holm)", "smallest detectable", "verdict"]
    return markdown_table(["task", "metric", "strategy", *measured], rows, aligned=True)


def detectable(found: Mapping[str, Any]) -> str:
    """The mde of paired_difference or seed_difference for a table, in words where no difference could be found.

    A dash where nothing was tested, so that nothing is known of the noise.
    """
    if found.get("mde") is not None or found.get("p") is None or found.get("identical", found.get("interval") is None):
        return _shown(found.get("mde"))
    number, what = (found["n"], "item") if "n" in found else (found["n_seeds"], "seed")
    return f"none with {number} {what}{'s' if number != 1 else ''}"


def _decide(family: Collection[dict[str, Any]]) -> None:
    """Add p_holm and verdict to the fields of all strategies compared on one task and metric."""
    corrected = holm([1.0 if fields["p"] is None else fields["p"] for fields in family])
    for fields, p in zip(family, corrected, strict=True):
        fields["p_holm"] = None if fields["p"] is None else p
        fields["verdict"] = verdict(fields["p_holm"], fields["identical"])


def _aligned(samples: Mapping[str, pl.DataFrame], reference: str, where: str = "") -> Values:
    items = samples[reference].select(KEYS).sort(KEYS)
    found: Values = {}
    for strategy in sorted(samples, key=lambda name: name != reference):  # errors in the reference come first
        ordered = samples[strategy].sort(KEYS)
        twice = ordered.filter(ordered.select(KEYS).is_duplicated())
        if twice.height:
            raise InputError(f"{where}{strategy}: {twice.row(0)[:3]} occurs twice; an item has one value per metric")
        if not ordered.select(KEYS).equals(items):
            alone = pl.concat([ordered.select(KEYS), items]).unique(keep="none", maintain_order=True)
            got = f"evaluated on different items ({alone.height} are in only one, first {alone.row(0)})"
            raise InputError(f"{where}{strategy} and {reference} were {got}; run `dvc repro` for both")
        for (task, metric), rows in ordered.group_by("task", "metric", maintain_order=True):
            found.setdefault((str(task), str(metric)), {})[strategy] = rows["value"].to_numpy()
    return found


def _aligned_seeds(samples: Seeds, reference: str) -> list[Values]:
    if reference not in samples:
        raise InputError(f"reference {reference!r} is not among the strategies{nearest(reference, samples)}")
    counts = {strategy: len(tables) for strategy, tables in samples.items()}
    if set(counts.values()) != {counts[reference]} or not counts[reference]:
        raise InputError(f"seeds by strategy are {counts}; evaluate every strategy with the same seeds, at least one")
    by_seed: list[Values] = []
    for i in range(counts[reference]):
        by_seed.append(_aligned({name: tables[i] for name, tables in samples.items()}, reference, f"seed {i}: "))
        if odd := sorted(by_seed[i].keys() ^ by_seed[0].keys()):
            raise InputError(f"seeds 0 and {i} do not both have (task, metric) {odd}; evaluate all seeds on the same")
    return by_seed


def _shown(value: float | None) -> str:
    return "-" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"


def _with_interval(value: float, interval: Sequence[float] | None, form: str) -> str:
    return f"{value:{form}}" + (f" [{interval[0]:{form}}, {interval[1]:{form}}]" if interval else "")
