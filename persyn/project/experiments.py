"""DVC's experiments: their parameters, allocation and evaluation, read from git."""

import io
import json
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from persyn.project.snapshot import NOTHING, Snapshot

KINDS = ("allocation", "evaluation")


def read_experiments() -> tuple[list[Snapshot], str]:
    """The experiments whose parameters or numbers differ from those of their commit; and a note on those left out."""
    from dvc.repo import Repo

    try:
        with Repo() as repo:
            listed = repo.experiments.ls(all_commits=True)
            root = Path(repo.scm.root_dir)
            folder = f"{Path(repo.root_dir).relative_to(root).as_posix()}/".removeprefix("./")
        names = {commit: dict.fromkeys([commit]) | {rev: name for name, rev in of} for commit, of in listed.items()}
        states = _read_states(root, folder, [rev for of in names.values() for rev in of])
        found = [
            Snapshot(states[rev]["params"], name=name, metrics={kind: states[rev][kind] for kind in KINDS})
            for commit, of in names.items()
            for rev, name in of.items()
            if name and states[rev]["params"] and states[rev] != states[commit]
        ]
        lost = [name for of in names.values() for rev, name in of.items() if name and not states[rev]["params"]]
        return found, f"Experiments without a legal params.yaml are left out: {', '.join(lost)}." if lost else ""
    except Exception as error:  # noqa: BLE001 - the report does without what DVC cannot read
        return [], f"DVC's experiments could not be read: {str(error) or type(error).__name__}"


def _read_states(root: Path, folder: str, revisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Revision -> its params, allocation and evaluation; the last two by strategy."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    states: dict[str, dict[str, Any]] = {}
    files = _read_files(root, [f"{revision}:{folder}params.yaml" for revision in revisions])
    for revision, content in zip(revisions, files, strict=True):
        try:
            params = YAML(typ="safe", pure=True).load(content or b"")
        except YAMLError:
            params = None
        states[revision] = {"params": params if isinstance(params, dict) else {}}
    wanted = [
        (revision, kind, strategy)
        for revision, state in states.items()
        for kind in KINDS
        for strategy in _strategies(state["params"])
    ]
    paths = [f"{revision}:{folder}metrics/{kind}/{strategy}.json" for revision, kind, strategy in wanted]
    for (revision, kind, strategy), content in zip(wanted, _read_files(root, paths), strict=True):
        of_kind = states[revision].setdefault(kind, {})
        if content is not None:
            of_kind[strategy] = json.loads(content)
    return {revision: dict.fromkeys(KINDS, NOTHING) | state for revision, state in states.items()}


def _strategies(params: Mapping[str, Any]) -> list[str]:
    return [name for name in params.get("strategies") or {} if str(name).isprintable()]


def _read_files(root: Path, objects: list[str]) -> list[bytes | None]:
    """The contents of files, named as REVISION:PATH, read by one git process; None for a missing file."""
    asked = "".join(f"{each}\n" for each in objects).encode()
    command = ["git", "-C", str(root), "cat-file", "--batch"]
    output = io.BytesIO(subprocess.run(command, input=asked, stdout=subprocess.PIPE, check=True).stdout)

    def next_file() -> bytes | None:
        """Git writes `<id> <type> <size>`, a newline, the content and a newline; or `<asked> missing`."""
        last = output.readline().split()[-1]
        return None if last == b"missing" else output.read(int(last) + 1)[:-1]

    return [next_file() for _ in objects]
