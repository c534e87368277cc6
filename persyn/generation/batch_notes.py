"""Batch notes: what was given to a server as a batch, beside the store, so that no run gives it a second time.

A note is a json file in the folder `batches` of the teacher's part of the store. Its states, each durable before the
step that it names begins:

- noted: the input file may have been uploaded, but no batch was made of it. Nothing is paid for.
- creating: the file is uploaded, and the server was, or was not, asked to make a batch of it. The server knows which.
- out: the batch is at the server, whose name for it is `batch`.
- ended: all that it brought is in the store. The note no longer lists its requests.
"""

import fcntl
import json
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from io import FileIO
from pathlib import Path
from typing import Any

from persyn.errors import InputError
from persyn.store.journal import sync_folder

FOLDER = "batches"
FORMAT = 1


@dataclass
class Note:
    """One batch."""

    path: Path
    base_url: str
    model: str
    max_tokens: int
    keys: list[str]
    """Of its requests, each its line's custom_id."""
    state: str = "noted"
    file: str = ""
    """The server's name of the input file."""
    batch: str = ""
    """The server's name of the batch."""
    noted: str = ""
    ended: str = ""
    """The state in which it ended, and what it brought."""
    lock: FileIO | None = None
    """Held while this process works on it."""

    @property
    def name(self) -> str:
        return self.path.stem

    def save(self, **changes: Any) -> None:
        """Change fields and make the note durable before returning.

        Raises:
            InputError: the disk is full or not writable.
        """
        for name, value in changes.items():
            setattr(self, name, value)
        fields = {name: value for name, value in vars(self).items() if name not in ("path", "lock")}
        partial = self.path.with_suffix(".partial")
        try:
            with FileIO(partial, "wb") as file:
                left = memoryview(json.dumps({"format": FORMAT, **fields}, indent=1).encode())
                while left:
                    left = left[file.write(left) :]
                os.fsync(file.fileno())
            partial.replace(self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise InputError(
                f"cannot write {self.path}: {error.strerror}; fix the cause and run again: what is at the server stays"
            ) from error

    def hold(self, *, wait: bool) -> bool:
        """Take the note for this process alone, until `release`. False: another process has it, or it is done."""
        if not self._take(wait=wait):
            return False
        try:
            now = read_note(self.path)  # as the process before left it
        except FileNotFoundError:
            now = None
        if now is None or now.state == "ended":
            self._leave()
            return False
        self.__dict__.update({**vars(now), "lock": self.lock})
        return True

    def _take(self, *, wait: bool) -> bool:
        lock = FileIO(self.path.with_suffix(".lock"), "ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            lock.close()
            return False
        self.lock = lock
        return True

    def _leave(self) -> None:
        self.path.with_suffix(".lock").unlink(missing_ok=True)
        self.release()

    def end(self, how: str) -> None:
        """Note that the store has all that the batch brought."""
        self.save(state="ended", ended=how, keys=[])
        self._leave()

    def drop(self) -> None:
        """Forget a batch that was never made."""
        self.path.unlink(missing_ok=True)
        sync_folder(self.path.parent)
        self._leave()

    def release(self) -> None:
        """Leave the note to other processes."""
        if self.lock:
            self.lock.close()
            self.lock = None


def new_note(folder: Path, base_url: str, model: str, max_tokens: int, keys: Sequence[str]) -> Note:
    """A note of a batch that is about to be made, held by this process."""
    folder.mkdir(parents=True, exist_ok=True)
    now = datetime.now(UTC).isoformat(timespec="seconds")
    note = Note(folder / f"{uuid.uuid4().hex}.json", base_url, model, max_tokens, list(keys), noted=now)
    note._take(wait=True)  # before any other process can see it
    note.save()
    return note


def read_note(path: Path) -> Note:
    """The note at `path`.

    Raises:
        InputError: it is damaged, or of another version.
        FileNotFoundError: another process has dropped it.
    """
    try:
        fields = json.loads(path.read_bytes())
        if fields.pop("format") != FORMAT:
            raise ValueError("another format")
        return Note(path, **fields)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path} is no note of a batch ({type(error).__name__}); if no batch of yours is at the server, delete it"
        ) from error


def open_notes(folder: Path) -> list[Note]:
    """The notes of batches whose results are not all in the store, oldest first."""
    found = []
    for path in folder.glob("*.json"):
        try:
            note = read_note(path)
        except FileNotFoundError:
            continue
        if note.state != "ended":
            found.append(note)
    return sorted(found, key=lambda note: (note.noted, note.name))
