"""dvc.lock: the files and parameters that a project was made from, and whether they have changed since."""

import hashlib
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import version
from typing import Any

from persyn.errors import InputError
from persyn.project.snapshot import Snapshot, changed_values

UNREAD = ("data/quality/", "data/defects", "data/pairs", "metrics/rewards")
"""Outputs of the stages behind a dataset that its export does not read, so that a cache may lack them."""


def check_lock(snapshot: Snapshot, strategy: str | None) -> None:
    """Check that everything behind a strategy's dataset equals its record in dvc.lock, where there is one. Without a
    strategy: everything behind the rewards.

    Raises:
        InputError: a table, a metric or a parameter differs.
    """

    @cache
    def md5(path: str) -> str | None:
        content = snapshot.project.read(path) if snapshot.project else None
        return None if content is None else hashlib.md5(content, usedforsecurity=False).hexdigest()

    locked = _stages(snapshot)
    of_teachers = [f"{kind}@{name}" for name in snapshot.asked for kind in ("responses", "quality")]
    of_strategy = [f"{kind}@{strategy}" for kind in ("routes", "routed", "dataset")]
    for stage in ["prompts", *of_teachers, "rewards", *(["router", *of_strategy] if strategy else ["learnability"])]:
        entry = locked.get(stage) or {}
        other = [path for path, recorded in _read_files(entry) if md5(path) not in (recorded, None)]
        other += [f"{path} in params.yaml" for path in _changed_params(entry, snapshot.params)]
        if other:
            raise InputError(
                f"{other[0]} is not what dvc.lock has for the stage {stage}: the tables are from different runs; run "
                f"`dvc repro`, or export a revision (--rev)"
            )


def provenance(snapshot: Snapshot, strategy: str | None) -> dict[str, str | None]:
    """Label -> value: versions that made a strategy's dataset, or the rewards, and its md5 if dvc.lock has it (see
    check_lock).
    """
    path = f"data/dataset/{strategy}.parquet" if strategy else "data/rewards.parquet"
    outs = (_stages(snapshot).get(f"dataset@{strategy}" if strategy else "rewards") or {}).get("outs") or []
    known = {entry["path"]: entry["md5"] for entry in outs}
    return {
        "PerSyn": version("persyn"),
        "git commit": snapshot.commit,
        "DVC": f"{path} is {known[path]} (md5, dvc.lock)" if path in known else None,
    }


def _stages(snapshot: Snapshot) -> dict[str, Any]:
    lock = snapshot.project.yaml("dvc.lock") if snapshot.project else None
    if not isinstance(lock, Mapping | None):
        raise InputError(f"dvc.lock of {snapshot.name} holds no stages; take it from git again, or run `dvc repro`")
    return (lock or {}).get("stages") or {}


def _read_files(entry: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Path and md5 of the tables and metrics of a stage."""
    for file in [*(entry.get("deps") or []), *(entry.get("outs") or [])]:
        if file["path"].endswith((".parquet", ".json")) and not file["path"].startswith(UNREAD):
            yield file["path"], file["md5"]


def _changed_params(entry: Mapping[str, Any], params: Mapping[str, Any]) -> Iterator[str]:
    """Paths of a stage's parameters that have changed since it ran."""
    for path, recorded in (entry.get("params") or {}).get("params.yaml", {}).items():
        now: Any = params
        for key in path.split("."):
            now = now.get(key) if isinstance(now, Mapping) else None
        if changed_values({path: recorded}, {path: now}):
            yield path
