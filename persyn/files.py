"""Files: text, json and markdown, written whole or not at all; and PerSyn's cache folder."""

import json
import os
import re
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from typing import Any

import platformdirs

from persyn.errors import InputError, printable


def read_json(path: str | Path) -> Any:
    """Read a metrics file.

    Raises:
        InputError: it is missing, or is not json.
    """
    try:
        return json.loads(Path(path).read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run `dvc repro` to make it") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as json ({error}); run `dvc repro` to make it again") from error


def read_tensors(path: str | Path) -> dict[str, Any]:
    """Read a safetensors file of our own making, as name -> numpy array.

    Raises:
        InputError: it is missing or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        return load_file(path)
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; run `dvc repro` to make it") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is damaged ({error}); run `dvc repro` to make it again") from error


def write_json(value: object, path: str | Path) -> None:
    """Write a metrics file: sorted keys, six significant digits."""
    write_text(json.dumps(_rounded(value), indent=2, sort_keys=True, allow_nan=False) + "\n", path)


def write_text(text: str, path: str | Path) -> None:
    """Write a text file whole or not at all, making its folder where needed."""
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    partial = Path(f"{path}.{os.getpid()}.partial")
    partial.write_text(text)
    partial.replace(path)


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[object]], *, aligned: bool = False) -> str:
    """A table in markdown.

    Args:
        columns: their names, already markdown.
        rows: their cells, escaped by markdown_text.
        aligned: whether to pad columns for readers of the raw text; cells are then not escaped.
    """
    shown = str if aligned else markdown_text
    cells = [list(columns), *([shown(value) for value in row] for row in rows)]
    rule = f"| {' | '.join('---' for _ in columns)} |"
    if aligned:
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        cells = [[cell.ljust(width) for cell, width in zip(row, widths, strict=True)] for row in cells]
        rule = f"|{'|'.join('-' * (width + 2) for width in widths)}|"
    first, *rest = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, rule, *rest])


def markdown_text(value: object) -> str:
    """Escape a value so that markdown shows it literally, on one line: no cell, link, tag or emphasis."""
    text = printable(" ".join(("" if value is None else str(value)).split()))
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", escape(text, quote=False))


def _rounded(value: object) -> object:
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def cache_folder() -> Path:
    """`$PERSYN_CACHE`, else PerSyn's folder under the user's cache directory."""
    return Path(os.environ.get("PERSYN_CACHE") or platformdirs.user_cache_dir("persyn"))
