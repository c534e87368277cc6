"""Projects: the pipeline under a profile's parameters, each variant in a folder of its own.

All variants share one DVC cache with its run cache, and one response store, so what they have in common runs once. The
main project is not touched.
"""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from persyn.errors import InputError, nearest

ROOT = Path(__file__).parent.parent
WORK = ROOT / ".science"
CACHE = ROOT / ".dvc" / "cache"
RAW = ROOT / "data" / "raw"
WORLD = "world/"
"""Prefix of the micro-world's models in a profile."""
CODE = ("problems.py", "training.py", "world.py")


def load_profile(path: str | Path) -> dict[str, Any]:
    """A profile's parameters."""
    return YAML(typ="safe", pure=True).load(Path(path))


def profile_name(path: Path) -> str:
    """The name of a profile: of its file, or of its folder if the file is `params.yaml`."""
    return path.resolve().parent.name if path.name == "params.yaml" else path.stem


def with_changes(params: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`params` with other values at some dotted paths, as `dvc exp run -S path=value` sets them.

    Raises:
        InputError: a section on the path is missing.
    """
    changed = _replaced(params, "", "")
    for path, value in changes.items():
        node, *inner = changed, *path.split(".")
        for key in inner[:-1]:
            if not isinstance(node.get(key), dict):
                raise InputError(f"{path}: the profile has no section {key}{nearest(key, node)}")
            node = node[key]
        node[inner[-1]] = value
    return changed


def seeded(params: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """`params` with another seed for the router, the student and the choice of parallel prompts."""
    return with_changes(params, {"router.seed": seed, "sft.seed": seed, "prompts.seed": seed})


def world_folder(seed: int) -> Path:
    """The folder of the micro-world of `seed`: a hash of the code names it, so that changed code builds a new one."""
    code = b"".join((Path(__file__).parent / name).read_bytes() for name in CODE)
    return WORK / "worlds" / f"{hashlib.sha256(code).hexdigest()[:12]}-{seed}"


def build_world(seed: int) -> None:
    """Make the micro-world of `seed` if it is missing, in its own process because it sets global seeds."""
    folder = world_folder(seed)
    if not folder.is_dir():
        call("science.world", str(seed), str(folder), cwd=ROOT, log=WORK / f"{folder.name}.log")


def needs_world(params: Mapping[str, Any]) -> bool:
    """Whether a profile uses models of the micro-world."""
    return params["student"]["model"].startswith(WORLD)


def raw_folder(profile: Path) -> Path:
    """The raw prompts of a profile: its own, if the profile is a folder that has them, else the demo's."""
    own = profile.resolve().parent / "data" / "raw"
    return own if own.is_dir() else RAW


def make_project(name: str, params: Mapping[str, Any], seed: int, raw: Path = RAW) -> Path:
    """The pipeline in its own folder with these parameters; earlier results there are kept.

    Args:
        raw: the folder of raw prompts, for a profile that does not use the micro-world.
    """
    folder = WORK / name
    raw = world_folder(seed) / "raw" if needs_world(params) else raw
    models = os.path.relpath(world_folder(seed), folder) + "/"
    lay_out(folder, _replaced(params, WORLD, models), raw, ROOT / "tasks", CACHE)
    return folder


def lay_out(folder: Path, params: Mapping[str, Any], raw: Path, tasks: Path, cache: Path) -> None:
    """Make `folder` a project with the current code and these parameters, raw prompts, evaluation tasks and DVC cache.
    Earlier results there are kept.
    """
    sources = {part: ROOT / part for part in ("stages", "persyn", "configs")} | {"tasks": tasks, "data/raw": raw}
    for part, source in sources.items():
        shutil.rmtree(folder / part, ignore_errors=True)
        shutil.copytree(source, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in ("dvc.yaml", ".dvcignore"):
        shutil.copy(ROOT / file, folder / file)
    (folder / ".dvc").mkdir(exist_ok=True)
    config = [
        "[core]",
        "no_scm = true",
        "analytics = false",
        "[cache]",
        f"dir = {os.path.relpath(cache, folder / '.dvc')}",
        "type = reflink,hardlink,copy",
    ]
    (folder / ".dvc" / "config").write_text("\n".join(config) + "\n")
    yaml = YAML()
    yaml.width = 1 << 30  # breaking a line inside an escape of a template would change the text
    yaml.dump(dict(params), folder / "params.yaml")


def reproduce(folder: Path, *targets: str) -> None:
    """Run `dvc repro` there; its output goes to repro.log."""
    call("dvc", "repro", *targets, cwd=folder, log=folder / "repro.log")


def call(
    module: str,
    *words: str,
    cwd: Path,
    log: Path,
    environment: Mapping[str, str] | None = None,
    watch: Callable[[str], None] = lambda line: None,
) -> None:
    """Run `python -m module words` on one thread, since several run at once.

    Args:
        log: the file for its output.
        environment: variables added to those of this process.
        watch: called with each line of output, as it comes.

    Raises:
        InputError: it failed; the message has the end of its output.
    """
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"PATH": path, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", **(environment or {})}
    together: dict[str, Any] = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.STDOUT,
        "text": True,
        "errors": "replace",
    }
    command = [sys.executable, "-m", module, *words]
    log.parent.mkdir(parents=True, exist_ok=True)
    with (
        log.open("w") as out,
        subprocess.Popen(command, cwd=cwd, env=os.environ | own, **together) as process,
    ):
        for line in process.stdout or ():
            out.write(line)
            out.flush()
            watch(line)
    if process.returncode:
        how = f"failed with {process.returncode} in {cwd}"
        raise InputError(f"{module} {' '.join(words)} {how}; {log} ends: {log.read_text()[-1500:]}")


def _replaced(node: Any, old: str, new: str) -> Any:
    """A copy of `node` in which every text that begins with `old` begins with `new`."""
    if isinstance(node, Mapping):
        return {key: _replaced(value, old, new) for key, value in node.items()}
    if isinstance(node, list):
        return [_replaced(value, old, new) for value in node]
    return new + node.removeprefix(old) if isinstance(node, str) and old and node.startswith(old) else node
