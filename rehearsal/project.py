"""Project: a profile set up with stand-ins, run and checked."""

import os
import re
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from persyn.errors import InputError
from rehearsal.checks import check, check_contexts
from rehearsal.data import LocalData, parallel_sources
from rehearsal.models import build_once
from rehearsal.params import rehearsed, selected
from rehearsal.tasks import ROWS, local_tasks
from science.project import ROOT, call, lay_out, load_profile

PROFILES = ROOT / "profiles"
WORK = ROOT / ".rehearsal"
STAGE = re.compile(r"Running stage '(.+)':|Stage '(.+)' (?:didn't change|is cached)")


@dataclass
class Rehearsed:
    """The result of one project's run."""

    name: str
    ran: dict[str, float] = field(default_factory=dict)
    """Stage -> seconds."""
    unchanged: int = 0
    checked: list[str] = field(default_factory=list)


def prepare(profile: str) -> dict[str, Any]:
    """Make the stand-ins, data sets and evaluation tasks of a profile. Returns its parameters, made small and local.

    Raises:
        InputError: an architecture is unknown, a response would not fit its model, a data set has no rows here.
    """
    folder, tasks = WORK / profile, WORK / "tasks" / profile
    data = LocalData(WORK / "data" / profile, folder)
    shutil.rmtree(tasks, ignore_errors=True)
    local_tasks(ROOT / "tasks", ROWS, tasks)
    params = load_profile(PROFILES / profile / "params.yaml")
    check_contexts(params)
    return rehearsed(params, lambda path, model: _model(folder, path, model), data.localised)


def rehearse(profile: str, small: Mapping[str, Any]) -> list[Rehearsed]:
    """Run all stages of a profile, then generate-then-select on its parallel prompts, and check the results.

    Args:
        small: its parameters, from `prepare`.

    Raises:
        InputError: a stage failed, or a result is wrong.
    """
    params, tasks = load_profile(PROFILES / profile / "params.yaml"), WORK / "tasks" / profile
    first = run(profile, small, params, tasks)
    sources = parallel_sources(WORK / profile / "data/prompts.parquet", WORK / "data" / profile)
    return [first, run(f"{profile}-select", selected(small, sources), params, tasks)]


def run(name: str, small: Mapping[str, Any], params: Mapping[str, Any], tasks: Path) -> Rehearsed:
    """Set up one project, reproduce it, and check `dvc status`, `persyn plan` and the results."""
    folder, done = WORK / name, Rehearsed(name)
    _forget(folder, small)
    lay_out(folder, small, ROOT / "data/raw", tasks, WORK / "cache")
    total, current, begun = _count_stages(small), "", time.monotonic()

    def watch(line: str) -> None:
        nonlocal current, begun
        found = STAGE.match(line.strip())
        if not found:
            return
        if current:
            done.ran[current] = time.monotonic() - begun
        current, begun = found[1] or "", time.monotonic()
        done.unchanged += found[1] is None
        number = len(done.ran) + done.unchanged + bool(current)
        print(f"{name}: {number} of {total}, {current or f'{found[2]} is unchanged'}", flush=True)  # noqa: T201

    places: dict[str, Any] = {"cwd": folder, "environment": _environment(name.removesuffix("-select"))}
    try:
        call("dvc", "repro", log=folder / "repro.log", watch=watch, **places)
    except InputError as error:
        raise InputError(f"{name}: stage {current or '?'} failed. {error}") from error
    if current:
        done.ran[current] = time.monotonic() - begun
    call("dvc", "status", "--quiet", log=folder / "status.log", **places)
    call("persyn.cli", "plan", log=folder / "plan.log", **places)
    done.checked = ["dvc status", "persyn plan", *check(folder, small, params)]
    return done


def table(done: list[Rehearsed]) -> str:
    """A markdown table of runs, times and checks."""
    rows = ["| project | stages | of these run now | seconds | checked |", "|---|--:|--:|--:|---|"]
    for one in sorted(done, key=lambda one: one.name):
        count, seconds = len(one.ran) + one.unchanged, sum(one.ran.values())
        rows.append(f"| {one.name} | {count} | {len(one.ran)} | {seconds:.0f} | {', '.join(one.checked)} |")
    slow: dict[str, list[float]] = {}
    for one in done:
        for stage, seconds in one.ran.items():
            slow.setdefault(stage.partition("@")[0], []).append(seconds)
    rows += ["", "| stage | times | seconds each | together |", "|---|--:|--:|--:|"]
    for stage, each in sorted(slow.items(), key=lambda item: -sum(item[1])):
        rows.append(f"| {stage} | {len(each)} | {sum(each) / len(each):.1f} | {sum(each):.0f} |")
    return "\n".join(rows)


def _environment(profile: str) -> dict[str, str]:
    """Variables for the rehearsal's own store, cache and empty hub: it does not touch the user's."""
    home = WORK / "home"
    own = {"PERSYN_STORE": home / "store", "PERSYN_CACHE": home / "cache", "HF_HOME": WORK / "data" / profile / "home"}
    offline = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": "."}
    return {variable: str(folder) for variable, folder in own.items()} | offline


def _model(folder: Path, path: str, model: str) -> str:
    (WORK / "models").mkdir(parents=True, exist_ok=True)
    return os.path.relpath(build_once(WORK / "models", model, path == "quality.reward_model.model"), folder)


def _forget(folder: Path, small: Mapping[str, Any]) -> None:
    """Remove files of teachers and strategies that the profile no longer names; the caches handle the rest."""
    before = load_profile(folder / "params.yaml") if (folder / "params.yaml").is_file() else small
    if any(before[section].keys() - small[section].keys() for section in ("teachers", "strategies")):
        shutil.rmtree(folder)


def _count_stages(params: Mapping[str, Any]) -> int:
    stages = YAML(typ="safe", pure=True).load(ROOT / "dvc.yaml")["stages"]
    return sum(len(params[stage["foreach"].strip("${}")]) if "foreach" in stage else 1 for stage in stages.values())
