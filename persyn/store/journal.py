"""Journals: the file format of the response store. A record is [u32 length][u32 crc32][json].

Every json begins with MARK, which cannot occur inside json text (quotes are escaped there), so the next whole record
after a damaged one can be found: only damaged records are lost. Any single flipped bit and any truncation is detected:
CRC32 finds all bursts of errors of up to 32 bits.
"""

import fcntl
import json
import os
import struct
import uuid
import zlib
from collections.abc import Iterable, Iterator
from io import FileIO
from mmap import mmap
from pathlib import Path
from typing import Any

from persyn.errors import InputError

FORMAT = 1
"""Part of every journal's name."""
HEADER = struct.Struct("<II")
MARK = b'{"key": "'


def list_journals(folder: Path) -> list[Path]:
    """The journals of `folder`, in the order in which they are read.

    Raises:
        InputError: some have another format.
    """
    found = sorted(folder.glob("j*-*.log"))
    for journal in found:
        if not journal.name.startswith(f"j{FORMAT}-"):
            raise InputError(
                f"{journal} was written by another version of PerSyn (this one reads j{FORMAT}-*.log); "
                f"use that version, or point PERSYN_STORE elsewhere"
            )
    return found


def new_journal(folder: Path) -> FileIO:
    """A journal for this process alone. Its lock prevents compaction as long as the process lives."""
    journal = FileIO(folder / f"j{FORMAT}-{uuid.uuid4().hex}.log", "ab")
    fcntl.flock(journal, fcntl.LOCK_EX)
    if not Path(journal.name).exists():  # compaction removed the empty file just before it was locked
        return new_journal(folder)
    sync_folder(folder)
    return journal


def append(journal: FileIO, payloads: Iterable[bytes]) -> None:
    """Write records and make them durable before returning."""
    left = memoryview(b"".join(HEADER.pack(len(payload), zlib.crc32(payload)) + payload for payload in payloads))
    while left:
        left = left[journal.write(left) or 0 :]
    os.fsync(journal.fileno())


def encode(key: str, row: dict[str, Any]) -> bytes:
    """The json of a record."""
    return json.dumps({"key": key, "row": row}, ensure_ascii=True).encode()


def key_of(payload: bytes) -> str:
    """The key of a record's json, without parsing the rest."""
    return payload[len(MARK) : payload.index(b'"', len(MARK))].decode()


def read_records(data: bytes | mmap, begin: int = 0) -> Iterator[tuple[int, int, bytes]]:
    """(begin, end, json) of every record from byte `begin` on; the json is empty if these bytes hold no whole,
    undamaged record.
    """
    while begin < len(data):
        payload = whole_record(data, begin)
        end = begin + HEADER.size + len(payload) if payload else _next_record(data, begin)
        yield begin, end, payload
        begin = end


def sync_folder(folder: Path) -> None:
    """Make the directory entries of `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _next_record(data: bytes | mmap, begin: int) -> int:
    mark = data.find(MARK, begin + 1 + HEADER.size)
    while mark >= 0 and not whole_record(data, mark - HEADER.size):
        mark = data.find(MARK, mark + 1)
    return mark - HEADER.size if mark >= 0 else len(data)


def whole_record(data: bytes | mmap, begin: int) -> bytes:
    """The json of the record that begins here; empty if there is no whole, undamaged one."""
    if begin + HEADER.size > len(data):
        return b""
    length, crc = HEADER.unpack_from(data, begin)
    payload = data[begin + HEADER.size : begin + HEADER.size + length]
    whole = len(payload) == length and payload.startswith(MARK) and zlib.crc32(payload) == crc
    return payload if whole else b""
