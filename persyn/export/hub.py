"""Hub: a table and its card as the folder of a Hugging Face dataset, written whole or not at all, and its upload."""

import glob
import hashlib
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl

from persyn.errors import InputError
from persyn.export import MESSAGES

DATA_FILES = "data/train-*.parquet"
FILES = re.compile(r"README\.md|data/train-\d{5}-of-\d{5}\.parquet")
SHARD_BYTES = 500 * 10**6
"""Size of a shard in memory; the file is smaller."""


def write_export(
    export: pl.DataFrame,
    card: Callable[[dict[str, Any]], str],
    folder: Path,
    replace: bool,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write README.md and data/train-*.parquet, which `datasets.load_dataset(folder)` reads. Equal inputs give equal
    bytes. The folder appears whole or not at all; an identical one is left as it is.

    Args:
        export: EXPORT.
        card: makes the card with this entry of `configs`. The entry holds the sha256 of the data, because the cache
            of `datasets` compares only the entry, not the files.
        folder: a new or empty one, or, where `replace` is true, an earlier export.

    Returns:
        The number of shards.

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
        (partial / "data").mkdir(parents=True)
        shards = _write(export, card, partial, shard_bytes)
        there = _digests(folder)
        if there == _digests(partial):
            return shards
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
    return shards


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
    card = folder / "README.md"
    return card.is_file() and _identity(folder) in card.read_text(errors="replace")


def _identity(folder: Path) -> str:
    """The line of a card that identifies the data of its folder."""
    data = (content for name, content in _digests(folder).items() if name != "README.md")
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


def _write(export: pl.DataFrame, card: Callable[[dict[str, Any]], str], folder: Path, shard_bytes: int) -> int:
    from datasets import Dataset, Features, List, Value, disable_progress_bars

    messages = List({"role": Value("string"), "content": Value("string")})
    kinds = {pl.String: Value("string"), pl.Float64: Value("float64"), pl.Int64: Value("int64"), MESSAGES: messages}
    rows = Dataset.from_polars(export, features=Features({name: kinds[kind] for name, kind in export.schema.items()}))
    shards = min(max(1, math.ceil(rows.data.nbytes / shard_bytes)), max(1, export.height))
    disable_progress_bars()
    for index in range(shards):
        name = f"data/train-{index:05d}-of-{shards:05d}.parquet"
        rows.shard(shards, index, contiguous=True).to_parquet(folder / name)
    files = [{"split": "train", "path": DATA_FILES}]
    entry = {"config_name": "default", "description": _identity(folder), "data_files": files}
    (folder / "README.md").write_text(card(entry))
    return shards


def check_push(repo: str) -> None:
    """Raise InputError unless `repo` is a possible name on the hub and somebody is logged in. Sends no request."""
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
        named = repo.count("/") == 1
    except HFValidationError:
        named = False
    if not named:
        raise InputError(f"--push is {repo!r}; it must be owner/name, as the hub allows names")
    if not get_token():
        raise InputError(
            "nobody is logged in to the hub; run `hf auth login`, or set HF_TOKEN to a token that may write"
        )


def push_export(folder: Path, repo: str, private: bool) -> str:
    """Upload the files of an export to a dataset on the hub, created if missing. Shards of an earlier push are deleted.

    Returns:
        The address of the commit.

    Raises:
        InputError: the dataset exists and is not `private` as asked, or the hub cannot be reached or refuses.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", private=private, exist_ok=True)
        if bool(api.dataset_info(repo).private) != private:
            is_now, wanted = ("public", "private") if private else ("private", "public")
            raise InputError(
                f"{repo} exists and is {is_now}; nothing was uploaded; give --{is_now}, or make it {wanted} in its "
                f"settings on the hub, or name another"
            )
        done = api.upload_folder(
            repo_id=repo,
            repo_type="dataset",
            folder_path=folder,
            allow_patterns=["README.md", DATA_FILES],
            delete_patterns=DATA_FILES,
            commit_message="Export of PerSyn",
        )
    except (OSError, httpx.HTTPError, RuntimeError) as error:  # the last is what hf_xet raises
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"the hub did not accept {repo}: {reason}; {folder} is complete: run the same command to try again"
        ) from error
    return done.commit_url
