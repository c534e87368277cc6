"""Stages: argv, params and tables in, one persyn call, tables out. dvc.yaml is the only place that knows a path."""

import difflib
import inspect
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from persyn.schemas import InputError

PARAMS = Path("params.yaml")


def read_params(section: str, accepts: Callable[..., Any] | None = None) -> dict[str, Any]:
    """Read one section of params.yaml (dots go deeper) and check its keys against what `accepts` takes.

    Parsed by the parser DVC itself uses (YAML 1.2, safe, duplicate keys refused), so that what is tracked
    is what is read.

    Raises:
        InputError: the file, the section or a key is wrong; the nearest right spelling is named.
    """
    try:
        node = YAML(typ="safe", pure=True).load(PARAMS)
    except (OSError, YAMLError) as error:
        raise InputError(f"cannot read {PARAMS}: {' '.join(str(error).split())}") from error
    walked: list[str] = []
    for key in section.split("."):
        if not isinstance(node, dict) or key not in node:
            known = list(node) if isinstance(node, dict) else []
            raise InputError(f"{PARAMS}: {'.'.join([*walked, key])} is missing{_nearest(key, known)}")
        node, walked = node[key], [*walked, key]
    node = {} if node is None else node
    if not isinstance(node, dict):
        raise InputError(f"{PARAMS}: {section} must be a mapping, got {node!r}")
    if accepts is not None:
        _check_keys(section, node, accepts)
    return node


def _check_keys(section: str, node: dict[str, Any], accepts: Callable[..., Any]) -> None:
    takes = {
        name: parameter
        for name, parameter in inspect.signature(accepts).parameters.items()
        if inspect.isclass(accepts) or parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in node:
        if key not in takes:
            raise InputError(f"{PARAMS}: {section}.{key} is not a parameter{_nearest(key, list(takes))}")
    for name, parameter in takes.items():
        if parameter.default is inspect.Parameter.empty and name not in node:
            raise InputError(f"{PARAMS}: {section}.{name} is missing; {section} needs {', '.join(takes)}")


def _nearest(key: str, known: list[str]) -> str:
    near = difflib.get_close_matches(str(key), [str(name) for name in known], n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(map(str, known)) or 'nothing'}"


def run(main: Callable[..., None]) -> None:
    """Call `main` with argv. A user's mistake ends in one line; PERSYN_TRACEBACK=1 shows where it was found."""
    try:
        main(*sys.argv[1:])
    except InputError as error:
        if os.environ.get("PERSYN_TRACEBACK"):
            raise
        sys.exit(f"error: {error}")
