"""Hub: a table and its card as the folder of a Hugging Face dataset, and its upload."""

import math
from pathlib import Path
from typing import Any

import polars as pl

from persyn.errors import InputError
from persyn.export.folder import Card, write_card, write_folder

DATA_FILES = "data/train-*.parquet"
SHARD_BYTES = 500 * 10**6
"""Size of a shard in memory; the file is smaller."""


def write_export(export: pl.DataFrame, card: Card, folder: Path, replace: bool, shard_bytes: int = SHARD_BYTES) -> int:
    """Write README.md and data/train-*.parquet, which `datasets.load_dataset(folder)` reads; else as write_folder.

    Args:
        export: EXPORT, or another table of texts, numbers and messages.

    Returns:
        The number of shards.
    """
    return write_folder(lambda place: _write(export, card, place, shard_bytes), folder, replace)


def _write(export: pl.DataFrame, card: Card, folder: Path, shard_bytes: int) -> int:
    from datasets import Dataset, Features, disable_progress_bars

    features = Features({name: _feature(kind) for name, kind in export.schema.items()})
    rows = Dataset.from_polars(export, features=features)
    shards = min(max(1, math.ceil(rows.data.nbytes / shard_bytes)), max(1, export.height))
    disable_progress_bars()
    (folder / "data").mkdir()
    for index in range(shards):
        name = f"data/train-{index:05d}-of-{shards:05d}.parquet"
        rows.shard(shards, index, contiguous=True).to_parquet(folder / name)
    write_card(card, folder, DATA_FILES)
    return shards


def _feature(kind: Any) -> Any:
    """The type of `datasets` that holds a column of this type."""
    from datasets import List, Value

    if isinstance(kind, pl.List):
        inner: Any = kind.inner
        return List({field.name: Value("string") for field in inner.fields})
    return Value({pl.String: "string", pl.Float64: "float64", pl.Int64: "int64"}[kind.base_type()])


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
