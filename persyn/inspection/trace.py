"""Trace: one prompt through the whole pipeline."""

import difflib
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl

from persyn.defects import DETECTORS, Policies, detect_defects, drop_reason
from persyn.errors import InputError
from persyn.messages import as_text
from persyn.project.snapshot import Snapshot
from persyn.routed import asked_routes
from persyn.schemas import RESPONSES
from persyn.ties import TIE

if TYPE_CHECKING:
    from persyn.router.settings import RouterSettings

MADE = ("responses", "quality", "learnability", "defects", "rewards", "pairs", "routes", "routed", "dataset")


def find_prompt(prompts: pl.DataFrame, prefix: str) -> str:
    """The one prompt_id of PROMPTS that is, or begins with, `prefix`.

    Raises:
        InputError: there is none, or several.
    """
    found = prompts.filter(pl.col("prompt_id").str.starts_with(prefix))["prompt_id"].sort()
    if prefix in found:
        return prefix
    if len(found) == 1:
        return str(found[0])
    if len(found):
        some = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise InputError(f"{len(found)} prompts begin with {prefix!r}: {some}; give more of the id")
    ids = {identity[: len(prefix)]: identity for identity in prompts["prompt_id"].sort(descending=True)}
    near = [ids[begin] for begin in difflib.get_close_matches(prefix, ids, n=3)]
    known = near or prompts["prompt_id"].sort()[:3].to_list()
    raise InputError(
        f"no prompt's id begins with {prefix!r}; {'the nearest are' if near else 'there are'} {', '.join(known)}; "
        f"`persyn show --search TEXT` finds ids by their prompts' text"
    )


def search_prompts(prompts: pl.DataFrame, text: str) -> pl.DataFrame:
    """prompt_id, domain, parallel and prompt of those of PROMPTS that contain `text`, upper or lower case."""
    holds = [text.lower() in as_text(prompt).lower() for prompt in prompts["prompt"].to_list()]
    found = prompts.filter(pl.Series(holds, dtype=pl.Boolean))
    return found.select("prompt_id", "domain", "parallel", "prompt").sort("prompt_id")


def trace_prompt(
    made: Snapshot,
    prompt_id: str,
    policies: Policies,
    *,
    role: str | None = None,
    required: Collection[str] = (),
    limits: Sequence[str] = (),
) -> dict[str, Any]:
    """Everything in the tables about one prompt.

    Args:
        made: a snapshot with at least PROMPTS.
        policies: which defects keep a response out of the dataset.
        role: what the router used the prompt for, if it is known.
        required: the domains in dataset.require.
        limits: the limits on the rows of a teacher or a source that are set; one of them may be why a row was dropped.

    Returns:
        The columns of its row in PROMPTS; router: `role`; student: the name of the student itself, where it was asked
        as a teacher is; responses: the row of each teacher, and of the student, that responded, with quality,
        learnability, truncated, reward (None: not made, or left out), defects (their names) and best (whether its
        reward is the highest); pairs: winner, loser, margin; strategies: name -> the rows of its routes and of the
        teachers asked after them, with the routed response, `kept` (whether it is in the dataset; None: not made) and
        `reason` (why not, as build_dataset counts them; outdated: the dataset was made from other routes or
        parameters); missing: parts not made yet.
    """
    prompt = made.need("prompts").row(by_predicate=pl.col("prompt_id") == prompt_id, named=True)
    responses = _responses(made, prompt)
    return prompt | {
        "router": role,
        "student": made.student or None,
        "responses": responses,
        "pairs": _rows(made.pairs, prompt_id, "winner", "loser", "margin"),
        "strategies": {name: _routes(made, name, prompt, policies, required, limits) for name in made.routes},
        "missing": _missing(made),
    }


def router_role(made: Snapshot, settings: "RouterSettings", prompt_id: str) -> str | None:
    """What fit_router uses a prompt for under these settings; None if that is not known yet.

    Raises:
        InputError: as router_split.
    """
    parallel = made.need("prompts").filter("parallel")
    if prompt_id not in parallel["prompt_id"]:
        return "not used: it is not parallel"
    if made.rewards is None or made.pairs is None:
        return None
    from persyn.router import router_split
    from persyn.router.settings import BRADLEY_TERRY

    train, validation, held_out = router_split(parallel, made.rewards, settings)
    if prompt_id in held_out["prompt_id"]:
        return "held out: measures the router"
    if validation is not None and prompt_id in validation["prompt_id"]:
        return "validation: stops its training early"
    if prompt_id not in train["prompt_id"]:
        return "not used: it has no rewards, or num_train leaves it out"
    if settings.method not in BRADLEY_TERRY:
        return "trained on"
    anchored = pl.col("winner").is_in(made.anchored) | pl.col("loser").is_in(made.anchored)
    trained = prompt_id in made.pairs.filter(~anchored)["prompt_id"]
    return "trained on" if trained else "not used: it has no pair, all margins are too small"


def _missing(made: Snapshot) -> list[str]:
    """Parts that are not made yet; if some teachers or strategies have a part, the names of the others."""
    found = []
    for part in MADE:
        tables = getattr(made, part)
        names = getattr(made, getattr(vars(Snapshot)[part], "names", "strategies"))
        if tables is None or (isinstance(tables, Mapping) and not tables):
            found.append(part)
        elif isinstance(tables, Mapping) and (others := [name for name in names if name not in tables]):
            found.append(f"{part} of {', '.join(others)}")
    return found


def _rows(table: pl.DataFrame | None, prompt_id: str, *columns: str) -> list[dict[str, Any]]:
    if table is None:
        return []
    rows = table.filter(pl.col("prompt_id") == prompt_id)
    return (rows.select(columns) if columns else rows).to_dicts()


def _responses(made: Snapshot, prompt: Mapping[str, Any]) -> list[dict[str, Any]]:
    identity = prompt["prompt_id"]
    rewards = {row["teacher"]: row["reward"] for row in _rows(made.rewards, identity)}
    scale = max([1.0, *map(abs, rewards.values())])
    found = []
    for teacher, table in made.responses.items():
        for row in _rows(table, identity):
            scores: dict[str, Any] = dict.fromkeys(("quality", "learnability", "truncated"))
            for part in (made.quality, made.learnability):
                for scored in _rows(part.get(teacher), identity):
                    scores |= {name: scored[name] for name in scores if name in scored}
            reward = rewards.get(teacher)
            best = reward is not None and reward >= max(rewards.values()) - TIE * scale
            found.append(row | scores | {"reward": reward, "defects": _defects(made, row, prompt), "best": best})
    return found


def _defects(made: Snapshot, row: Mapping[str, Any], prompt: Mapping[str, Any]) -> list[str]:
    """The defects in the stage's table; for a response that is not in it, computed now."""
    if row["finish_reason"] == "error":
        return []
    for known in _rows(made.defects, row["prompt_id"]):
        if known["teacher"] == row["teacher"]:
            return [kind for kind in DETECTORS if known[kind]]
    found = detect_defects(prompt["prompt"], row)
    return [kind for kind in DETECTORS if found[kind]]


def _routes(
    made: Snapshot,
    strategy: str,
    prompt: Mapping[str, Any],
    policies: Policies,
    required: Collection[str],
    limits: Sequence[str],
) -> list[dict[str, Any]]:
    identity, dataset = prompt["prompt_id"], made.dataset.get(strategy)
    kept = {row["teacher"] for row in _rows(dataset, identity, "teacher")}
    routed = {row["teacher"]: row for row in _rows(made.routed.get(strategy), identity)}
    chosen, found = set(made.routes[strategy].filter(prompt_id=identity)["teacher"]), []
    attempts = made.routed.get(strategy, pl.DataFrame(schema=RESPONSES))
    # Of two chosen teachers the worse may also fall short; a chosen one did if another was asked after it.
    short = prompt["domain"] in required and not kept & chosen
    for route in _rows(asked_routes(made.routes[strategy], attempts), identity):
        response = routed.get(route["teacher"])
        was_kept = None if dataset is None else route["teacher"] in kept
        route |= {name: response and response[name] for name in ("response", "finish_reason", "num_response_tokens")}
        reason = None
        if response and was_kept is False:
            defects = _defects(made, response, prompt)
            row = pl.DataFrame(
                {"finish_reason": response["finish_reason"], **{kind: kind in defects for kind in DETECTORS}}
            )
            unfit = row.select(drop_reason(policies)).item()
            why = ["require"] if short else ["second"] if kept & set(routed) else []
            reason = unfit or " or ".join([*why, *limits]) or "outdated"
        found.append(route | {"kept": was_kept, "reason": reason})
    return found
