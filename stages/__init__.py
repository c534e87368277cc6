"""Stages: argv, params and tables in, one persyn call, tables out. dvc.yaml is the only place that knows a path."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from persyn.schemas import InputError, check_keys, nearest

PARAMS = Path("params.yaml")


def read_value(path: str) -> Any:
    """Read what stands at `path` (dots go deeper) in params.yaml.

    Parsed by the parser DVC itself uses (YAML 1.2, safe, duplicate keys refused), so that what is tracked
    is what is read.

    Raises:
        InputError: the file cannot be read, or nothing stands there; the nearest right spelling is named.
    """
    try:
        node = YAML(typ="safe", pure=True).load(PARAMS)
    except (OSError, YAMLError) as error:
        raise InputError(f"cannot read {PARAMS}: {' '.join(str(error).split())}") from error
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


def run(main: Callable[..., None]) -> None:
    """Call `main` with argv. A user's mistake ends in one line; PERSYN_TRACEBACK=1 shows where it was found."""
    try:
        main(*sys.argv[1:])
    except InputError as error:
        if os.environ.get("PERSYN_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
