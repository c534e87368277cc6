"""Damaged files: every input of every stage in turn missing, empty, not what its name says, or a folder."""

import shlex
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

DAMAGE: dict[str, Callable[[Path], object]] = {
    "missing": lambda file: None,
    "empty": lambda file: file.write_bytes(b""),
    "garbage": lambda file: file.write_bytes(b"\x00\xffnonsense{["),
    "a folder": lambda file: file.mkdir(),
}


def stage_commands() -> Iterator[tuple[str, list[str], set[str]]]:
    """Every stage of the dvc.yaml here, of a `foreach` its first: name, arguments, and what it reads."""
    pipeline, params = (YAML(typ="safe", pure=True).load(Path(name)) for name in ("dvc.yaml", "params.yaml"))
    for name, stage in pipeline["stages"].items():
        key = ""
        if "foreach" in stage:
            key = next(iter(params[stage["foreach"].strip("${}")]))
            stage = stage["do"]
        reads = {path.replace("${key}", key) for path in stage["deps"]}
        yield name, shlex.split(stage["cmd"].replace("${key}", key))[3:], reads


def damaged_inputs(scratch: Path) -> Iterator[tuple[str, Callable[[], Any]]]:
    """What is damaged, and a call of the stage on it, whose outputs go to `scratch`."""
    for name, arguments, reads in stage_commands():
        outputs = {word: str(scratch / "out" / word) for word in arguments if "/" in word and word not in reads}
        for damaged in (word for word in arguments if word in reads):
            for kind, damage in DAMAGE.items():
                copy = scratch / f"{name}-{kind}" / Path(damaged).name
                shutil.rmtree(copy.parent, ignore_errors=True)
                copy.parent.mkdir(parents=True)
                shutil.copytree(damaged, copy) if Path(damaged).is_dir() else shutil.copy(damaged, copy)
                file = min(path for path in copy.rglob("*") if path.is_file()) if copy.is_dir() else copy
                file.unlink()
                damage(file)
                words = [str(copy) if word == damaged else outputs.get(word, word) for word in arguments]
                yield f"{name}: {damaged} {kind}", partial(import_module(f"stages.{name}").main, *words)
