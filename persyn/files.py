"""Files: text and json, written whole or not at all; where PerSyn keeps what it may make again."""

import json
import os
from pathlib import Path
from typing import Any

import platformdirs

from persyn.errors import InputError


def read_json(path: str | Path) -> Any:
    """Read a metrics file.

    Raises:
        InputError: it is not there, or is no json.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run `dvc repro` to make it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as json ({error}); run `dvc repro` to make it again") from error


def write_json(value: object, path: str | Path) -> None:
    """Write a metrics file: sorted keys, six significant digits."""
    write_text(json.dumps(_rounded(value), indent=2, sort_keys=True, allow_nan=False) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file whole or not at all, making its folder where needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def cache_folder() -> Path:
    """`$PERSYN_CACHE`, else PerSyn's folder under the user's cache directory."""
    return Path(os.environ.get("PERSYN_CACHE") or platformdirs.user_cache_dir("persyn"))
