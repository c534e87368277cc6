"""Index: where the row of each key is in a folder's journals, so that rows need not be in memory.

An entry takes 40 bytes: 128 bits of the key's hash, and where its record is. A journal whose writer is gone has its
entries beside it (`.idx`), so that opening does not read it again. Such a file is only a copy: it is used if its own
checksum holds and the journal is at least as long as when it was written, and it can be deleted at any time. A record
is checked whenever it is read, so what was damaged since is not served.
"""

import fcntl
import hashlib
import json
import mmap
import os
import struct
import zlib
from array import array
from collections.abc import ItemsView, Iterator, Mapping, ValuesView
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from persyn.store.journal import HEADER, key_of, list_journals, read_records, whole_record

ENTRY = np.dtype([("high", "<u8"), ("low", "<u8"), ("begin", "<u8"), ("length", "<u4"), ("journal", "<u4")])
"""High and low half of the key's hash; where the record begins; bytes of its json; which journal."""
VERSION = 1
SAVED_FROM = 1000
"""Entries from which a journal's index is saved: a smaller journal is read in no time."""
MOST_OPEN = 64
"""Files held open at most."""
WINDOW = 1 << 26
"""Bytes of a journal that are kept in memory while it is read."""


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


@dataclass
class _Read:
    """What was found in one journal."""

    entries: np.ndarray
    """(N,) of ENTRY, in the journal's order."""
    end: int
    """Where the last whole record ends."""
    damaged: list[tuple[int, int]]
    """Byte ranges."""


class Rows(Mapping[str, bytes]):
    """The json of every row by key, read from the journals when it is asked for. The first row of a key counts, in the
    order of list_journals.

    Args:
        saved: whether saved indexes are used and written; without, every record is read.
    """

    def __init__(self, folder: Path, saved: bool = True) -> None:
        self.folder, self.saved = folder, saved
        self.damaged: list[str] = []
        """Journal, byte range, of what was found damaged."""
        self.untold: list[str] = []
        """Those of which the user was not told yet."""
        self._files: dict[int, int] = {}
        self._open_all()

    def _open_all(self) -> None:
        """Read the index of every journal, or the journal where there is none."""
        self._numbers: dict[Path, int] = {}
        self._read_to: dict[Path, int] = {}
        self._recent: dict[int, tuple[int, int, int]] = {}
        self._unread: set[tuple[int, int]] = set()
        self.damaged.clear()
        self.close()
        found = [np.empty(0, ENTRY)]
        for journal in list_journals(self.folder):
            try:
                read = (_load(journal) if self.saved else None) or self._scan(journal)
            except FileNotFoundError:  # just compacted: its rows are in a journal that the next listing has
                return self._open_all()
            self._tell(journal, read.damaged)
            read.entries["journal"] = self._numbers[journal] = len(self._numbers)
            self._read_to[journal] = read.end
            found.append(read.entries)
        entries = np.concatenate(found)
        del found
        self._entries = entries[np.argsort(entries["high"], kind="stable")]  # the first of a key stays the first
        self._high = np.ascontiguousarray(self._entries["high"])
        return None

    def __getitem__(self, key: str) -> bytes:
        high, low = _hash(key)
        for journal, begin, length in self._places(high, low):
            payload = self._record(journal, begin, length)
            if payload is None:
                return self[key]
            if payload and key_of(payload) == key:
                return payload
        raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and self.get(key) is not None

    def __iter__(self) -> Iterator[str]:
        return (key for key, _ in self.items())

    def __len__(self) -> int:
        return len(self._entries) - len(self._repeated()[1]) + len(self._recent)

    def items(self) -> ItemsView[str, bytes]:
        """Key and json of each row, in the order of the journals, without keeping them."""
        return _Items(self)

    def values(self) -> ValuesView[bytes]:
        """The json of each row, in the order of the journals, without keeping them."""
        return _Values(self)

    def stream(self) -> Iterator[tuple[str, bytes]]:
        """As items."""
        with ExitStack() as held:
            try:
                files = [held.enter_context(journal.open("rb")) for journal in self._numbers]
            except FileNotFoundError:  # just compacted
                self._open_all()
                yield from self.stream()
                return
            for number, file in enumerate(files):
                for begin, _, payload in scan(file):
                    key = key_of(payload) if payload else ""
                    first = next(self._places(*_hash(key)), None) if payload else None
                    if first is not None and first[:2] == (number, begin):
                        yield key, payload

    def add(self, journal: Path, key: str, begin: int, length: int) -> None:
        """Note a record that was appended to a journal since the folder was opened."""
        number = self._numbers.setdefault(journal, len(self._numbers))
        high, low = _hash(key)
        if not any(self._known(high, low)):
            self._recent.setdefault(high << 64 | low, (number, begin, length))
        self._read_to[journal] = begin + HEADER.size + length

    def refresh(self) -> None:
        """Note the rows that were added since the folder was opened."""
        for journal in list_journals(self.folder):
            damaged = []
            try:
                with journal.open("rb") as file:
                    for begin, end, payload in scan(file, self._read_to.get(journal, 0)):
                        if payload:
                            self.add(journal, key_of(payload), begin, len(payload))
                        else:
                            damaged.append((begin, end))
            except FileNotFoundError:  # just compacted
                return self._open_all()
            self._tell(journal, damaged)
        return None

    def report(self) -> Report:
        """Counts of what the folder holds."""
        ranked, same = self._repeated()
        rows = len(ranked) - len(same)
        report = Report(len(self._numbers), len(ranked), rows, 0, list(self.damaged))
        first, last = b"", -2
        for position in same.tolist():
            if position != last + 1:
                first = self._read(ranked[position])
            last = position
            report.conflicts += _said(first) != _said(self._read(ranked[position + 1]))
        return report

    def _repeated(self) -> tuple[np.ndarray, np.ndarray]:
        """The entries with those of a key side by side, in the order of the journals, and the positions of those that
        the next one repeats.
        """
        ranked = self._entries[np.lexsort((self._entries["low"], self._high))]
        same = (ranked["high"][1:] == ranked["high"][:-1]) & (ranked["low"][1:] == ranked["low"][:-1])
        return ranked, np.flatnonzero(same)

    def _read(self, entry: np.void) -> bytes:
        return self._record(int(entry["journal"]), int(entry["begin"]), int(entry["length"])) or b""

    def _known(self, high: int, low: int) -> Iterator[tuple[int, int, int]]:
        """Journal, begin and length of the entries that were there when the folder was opened."""
        at = int(np.searchsorted(self._high, np.uint64(high)))
        while at < len(self._high) and self._high[at] == high:
            entry = self._entries[at]
            place = int(entry["journal"]), int(entry["begin"]), int(entry["length"])
            if entry["low"] == low and place[:2] not in self._unread:
                yield place
            at += 1

    def _places(self, high: int, low: int) -> Iterator[tuple[int, int, int]]:
        yield from self._known(high, low)
        recent = self._recent.get(high << 64 | low)
        if recent is not None:
            yield recent

    def _record(self, number: int, begin: int, length: int) -> bytes | None:
        """The json of a record; empty if it is damaged. None if the index was read anew: the journal is gone (compacted
        by another process), or is not what its saved index says.
        """
        try:
            data = os.pread(self._file(number), HEADER.size + length, begin)
        except FileNotFoundError:
            self._open_all()
            return None
        payload = whole_record(data, 0)
        if len(payload) == length:
            return payload
        journal = list(self._numbers)[number]
        if index_of(journal).exists():  # what follows the damage may be whole, elsewhere
            index_of(journal).unlink(missing_ok=True)
            self._open_all()
            return None
        self._unread.add((number, begin))
        self._tell(journal, [(begin, begin + HEADER.size + length)])
        return b""

    def _file(self, number: int) -> int:
        if number not in self._files:
            if len(self._files) >= MOST_OPEN:
                self.close()
            self._files[number] = os.open(list(self._numbers)[number], os.O_RDONLY)
        return self._files[number]

    def close(self) -> None:
        """Close the files; they are opened again when needed."""
        while self._files:
            os.close(self._files.popitem()[1])

    def __del__(self) -> None:
        self.close()

    def _tell(self, journal: Path, damaged: list[tuple[int, int]]) -> None:
        places = [f"{journal} bytes {begin} to {end}" for begin, end in damaged]
        self.damaged += places
        self.untold += places

    def _scan(self, journal: Path) -> _Read:
        """Read a journal and save its index."""
        numbers, end, damaged = array("Q"), 0, []
        with journal.open("rb") as file:
            for begin, stop, payload in scan(file):
                if payload:
                    numbers.extend((*_hash(key_of(payload)), begin, len(payload)))
                    end = stop
                else:
                    damaged.append((begin, stop))
        columns = np.array(numbers, np.uint64).reshape(-1, 4)
        entries = np.zeros(len(columns), ENTRY)
        for position, name in enumerate(("high", "low", "begin", "length")):
            entries[name] = columns[:, position]
        read = _Read(entries, end, damaged)
        if self.saved and len(entries) >= SAVED_FROM:
            _save(journal, read)
        return read


class _Items(ItemsView[str, bytes]):
    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.rows = rows

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        return self.rows.stream()


class _Values(ValuesView[bytes]):
    def __init__(self, rows: Rows) -> None:
        super().__init__(rows)
        self.rows = rows

    def __iter__(self) -> Iterator[bytes]:
        return (payload for _, payload in self.rows.stream())


def scan(file: BinaryIO, start: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """As read_records, of a journal from byte `start` on, a window of it in memory."""
    if os.fstat(file.fileno()).st_size <= start:
        return
    with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        released = 0
        for begin, end, payload in read_records(data, start):
            yield begin, end, payload
            if end - released > WINDOW:
                upto = end // mmap.PAGESIZE * mmap.PAGESIZE
                data.madvise(mmap.MADV_DONTNEED, released, upto - released)
                released = upto


def _hash(key: str) -> tuple[int, int]:
    high, low = struct.unpack("<QQ", hashlib.blake2b(key.encode(), digest_size=16).digest())
    return high, low


def _said(payload: bytes) -> dict[str, object]:
    row = json.loads(payload)["row"] if payload else {}
    return {name: row.get(name) for name in ("response", "finish_reason", "quality")}


def index_of(journal: Path) -> Path:
    """Where the index of a journal is saved."""
    return journal.with_suffix(".idx")


def _save(journal: Path, read: _Read) -> None:
    """Save a journal's index if its writer is gone; nothing is lost where that is not possible."""
    partial = journal.with_suffix(f".{os.getpid()}.partial")
    try:
        with journal.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # fails while its writer lives
            size = os.fstat(file.fileno()).st_size
            if read.end + sum(end - begin for begin, end in read.damaged if begin >= read.end) != size:
                return  # it has grown since it was read
            said = {"version": VERSION, "size": size, "end": read.end, "damaged": read.damaged}
            body = read.entries.tobytes()
            crc = zlib.crc32(body, zlib.crc32(json.dumps(said).encode()))
            partial.write_bytes(json.dumps({**said, "crc": crc}).encode() + b"\n" + body)
            partial.replace(index_of(journal))
    except OSError:
        partial.unlink(missing_ok=True)


def _load(journal: Path) -> _Read | None:
    """The saved index of a journal, if there is one to be trusted."""
    try:
        head, _, body = index_of(journal).read_bytes().partition(b"\n")
        said = json.loads(head)
        crc = said.pop("crc")
        if crc != zlib.crc32(body, zlib.crc32(json.dumps(said).encode())):
            return None
        if said["version"] != VERSION or said["size"] != journal.stat().st_size:
            return None
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return None
    damaged = [(int(begin), int(end)) for begin, end in said["damaged"]]
    return _Read(np.frombuffer(body, ENTRY).copy(), said["end"], damaged)
