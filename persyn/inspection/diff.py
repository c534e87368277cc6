"""Diff: what changed between two states of a project, A and B. Every difference is B minus A."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from persyn.comparison import KEYS
from persyn.project.snapshot import Snapshot, changed_values
from persyn.schemas import PROMPTS
from persyn.statistics import holm, paired_difference, verdict

ROUTED = ["strength", "margin"]
SCORES = ["quality", "learnability", "reward"]
SCALE = ("defects", "learnability", "quality", "rewards", "student", "teachers")
"""Sections of params.yaml that define the reward."""


def build_diff(a: Snapshot, b: Snapshot, strategy: str | None = None) -> dict[str, Any]:
    """Compare the parts that both states have, of one strategy, or of all (None).

    Parameters and metrics are compared by DVC itself (`dvc params diff`, `dvc metrics diff`).

    Returns:
        a, b: their names; prompts: compare_prompts; allocation: strategy -> compare_routes, or {only: the side that
        names it}; scores: teacher -> compare_scores, or {only}; scale: the sections of params.yaml that define the
        reward and differ; evaluation: compare_evaluations; missing: lines; same: whether all of this is equal. A part
        that one side lacks is None or absent.
    """
    changed = {path.partition(".")[0] for path in changed_values(a.params, b.params)}
    found: dict[str, Any] = {
        "a": a.name,
        "b": b.name,
        "prompts": _of_both(compare_prompts, a.prompts, b.prompts),
        "allocation": _allocation(a, b, strategy),
        "scores": _of_both(compare_scores, a.rewards, b.rewards),
        "scale": [section for section in SCALE if section in changed],
        "evaluation": compare_evaluations(a, b, strategy),
    }
    missing = [f"{side.name}: {line}" for side in (a, b) for line in side.missing]
    return found | {"missing": missing, "same": not any(_differs(found))}


def compare_prompts(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, Any]:
    """PROMPTS: same (the number of ids in both), changed (those of them with a difference in another column), and added
    and removed (ids)."""
    both = a.join(b, on="prompt_id", how="inner", suffix="_b", validate="1:1")
    columns = [name for name in a.columns if name != "prompt_id"]
    differs = pl.any_horizontal(pl.col(name).ne_missing(pl.col(f"{name}_b")) for name in columns)
    lists = {
        "changed": both.filter(differs),
        "added": b.join(a, on="prompt_id", how="anti"),
        "removed": a.join(b, on="prompt_id", how="anti"),
    }
    return {"same": both.height} | {name: rows["prompt_id"].sort().to_list() for name, rows in lists.items()}


def compare_routes(a: pl.DataFrame, b: pl.DataFrame, prompts: pl.DataFrame | None = None) -> dict[str, Any]:
    """Where one strategy's prompts went.

    Args:
        a: ROUTES. A prompt with two teachers counts as one with a teacher `stronger + weaker`.
        prompts: PROMPTS, for what they ask.

    Returns:
        prompts (routed in both), unlike (how many of them differ in teacher, strength or margin), flow ([{from, to,
        prompts}]), moved ([{prompt_id, prompt, from, to, margin_a, margin_b}], the largest margin in B first).
    """
    both = _one_a_prompt(a).join(_one_a_prompt(b), on="prompt_id", how="inner", suffix="_b", validate="1:1")
    unlike = both.filter(pl.any_horizontal(pl.col(c).ne_missing(pl.col(f"{c}_b")) for c in ("teacher", *ROUTED))).height
    both = both.rename({"teacher": "from", "teacher_b": "to", "margin": "margin_a"})
    flow = both.group_by("from", "to").agg(prompts=pl.len()).sort("from", "to")
    moved = both.filter(pl.col("from") != pl.col("to")).sort(
        "margin_b", "prompt_id", descending=[True, False], nulls_last=True
    )
    if prompts is None:
        moved = moved.with_columns(prompt=pl.lit(None, PROMPTS["prompt"]))
    else:
        texts = prompts.select("prompt_id", "prompt")
        moved = moved.join(texts, on="prompt_id", how="left", validate="1:1", maintain_order="left")
    rows = moved.select("prompt_id", "prompt", "from", "to", "margin_a", "margin_b").to_dicts()
    return {"prompts": both.height, "unlike": unlike, "flow": flow.to_dicts(), "moved": rows}


def compare_scores(a: pl.DataFrame, b: pl.DataFrame) -> dict[str, Any]:
    """REWARDS: teacher -> {rows (prompts scored in both), unpaired (scored in one only), changed (rows with a different
    score), quality, learnability, reward: {a, b} means over `rows`}, or {only: the side that has it}."""
    both = a.join(b, on=["prompt_id", "teacher"], how="inner", suffix="_b", validate="1:1")
    differs = pl.any_horizontal(pl.col(name) != pl.col(f"{name}_b") for name in SCORES)
    means = [pl.col(column).mean() for name in SCORES for column in (name, f"{name}_b")]
    rows = both.group_by("teacher").agg(*means, rows=pl.len(), changed=differs.sum()).to_dicts()
    scored: dict[str, Any] = {
        row["teacher"]: {"rows": row["rows"], "changed": row["changed"]}
        | {name: {"a": row[name], "b": row[f"{name}_b"]} for name in SCORES}
        for row in rows
    }
    counts = [dict(side["teacher"].value_counts().rows()) for side in (a, b)]
    for name in counts[0].keys() & counts[1].keys():
        fields = scored.setdefault(name, {"rows": 0, "changed": 0})
        fields["unpaired"] = counts[0][name] + counts[1][name] - 2 * fields["rows"]
    return _by_name([set(count) for count in counts], scored.__getitem__)


def compare_evaluations(a: Snapshot, b: Snapshot, strategy: str | None = None) -> dict[str, Any]:
    """Every strategy evaluated on both sides, on the items that both have.

    Returns:
        strategy -> task -> metric -> {a, b: means}. If both have the samples, also the fields of
        statistics.paired_difference (B minus A), unpaired (items of one side only), p_holm (corrected for the
        strategies compared on this task and metric) and statistics.verdict of it. A strategy of one side only is
        {only}.
    """
    found = _by_name(_strategies(a, b, strategy), lambda name: _metrics(a, b, name))
    families: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for tasks in found.values():
        for task, metrics in tasks.items():
            for metric, fields in metrics.items() if task != "only" else ():
                if "p" in fields:
                    families.setdefault((task, metric), []).append(fields)
    for family in families.values():
        for fields, p in zip(family, holm([fields["p"] for fields in family]), strict=True):
            fields |= {"p_holm": p, "verdict": verdict(p, fields["identical"])}
    return found


def _metrics(a: Snapshot, b: Snapshot, strategy: str) -> dict[str, dict[str, dict[str, Any]]]:
    """task -> metric -> its fields, without p_holm and verdict, which need all strategies."""
    found: dict[str, dict[str, dict[str, Any]]] = {}
    for side, state in (("a", a), ("b", b)):
        for task, metrics in state.metric("evaluation").get(strategy, {}).items():
            for metric, fields in metrics.items():
                found.setdefault(task, {}).setdefault(metric, {})[side] = fields["value"]
    if strategy not in a.samples or strategy not in b.samples:
        return found
    one, other = (side.samples[strategy].select(*KEYS, "value") for side in (a, b))
    joined = one.join(other, on=KEYS, how="full", coalesce=True, suffix="_b", validate="1:1").sort(KEYS)
    for (task, metric), rows in joined.group_by("task", "metric", maintain_order=True):
        paired = rows.drop_nulls(["value", "value_b"])
        cell = found.setdefault(str(task), {}).setdefault(str(metric), {})
        cell["unpaired"] = rows.height - paired.height
        if paired.height:
            was, now = paired["value"].to_numpy(), paired["value_b"].to_numpy()
            cell |= {"a": float(was.mean()), "b": float(now.mean())} | paired_difference(now, was)
    return found


def _allocation(a: Snapshot, b: Snapshot, strategy: str | None) -> dict[str, Any]:
    texts = [side.prompts.select("prompt_id", "prompt") for side in (b, a) if side.prompts is not None]
    prompts = pl.concat(texts).unique("prompt_id", keep="first") if texts else None

    def compare(name: str) -> dict[str, Any] | None:
        made = name in a.routes and name in b.routes
        return compare_routes(a.routes[name], b.routes[name], prompts) if made else None

    return _by_name(_strategies(a, b, strategy), compare)


def _one_a_prompt(routes: pl.DataFrame) -> pl.DataFrame:
    ordered = routes.sort("prompt_id", "strength", "teacher", descending=[False, True, False], nulls_last=True)
    grouped = ordered.group_by("prompt_id", maintain_order=True)
    return grouped.agg(pl.col("teacher").str.join(" + "), pl.col(ROUTED).first())


def _by_name(sides: Sequence[set[str]], compare: Callable[[str], Any]) -> dict[str, Any]:
    a, b = sides
    alone = {name: {"only": "a" if name in a else "b"} for name in a ^ b}
    found = {name: alone.get(name) or compare(name) for name in sorted(a | b)}
    return {name: fields for name, fields in found.items() if fields}


def _of_both(compare: Callable[[Any, Any], Any], a: Any, b: Any) -> Any:
    return None if a is None or b is None else compare(a, b)


def _strategies(a: Snapshot, b: Snapshot, only: str | None) -> list[set[str]]:
    """The strategies in the parameters of each side, or `only` this one."""
    return [{name for name in side.section("strategies") if only in (None, name)} for side in (a, b)]


def _differs(found: Mapping[str, Any]) -> list[bool]:
    prompts, scores = found["prompts"] or {}, found["scores"] or {}
    tasks = [task for of in found["evaluation"].values() if "only" not in of for task in of.values()]
    return [
        any(prompts.get(name) for name in ("changed", "added", "removed")),
        any(fields.get("only") or fields.get("unlike") for fields in found["allocation"].values()),
        any(fields.get("only") or fields["changed"] or fields["unpaired"] for fields in scores.values()),
        any("only" in of for of in found["evaluation"].values()),
        any(is_changed(fields) for metrics in tasks for fields in metrics.values()),
    ]


def is_changed(evaluated: Mapping[str, Any]) -> bool:
    """Whether a metric of compare_evaluations differs between the two sides."""
    unlike = evaluated.get("a") != evaluated.get("b") or not evaluated.get("identical", True)
    return bool(unlike or evaluated.get("unpaired"))
