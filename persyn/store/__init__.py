"""The response store: no response is paid for twice.

It is outside every stage's outputs (`$PERSYN_STORE`), since DVC deletes those before a stage runs. Each model has its
own folder (`slug`), and each process appends to its own journal there (journal.py), so writers need no lock against
each other. Compaction merges journals into one of the same format.
"""

import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from io import FileIO
from itertools import islice
from pathlib import Path
from typing import Any

from persyn.errors import InputError
from persyn.files import cache_folder
from persyn.store.index import Report, Rows, index_of
from persyn.store.journal import FORMAT, HEADER, append, encode, list_journals, new_journal, sync_folder

KEY_VERSION = 2
"""Raise it when the code changes what a model is shown: rows of older versions are then ignored."""
NUM_POSITIONS = 16**12
_TURNS: defaultdict[Path, threading.Lock] = defaultdict(threading.Lock)
"""Folder -> whose turn it is among the threads of this process: a lock of the file holds only between processes."""
logger = logging.getLogger(__name__)


def store_folder() -> Path:
    """`$PERSYN_STORE`, else `store` in PerSyn's cache folder."""
    return Path(os.environ.get("PERSYN_STORE") or cache_folder() / "store")


def slug(name: str) -> str:
    """A folder name for any text: its readable part, and 8 hex digits of its sha256 to make it unique."""
    readable = re.sub(r"[^a-z0-9]+", "-", name.lower().partition("@")[0].rpartition("/")[2]).strip("-")[:48]
    return f"{readable or 'model'}-{hashlib.sha256(name.encode('utf-8', 'backslashreplace')).hexdigest()[:8]}"


def response_key(**asked: Any) -> str:
    """sha256 of the canonical json of everything that decides a response (model, messages, sampling)."""
    canonical = json.dumps([KEY_VERSION, asked], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


def position(key: str) -> int:
    """A key's position from 0 to NUM_POSITIONS - 1. Keys are hashes, so positions are spread evenly."""
    return int(key[:12], 16)


def key_range(part: int, num_parts: int) -> tuple[int, int]:
    """The positions (first, last + 1) of one of `num_parts` equal parts of all keys, counted from 0.

    Raises:
        InputError: there is no such part.
    """
    if not 0 <= part < num_parts:
        raise InputError(f"part {part} of {num_parts}: it must be 0 to {num_parts - 1}")
    return part * NUM_POSITIONS // num_parts, (part + 1) * NUM_POSITIONS // num_parts


class Store:
    """Rows by key: in memory once opened, on disk in the append-only journals of `folder`.

    Raises:
        InputError: the folder cannot be used, or holds journals of an unknown format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._journal: FileIO | None = None
        with _clear(folder):
            folder.mkdir(parents=True, exist_ok=True)
            self._rows = Rows(folder)
        self._tell_damage()

    def get(self, key: str) -> dict[str, Any] | None:
        """The row stored under `key`, or None."""
        with _clear(self.folder):
            payload = self._rows.get(key)
        self._tell_damage()
        return None if payload is None else json.loads(payload)["row"]

    def put(self, rows: dict[str, dict[str, Any]]) -> None:
        """Append rows and make them durable before returning. The first row of a key is kept.

        Raises:
            InputError: the disk is full or not writable. Rows of earlier calls are safe.
        """
        with _clear(self.folder):
            new = {key: encode(key, row) for key, row in rows.items() if key not in self._rows}
            if not new:
                return
            if self._journal is None:
                self._journal = new_journal(self.folder)
            begin = self._journal.seek(0, os.SEEK_END)
            append(self._journal, new.values())
        for key, payload in new.items():
            self._rows.add(Path(str(self._journal.name)), key, begin, len(payload))
            begin += HEADER.size + len(payload)

    def refresh(self) -> None:
        """Read the rows that other processes have added since the store was opened."""
        with _clear(self.folder):
            self._rows.refresh()
        self._tell_damage()

    def _tell_damage(self) -> None:
        while self._rows.untold:
            logger.warning(
                "%s are damaged or unfinished; those rows are generated again, `persyn store gc` cleans up",
                self._rows.untold.pop(0),
            )

    @contextmanager
    def exclusive(self, low: int = 0, high: int = NUM_POSITIONS) -> Iterator[None]:
        """Lock the keys at positions `low` to `high` - 1: a second process waits here and then finds the responses of
        the first. Processes with other keys are not blocked. A process may hold one range: its threads take turns.
        """
        # lockf locks bytes; the file itself stays empty
        with _TURNS[self.folder.resolve()], (self.folder / "lock").open("ab") as file:
            try:
                fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, high - low, low)
            except (BlockingIOError, PermissionError):
                logger.warning("waiting for another process that generates responses into %s", self.folder)
                fcntl.lockf(file, fcntl.LOCK_EX, high - low, low)
            self.refresh()
            yield

    def check_space(self, num_bytes: int) -> None:
        """Raise InputError if `num_bytes` more would fill the disk."""
        free = shutil.disk_usage(self.folder).free
        if free < num_bytes:
            raise InputError(
                f"{self.folder}: about {num_bytes / 1e6:.0f} MB of responses will come, {free / 1e6:.0f} MB are free; "
                f"free some space or point PERSYN_STORE elsewhere"
            )


def shelves(folder: Path) -> list[Path]:
    """The folders of a store, one for each model."""
    return sorted({journal.parent for journal in folder.glob("*/j*-*.log")})


def verify(folder: Path) -> tuple[Report, Rows]:
    """Check every record of one model's folder.

    Returns:
        The report, and the json of every row by key.
    """
    rows = Rows(folder, saved=False)
    return rows.report(), rows


def paid_tokens(row: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and response tokens that a stored row took: its own, and those of attempts that brought nothing."""
    asked, said = (row.get(f"num_{end}_tokens", 0) + row.get(f"lost_{end}_tokens", 0) for end in ("prompt", "response"))
    return asked, said


def count_rows(folder: Path) -> dict[str, int]:
    """Counts for one model's folder: whole and cut responses, failed calls, scores, tokens, and rows not paid for."""
    counts = Counter[str]()
    for payload in Rows(folder).values():
        row = json.loads(payload)["row"]
        if "origin" in row:
            counts["elsewhere"] += 1
            continue
        counts[row.get("finish_reason", "score")] += 1
        for end, tokens in zip(("prompt", "response"), paid_tokens(row), strict=True):
            counts[f"{end} tokens"] += tokens
    return {
        "answers": counts["stop"],
        "cut at max_tokens": counts["length"],
        "failed": counts["error"],
        "scores": counts["score"],
        "taken from elsewhere": counts["elsewhere"],
        "prompt tokens": counts["prompt tokens"],
        "response tokens": counts["response tokens"],
    }


def compact(folder: Path) -> Report:
    """Merge a model's journals into one, without damaged and repeated records. No response is lost.

    The merged journal is complete and durable before an old one is deleted, so a crash at any point loses nothing.

    Raises:
        InputError: a process is writing there.
    """
    with ExitStack() as held, _clear(folder):
        journals = list_journals(folder)
        for journal in journals:
            try:
                fcntl.flock(held.enter_context(journal.open("rb+")), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{folder}: a running process is writing there; try again when it has ended") from None
        report, rows = verify(folder)
        if len(journals) > 1 or report.damaged or report.records > report.rows:
            digest = hashlib.sha256()
            partial = folder / f"j{FORMAT}-merged.partial"
            with FileIO(partial, "wb") as file:
                payloads = iter(rows.values())
                while batch := list(islice(payloads, 1000)):
                    append(file, batch)
                    digest.update(b"".join(batch))
            merged = folder / f"j{FORMAT}-{digest.hexdigest()[:32]}.log"
            partial.replace(merged)
            sync_folder(folder)
            for journal in set(journals) - {merged}:
                if index_of(journal).exists():
                    index_of(journal).unlink()
                journal.unlink()
    return report


@contextmanager
def _clear(folder: Path) -> Iterator[None]:
    """Turn a failure to read or write the store into an InputError."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"the response store {folder} failed: {error.strerror}; rows stored before are safe. Fix the cause "
            f"(or point PERSYN_STORE elsewhere) and run the same command again"
        ) from error
