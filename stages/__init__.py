"""Stages: argv, params and tables in, one persyn call, tables out. dvc.yaml is the only place that knows a path."""

import difflib
import json
import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from persyn.errors import InputError, check_keys, nearest, printable

PARAMS = Path("params.yaml")
SUMMARY = Path("metrics/summary.json")
KEEP_SUMMARY = {"stages.summary", "stages.comparison", "stages.plots"}
"""The stage that writes SUMMARY, and those that it does not depend on."""
# Teachers and strategies name files, stages, and paths in this file, in which a dot goes deeper.
NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,63}")
RESERVED = {"con", "prn", "aux", "nul"}
SECTIONS = (
    *("prompts", "teachers", "licenses", "responses", "quality", "learnability", "student", "defects", "rewards"),
    *("pairs", "router", "strategies", "dataset", "sft", "evaluation", "budget", "prices", "speed"),
)
SECRET = re.compile(
    r"\b(?:sk-[\w-]{16,}|hf_\w{20,}|gh[a-z]_\w{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
    r"|xox[a-z]-[\w-]{10,}|Bearer\s+\S{16,})|-----BEGIN [A-Z ]*PRIVATE KEY"
)


class Stopped(KeyboardInterrupt):
    """The process was told to stop by the signal in `args`."""


def read_value(path: str) -> Any:
    """Read what stands at `path` (dots go deeper) in params.yaml.

    Parsed by the parser DVC itself uses (YAML 1.2, safe, duplicate keys refused), so that what is tracked
    is what is read.

    Raises:
        InputError: the file cannot be read, holds a secret or a name that cannot be a file's, or nothing stands at
            `path`; the nearest right spelling is named.
    """
    try:
        node = YAML(typ="safe", pure=True).load(PARAMS)
    except (OSError, YAMLError) as error:
        raise InputError(f"cannot read {PARAMS}: {' '.join(str(error).split())}") from error
    check_secrets(node)
    _check_names(node)
    walked: list[str] = []
    for key in path.split("."):
        if not isinstance(node, dict) or key not in node:
            raise InputError(f"{'.'.join([*walked, key])} is missing in {PARAMS}{nearest(key, node or [])}")
        node, walked = node[key], [*walked, key]
    return node


def read_params(section: str, accepts: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Read one section of params.yaml and check its keys against what `accepts` takes.

    Raises:
        InputError: the file, the section or a key is wrong.
    """
    node = read_value(section)
    if node is not None and not isinstance(node, dict):
        raise InputError(f"{section} must be a mapping in {PARAMS}, got {node!r}")
    if accepts is not None:
        check_keys(section, node or {}, accepts)
    return node or {}


def read_entries(section: str, accepts: Callable[..., Any]) -> dict[str, Any]:
    """Every entry of a section of params.yaml that names its entries, as `accepts`.

    Raises:
        InputError: as read_params.
    """
    return {name: accepts(**read_params(f"{section}.{name}", accepts)) for name in read_params(section)}


def read_json(path: str) -> Any:
    """Read a metrics file.

    Raises:
        InputError: it is not there.
    """
    if not Path(path).is_file():
        raise InputError(f"{path} does not exist; run `dvc repro` to make it")
    return json.loads(Path(path).read_text())


def read_speed(teacher: str, backend: str) -> dict[str, Any]:
    """The speed knobs of a teacher: those of its backend, and over them its own (`speed.teachers.<teacher>`)."""
    speed = read_params("speed")
    return {**speed.get(backend, {}), **speed.get("teachers", {}).get(teacher, {})}


def launch(stage: str) -> None:
    """Run the stage again by `accelerate launch` and end as that ends, where `speed.<stage>.launch` names the config
    file of accelerate to do so with. Do nothing where it does not, or where this process has been launched already.

    Raises:
        InputError: there is no such file.
    """
    config = (read_params("speed").get(stage) or {}).get("launch")
    if config is None or not {"RANK", "PERSYN_LAUNCHED"}.isdisjoint(os.environ):
        return
    if not Path(config).is_file():
        raise InputError(
            f"speed.{stage}.launch is {config!r}, there is no such file; name a config file of accelerate, such as "
            f"configs/accelerate/one_gpu.yaml, or null"
        )
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config, "-m", f"stages.{stage}"]
    # In a session of its own all that it starts can be told to stop together: accelerate does not pass every signal on.
    environment = {**os.environ, "PERSYN_LAUNCHED": "1"}
    with subprocess.Popen([*command, *sys.argv[1:]], env=environment, start_new_session=True) as launcher:
        try:
            status = launcher.wait()
        except Stopped as stopped:
            os.killpg(launcher.pid, stopped.args[0])
            raise
    sys.exit(status if status >= 0 else 128 - status)


def run(main: Callable[..., None], *arguments: str, launched: str | None = None) -> None:
    """Call `main` with argv, unless `arguments` are given.

    Args:
        launched: the name of a stage that trains, which `launch` may run instead, in several processes.

    A user's mistake ends in one line (PERSYN_TRACEBACK=1 shows where it was found); SIGINT and SIGTERM in status 130
    and 143 and the command that goes on.
    """
    logging.basicConfig(format="%(message)s")
    logging.getLogger("persyn").setLevel(logging.INFO)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        if launched:
            launch(launched)
        main(*(arguments or sys.argv[1:]))
        forget_summary(getattr(sys.modules["__main__"].__spec__, "name", ""))
    except InputError as error:
        if os.environ.get("PERSYN_TRACEBACK"):
            raise
        sys.exit(f"error: {printable(str(error))}")
    except Stopped as stopped:
        number = stopped.args[0]
        name = signal.Signals(number).name
        print(f"stopped by {name}; what is done is kept, the same command goes on", file=sys.stderr)  # noqa: T201
        sys.exit(128 + number)


def forget_summary(module: str) -> None:
    """Remove the summary after a stage that it depends on: its numbers are of earlier results. An experiment that stops
    there then has no numbers in `dvc exp show`, instead of those of the commit that it started from."""
    if module.startswith("stages.") and module not in KEEP_SUMMARY:
        SUMMARY.unlink(missing_ok=True)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def check_secrets(params: Any) -> None:
    """Refuse what looks like a key: params.yaml is shared, and dvc.lock repeats it.

    Raises:
        InputError: there is one; its beginning is named.
    """
    seen: set[int] = set()  # aliases make a node stand in many places: each is looked at once
    nodes = [params]
    while nodes:
        node = nodes.pop()
        if isinstance(node, str) and SECRET.search(node):
            raise InputError(
                f"{PARAMS} holds what looks like a key ({node[:4]}...); take it out, revoke it, and name the "
                f"environment variable that holds it in speed.openai.api_key_env"
            )
        if isinstance(node, dict | list) and id(node) not in seen:
            seen.add(id(node))
            nodes += [*node, *node.values()] if isinstance(node, dict) else node


def _check_names(params: Any) -> None:
    """Refuse what is nearly a section's name (others serve for YAML's anchors), and names that cannot be a file's."""
    sections = params if isinstance(params, dict) else {}
    for section in sections:
        near = difflib.get_close_matches(str(section), SECTIONS, n=1, cutoff=0.75)
        if section not in SECTIONS and near:
            raise InputError(f"{PARAMS}: {section!r} is no section that is read; did you mean {near[0]}?")
    for section in ("teachers", "strategies"):
        entries = sections.get(section)
        for name in entries if isinstance(entries, dict) else ():
            if not NAME.fullmatch(str(name)) or str(name) in RESERVED:
                raise InputError(
                    f"{section}: {str(name)[:80]!r} cannot name a file; use up to 64 of a-z, 0-9, '-' and '_', a "
                    f"letter or digit first"
                )
