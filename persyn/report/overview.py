"""The top of the page: facts about the run, its result in one sentence, and its prompts from source to score."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from persyn.project.snapshot import Snapshot
from persyn.report.page import REFERENCE, Table, count, decimal, interval, listed

Cell = tuple[str, str, str, Any]  # strategy, task, metric, their fields in metrics/comparison.json
NAMED = 3  # differences that the verdict lists one by one


@dataclass(frozen=True)
class Step:
    """A box of the flow: name, count, and what happened to the rest. `missing`: the stage that has not run yet."""

    title: str
    number: str = ""
    detail: str = ""
    missing: str = ""


def facts(run: Snapshot) -> list[tuple[str, str]]:
    """The run's settings, as (label, value)."""
    student, rewards, router = run.section("student"), run.section("rewards"), run.section("router")
    methods = run.section("quality").get("methods") or {}
    found = [
        ("student", student.get("model")),
        (f"{len(run.teachers)} teachers", listed(run.teachers)),
        ("alpha", f"{rewards['alpha']:g} (the weight of learnability)" if "alpha" in rewards else None),
        ("quality by", ", ".join(f"{method} ({domain})" for domain, method in methods.items())),
        ("learnability by", run.section("learnability").get("method")),
        ("router", router.get("model")),
        (f"{len(run.section('strategies'))} strategies", listed(list(run.section("strategies")), 12)),
        ("evaluation", ", ".join(run.section("evaluation").get("tasks") or [])),
    ]
    return [(name, str(value)) for name, value in found if value]


def verdict(comparison: Mapping[str, Any] | None) -> str:
    """What the comparison supports, in one sentence.

    Args:
        comparison: metrics/comparison.json; None if it is not made yet.
    """
    if comparison is None:
        return "No verdict yet: no students have been compared (dvc repro comparison)."
    cells = [
        (strategy, task, metric, found)
        for strategy, tasks in comparison.items()
        for task, metrics in tasks.items()
        for metric, found in metrics.items()
    ]
    if not cells:
        return f"No verdict: there is no other strategy to compare {REFERENCE} with (strategies in params.yaml)."
    differing = [cell for cell in cells if cell[3]["verdict"] == "differs"]
    if not differing:
        tasks = listed(list(dict.fromkeys(task for _, task, _, _ in cells)))
        sizes = [found["n"] for *_, found in cells]
        return (
            f"{REFERENCE} minus {listed(list(comparison))}, on {tasks}: {_undecided(cells)} "
            f"({_range([min(sizes), max(sizes)], 0)} items a task{_detectable(cells)})."
        )
    told = [
        f"{'above' if found['difference'] > 0 else 'below'} {strategy} on {task} ({metric} "
        f"{decimal(found['difference'], sign=True)}, 95 % {interval(found['interval'])})"
        for strategy, task, metric, found in sorted(differing, key=lambda cell: -abs(cell[3]["difference"]))[:NAMED]
    ]
    if len(differing) > NAMED:
        above = sum(found["difference"] > 0 for *_, found in differing)
        identical = _identical(cells)
        same = f", the same for every item in {identical}" if identical else ""
        return (
            f"Of {len(cells)} differences {REFERENCE} is above in {above}, below in {len(differing) - above} and "
            f"within noise in {len(cells) - len(differing) - identical}{same}; the largest: {told[0]}."
        )
    rest = [cell for cell in cells if cell[3]["verdict"] != "differs"]
    return f"{REFERENCE} is {', '.join(told)}{f'; {_undecided(rest, len(cells))}' if rest else ''}."


def asides(run: Snapshot) -> list[str]:
    """A sentence on whether routing was worth it, and one on its cost, if the numbers are there."""
    found, cost = over_one_teacher(run.metric("router")), run.metric("cost")
    saved = (cost.get("saved") or {}).get(REFERENCE)
    if saved:
        spent, parallel = cost["routed"][REFERENCE]["spent"]["calls"], cost["parallel"].values()
        calls = spent + sum(use["calls"] for use in parallel)
        less = " and ".join(fewer(ratio, what.replace("_", " ")) for what, ratio in saved.items())
        found.append(
            f"{REFERENCE} took {count(calls)} teacher calls where generate-then-select takes "
            f"{count(cost['generate_then_select']['calls'])}: {less}."
        )
    return found


def over_one_teacher(router: Mapping[str, Any]) -> list[str]:
    """What the held-out prompts say of the router against one teacher for all; nothing where they are too few.

    Args:
        router: metrics/router.json.
    """
    over = router.get("over_majority")
    if not over:
        return []
    held_out = f"On {router['num_held_out']} held-out prompts the router"
    if over["verdict"] == "identical":
        return [f"{held_out} has the reward of one teacher for everything, on each of them."]
    better = "better than" if over["difference"] > 0 else "worse than"
    better = "not shown to be better than" if over["verdict"] != "differs" else better
    by = f"reward {decimal(over['difference'], sign=True)}, 95 % {interval(over['interval'])}"
    return [f"{held_out} is {better} one teacher for everything ({by})."]


def flow(run: Snapshot) -> list[Step]:
    """From the prompts read to the router, with counts."""
    prompts, rewards, router = run.metric("prompts"), run.metric("rewards"), run.metric("router")
    steps = [Step("prompts", missing="prompts")]
    if prompts:
        dropped = prompts["dropped"]
        reasons = ", ".join(f"{number:,} {reason}" for reason, number in dropped.items())
        steps = [
            Step("prompts read", count(prompts["read"])),
            Step("dropped", count(sum(dropped.values())), reasons or "none"),
            Step("kept", count(prompts["kept"]), ", ".join(f"{n:,} {name}" for name, n in prompts["domains"].items())),
            Step("parallel", count(prompts["parallel"]), _parallel(run)),
        ]
    counts = {name: table.height for name, table in run.responses.items()}
    counts = counts or {name: found["responses"] for name, found in run.metric("defects").items()}
    counts.pop(run.student, None)
    responses = sum(counts.values())
    steps.append(_responses(run, len(counts), responses) if responses else Step("responses", missing="responses"))
    if rewards:
        out = sum(rewards["dropped"].values())
        detail = f"incomplete: {out:,}, all equal: {rewards['ties']:,}, penalised responses: {rewards['penalised']:,}"
        steps.append(Step("prompts with rewards", count(rewards["kept"]), detail))
    else:
        steps.append(Step("rewards", missing="rewards"))
    made = (
        Step("pairs", missing="pairs")
        if run.pairs is None
        else Step("pairs", count(run.pairs.height), "who beats whom")
    )
    steps.append(made)
    if router:
        validation = router.get("num_validation") or 0
        detail = f"{router['num_held_out']:,} held out" + (f", {validation:,} validation" if validation else "")
        steps.append(Step("router trained on", count(router["num_train"]), detail))
    else:
        steps.append(Step("router", missing="router"))
    return steps


def lanes(run: Snapshot) -> Table:
    """From the router to the evaluation, a row for each strategy."""
    routed = run.metric("cost").get("routed") or {}
    rows = []
    for name, entry in run.section("strategies").items():
        allocation, data = run.metric("allocation").get(name), run.metric("dataset").get(name)
        used, samples = routed.get(name), run.samples.get(name)
        prompts = allocation and allocation["prompts"]
        dropped = ", ".join(f"{number:,} {why}" for why, number in (data["dropped"] if data else {}).items() if number)
        joined = [f"{one['kept']:,} of {label} joined" for label, one in (data or {}).get("mix", {}).items()]
        dropped = "; ".join([dropped or "none", *joined]) if joined else dropped
        steps = run.training[name]["step"].max() if name in run.training and run.training[name].height else None
        items = None if samples is None else samples.select("task", "sample_id").n_unique()
        cells = [prompts, used and used["spent"]["calls"], used and used["cached"]["calls"], data and data["kept"]]
        numbers = [count(cell) for cell in cells]
        rows.append(
            [
                *(name, str((entry or {}).get("rule", name)), *numbers, dropped or ("none" if data else "—")),
                *(count(steps if isinstance(steps, int | float) else None), count(items)),
            ]
        )
    columns = ["strategy", "rule", "prompts routed", "new calls", "cached", "dataset rows", "dropped"]
    return Table(
        "What each strategy made of them: a response is new, or cached because the parallel set has it.",
        [*columns, "training steps", "evaluation items"],
        rows,
        words=2,
    )


def _responses(run: Snapshot, teachers: int, responses: int) -> Step:
    whole = len(run.teachers)
    some = f" of {whole}" if teachers < whole else ""
    return Step("responses", count(responses), f"of {teachers}{some} teachers")


def _parallel(run: Snapshot) -> str:
    few = f" but {listed(run.anchored, 2)}, by anchors" if run.anchored else ""
    return f"answered by every teacher{few}"


def fewer(ratio: float, what: str) -> str:
    if f"{ratio:.2f}" == "1.00":
        return f"as many {what}"
    return f"{ratio:.2f} times fewer {what}" if ratio > 1 else f"{1 / ratio:.2f} times more {what}"


def _undecided(cells: list[Cell], of: int | None = None) -> str:
    """What is said of differences that no test calls one; `of` so many, where others do differ."""
    identical, other = _identical(cells), "the other " if of else ""
    among = f" of {of}" if of else ""
    if identical == len(cells) == 1 and not of:
        return "the comparison has the same score for every item"
    if identical == len(cells):
        return f"{other or 'all '}{identical}{among} comparisons have the same score for every item"
    if identical:
        within = f"{len(cells) - identical} of {len(cells)} differences are within noise"
        return f"{'of the others, ' if of else ''}{within}; in {identical} every item has the same score"
    if of:
        return f"the other {len(cells)} of {of} differences are within noise"
    return f"all {len(cells)} differences are within noise" if len(cells) > 1 else "the difference is within noise"


def _identical(cells: list[Cell]) -> int:
    return sum(cell[3]["verdict"] == "identical" for cell in cells)


def _detectable(cells: list[Cell]) -> str:
    found = [cell[3]["mde"] for cell in cells if cell[3].get("mde") is not None]
    if found:
        return f"; the smallest true difference likely to be found is {_range([min(found), max(found)], 2)}"
    return "" if _identical(cells) == len(cells) else "; so few cannot show any difference"


def _range(bounds: list[float], places: int) -> str:
    low, high = (f"{bound:,.{places}f}" for bound in bounds)
    return low if low == high else f"{low} to {high}"
