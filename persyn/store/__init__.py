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
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from typing import Any

from persyn.errors import InputError
from persyn.files import cache_folder
from persyn.store.journal import FORMAT, append, encode, key_of, list_journals, new_journal, read_records, sync_folder

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


@dataclass
class Report:
    """The findings of `verify` and `compact` in one folder."""

    journals: int = 0
    records: int = 0
    rows: int = 0
    """Different keys."""
    conflicts: int = 0
    """Keys with two different rows; the first is used."""
    damaged: list[str] = field(default_factory=list)
    """Journal, byte range."""


class Store:
    """Rows by key: in memory once opened, on disk in the append-only journals of `folder`.

    Raises:
        InputError: the folder cannot be used, or holds journals of an unknown format.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._payloads: dict[str, bytes] = {}
        self._read_to: dict[Path, int] = {}
        self._journal: FileIO | None = None
        with _clear(folder):
            folder.mkdir(parents=True, exist_ok=True)
        self.refresh()

    def get(self, key: str) -> dict[str, Any] | None:
        """The row stored under `key`, or None."""
        payload = self._payloads.get(key)
        return None if payload is None else json.loads(payload)["row"]

    def put(self, rows: dict[str, dict[str, Any]]) -> None:
        """Append rows and make them durable before returning. The first row of a key is kept.

        Raises:
            InputError: the disk is full or not writable. Rows of earlier calls are safe.
        """
        new = {key: encode(key, row) for key, row in rows.items() if key not in self._payloads}
        if not new:
            return
        with _clear(self.folder):
            if self._journal is None:
                self._journal = new_journal(self.folder)
            append(self._journal, new.values())
        self._payloads |= new

    def refresh(self) -> None:
        """Read the rows that other processes have added since the store was opened."""
        with _clear(self.folder):
            for journal in list_journals(self.folder):
                try:
                    self._refresh(journal)
                except FileNotFoundError:  # just compacted: its rows are in a journal that the next listing has
                    return self.refresh()
        return None

    def _refresh(self, journal: Path) -> None:
        with journal.open("rb") as file:
            start = file.seek(self._read_to.get(journal, 0))
            data = file.read()
        for begin, end, payload in read_records(data):
            if payload:
                self._payloads.setdefault(key_of(payload), payload)
                self._read_to[journal] = start + end
            else:
                logger.warning(
                    "%s: bytes %d to %d are damaged or unfinished; those rows are generated again, `persyn store gc` "
                    "cleans up",
                    *(journal, start + begin, start + end),
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


def verify(folder: Path) -> tuple[Report, dict[str, bytes]]:
    """Check every record of one model's folder.

    Returns:
        The report, and the json of every row by key.
    """
    report = Report()
    rows: dict[str, bytes] = {}
    for journal in list_journals(folder):
        report.journals += 1
        for begin, end, payload in read_records(journal.read_bytes()):
            if not payload:
                report.damaged.append(f"{journal} bytes {begin} to {end}")
                continue
            report.records += 1
            first = rows.setdefault(key_of(payload), payload)
            report.conflicts += _said(first) != _said(payload)
    report.rows = len(rows)
    return report, rows


def _said(payload: bytes) -> dict[str, Any]:
    row = json.loads(payload)["row"]
    return {name: row.get(name) for name in ("response", "finish_reason", "quality")}


def count_rows(folder: Path) -> dict[str, int]:
    """Counts for one model's folder: whole and cut responses, failed calls, scores, tokens, and rows not paid for."""
    stored = [json.loads(payload)["row"] for payload in verify(folder)[1].values()]
    rows = [row for row in stored if "origin" not in row]
    by_reason = Counter(row.get("finish_reason", "score") for row in rows)
    return {
        "answers": by_reason["stop"],
        "cut at max_tokens": by_reason["length"],
        "failed": by_reason["error"],
        "scores": by_reason["score"],
        "taken from elsewhere": len(stored) - len(rows),
        "prompt tokens": sum(row.get("num_prompt_tokens", 0) + row.get("lost_prompt_tokens", 0) for row in rows),
        "response tokens": sum(row.get("num_response_tokens", 0) + row.get("lost_response_tokens", 0) for row in rows),
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
            digest = hashlib.sha256(b"".join(rows.values())).hexdigest()
            merged = folder / f"j{FORMAT}-{digest[:32]}.log"
            partial = folder / f"{merged.name}.partial"
            with FileIO(partial, "wb") as file:
                append(file, rows.values())
            partial.replace(merged)
            sync_folder(folder)
            for journal in set(journals) - {merged}:
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
