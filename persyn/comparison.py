"""Comparison: every strategy against `persyn`, item by item, with the uncertainty said out loud."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from persyn.schemas import InputError

REFERENCE = "persyn"


def compare_strategies(samples: Mapping[str, pl.DataFrame], seed: int = 0) -> dict[str, Any]:
    """Paired differences of every strategy to `persyn` on each task and metric.

    Args:
        samples: strategy -> SAMPLES.
        seed: of the bootstrap.

    Returns:
        strategy -> task -> metric -> the fields of paired_difference.

    Raises:
        InputError: `persyn` is missing, or two strategies were evaluated on different items.
    """
    if REFERENCE not in samples:
        raise InputError(f"strategies are {', '.join(samples)}; the comparison needs one called {REFERENCE}")
    keys = ["task", "sample_id", "metric"]
    comparison: dict[str, Any] = {}
    for strategy, table in samples.items():
        if strategy == REFERENCE:
            continue
        paired = samples[REFERENCE].join(table, on=keys, how="full", suffix="_other", validate="1:1", coalesce=True)
        if paired.select("value", "value_other").null_count().sum_horizontal().item():
            raise InputError(f"{strategy} and {REFERENCE} were evaluated on different items; run `dvc repro` for both")
        for (task, metric), rows in paired.sort(keys).group_by("task", "metric", maintain_order=True):
            values = rows["value"].to_numpy(), rows["value_other"].to_numpy()
            task_scores = comparison.setdefault(strategy, {}).setdefault(str(task), {})
            task_scores[str(metric)] = paired_difference(*values, seed=seed)
    return comparison


def comparison_table(samples: Mapping[str, pl.DataFrame], comparison: Mapping[str, Any]) -> str:
    """The comparison as a markdown table: one row a strategy, task and metric; the value is the mean over the items."""
    means = pl.concat([table.with_columns(strategy=pl.lit(name)) for name, table in samples.items()])
    keys = ["task", "metric", "strategy"]
    rows = []
    for task, metric, strategy, value in means.group_by(keys).agg(pl.col("value").mean()).sort(keys).rows():
        found = comparison.get(strategy, {}).get(task, {}).get(metric)
        interval = found and found["interval"] and "[{:+.3f}, {:+.3f}]".format(*found["interval"])
        gap = (
            (f"{found['difference']:+.3f}", interval or "-", f"{found['p']:.3f}", found["verdict"])
            if found
            else ("-",) * 4
        )
        rows.append((task, metric, strategy, f"{value:.3f}", *gap))
    columns = [*keys, "value", f"{REFERENCE} minus it", "95 %", "p", "verdict"]
    with pl.Config(tbl_formatting="ASCII_MARKDOWN", tbl_hide_column_data_types=True, tbl_hide_dataframe_shape=True,
                   tbl_rows=-1, tbl_cols=-1, tbl_width_chars=1000, fmt_str_lengths=100):  # fmt: skip
        return str(pl.DataFrame(rows, schema=dict.fromkeys(columns, pl.String), orient="row"))


def paired_difference(reference: np.ndarray, other: np.ndarray, seed: int = 0) -> dict[str, Any]:
    """`reference` minus `other`, both (N,) over the same items.

    Returns:
        difference: mean of the paired differences; interval: its 95 % percentile bootstrap interval;
        p: exact McNemar where all values are 0 or 1, else a paired sign-flip permutation test; mde: the smallest true
        difference found with 80 % power at 5 %; n; verdict. Where no item differs, interval and mde are None: such a
        sample says nothing about their size.
    """
    gaps = reference - other
    n, differing = len(gaps), int(np.count_nonzero(gaps))
    result: dict[str, Any] = {"difference": float(gaps.mean()), "interval": None, "p": 1.0, "mde": None, "n": n}
    if differing:
        bootstrap = stats.bootstrap((gaps,), np.mean, n_resamples=2000, method="percentile", rng=seed)
        result["interval"] = [float(bound) for bound in bootstrap.confidence_interval]
        result["p"] = _p_value(gaps, binary=bool(np.isin([reference, other], (0, 1)).all()), seed=seed)
        if n > 1:
            power = stats.norm.ppf(0.975) + stats.norm.ppf(0.8)
            result["mde"] = float(power * gaps.std(ddof=1) / np.sqrt(n))
    result["verdict"] = "differs" if result["p"] < 0.05 else "within noise"
    return result


def _p_value(gaps: np.ndarray, binary: bool, seed: int) -> float:
    if binary:
        wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
        return float(stats.binomtest(wins, wins + losses).pvalue)
    test = stats.permutation_test((gaps,), np.mean, permutation_type="samples", n_resamples=5000, rng=seed)
    return float(test.pvalue)
