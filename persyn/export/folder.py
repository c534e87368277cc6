"""Folder: an export on disk, written whole or not at all, and recognised again by its card."""

import glob
import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from persyn.errors import InputError

CARD = "README.md"
FILES = re.compile(
    r"README\.md|dataset_info\.json|rows\.jsonl|train\.(?:jsonl|parquet)|data/train-\d{5}-of-\d{5}\.parquet"
)
"""The files that an export of any format has."""
Card = Callable[[dict[str, Any]], str]
"""Makes a card with this entry of `configs` (as build_card takes it), by which `datasets` loads the files beside it."""
Made = TypeVar("Made")


def write_folder(fill: Callable[[Path], Made], folder: Path, replace: bool) -> Made:
    """Write an export. Equal inputs give equal bytes. The folder appears whole or not at all; an identical one is left
    as it is.

    Args:
        fill: writes the files into an empty folder, the card last (write_card).
        folder: a new or empty one, or, where `replace` is true, an earlier export.

    Returns:
        What `fill` returns.

    Raises:
        InputError: the folder holds something else, or cannot be written.
    """
    check_folder(folder)
    place = folder.resolve()
    for lost in place.parent.glob(f".{glob.escape(place.name)}.*.old"):
        if not place.exists():
            lost.rename(place)  # a process was killed while it replaced this export
    partial, old = (place.with_name(f".{place.name}.{os.getpid()}.{what}") for what in ("partial", "old"))
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        made = fill(partial)
        there = _digests(folder)
        if there == _digests(partial):
            return made
        if there and not replace:
            raise InputError(f"{folder} holds an earlier export that differs; --force replaces it")
        if folder.exists():
            place.rename(old)
        try:
            partial.rename(place)
        except BaseException:
            if old.exists():
                old.rename(place)
            raise
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written: {error.strerror or error}; choose another --out") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return made


def write_card(card: Card, folder: Path, data_files: str, features: list[dict[str, Any]] | None = None) -> None:
    """Write the card of the files that lie in `folder`.

    Its entry of `configs` holds the sha256 of the data: the cache of `datasets` compares only the entry, not the files,
    and check_folder knows an export by it.

    Args:
        features: types of the columns, as `dataset_info` has them, where the files do not say them.
    """
    files = [{"split": "train", "path": data_files}]
    entry: dict[str, Any] = {"config_name": "default", "description": _identity(folder), "data_files": files}
    entry |= {"features": features} if features else {}
    (folder / CARD).write_text(card(entry))


def check_folder(folder: Path) -> None:
    """Raise InputError unless `folder` is missing, is empty, or holds an unchanged earlier export and nothing else."""
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise InputError(f"{folder} is not a folder; give --out a new one")
        names = _names(folder)
        other = [name for name in names if not FILES.fullmatch(name)]
        if other or (names and not _is_export(folder)):
            found = f", such as {other[0]}," if other else ""
            raise InputError(
                f"{folder} holds files{found} that are not an unchanged export; give --out a new or an empty folder"
            )
    except OSError as error:
        raise InputError(f"{folder} cannot be read: {error.strerror or error}; choose another --out") from error


def _is_export(folder: Path) -> bool:
    """Whether its card holds the sha256 of the data beside it."""
    card = folder / CARD
    return card.is_file() and _identity(folder) in card.read_text(errors="replace")


def _identity(folder: Path) -> str:
    """The line of a card that identifies the data of its folder."""
    data = (content for name, content in _digests(folder).items() if name != CARD)
    return f"sha256 of the data: {hashlib.sha256(b''.join(data)).hexdigest()}"


def _names(folder: Path) -> list[str]:
    """Relative paths of all files in `folder`, sorted; none if it is missing.

    Raises:
        OSError: a folder in it cannot be read.
    """

    def refuse(error: OSError) -> None:
        raise error

    walked = os.walk(folder, onerror=refuse) if folder.exists() else ()
    paths = [Path(place, name) for place, folders, files in walked for name in [*folders, *files]]
    return sorted(path.relative_to(folder).as_posix() for path in paths if path.is_symlink() or not path.is_dir())


def _digests(folder: Path) -> dict[str, bytes]:
    """Relative path -> sha256 of the files that an export has."""
    return {name: hashlib.sha256((folder / name).read_bytes()).digest() for name in _names(folder)}
