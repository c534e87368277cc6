"""The response store: nothing that was paid for is paid for twice.

It lives outside every stage's outputs (`$PERSYN_STORE`), since DVC deletes those before a stage runs. Each
process appends to a journal of its own, a record being [u32 length][u32 crc32][json]; a torn tail loses at most
the records in flight. The key is a content hash of what was asked, never of where or how fast it was answered.
"""

import hashlib
import json
import logging
import os
import struct
import uuid
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from persyn.models import cache_folder

KEY_VERSION = 1
logger = logging.getLogger(__name__)
HEADER = struct.Struct("<II")


def store_folder() -> Path:
    """`$PERSYN_STORE`, else `store` in PerSyn's cache folder."""
    return Path(os.environ.get("PERSYN_STORE") or cache_folder() / "store")


def response_key(**asked: Any) -> str:
    """sha256 of the canonical json of everything that decides an answer (model, revision, messages, sampling)."""
    canonical = json.dumps([KEY_VERSION, asked], sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(canonical.encode()).hexdigest()


class Store:
    """Rows by key, in memory once read, on disk in append-only journals under `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir(parents=True, exist_ok=True)
        self._rows: dict[str, dict[str, Any]] = {}
        for journal in sorted(self.folder.glob("j-*.log")):
            for record in _read_journal(journal):
                self._rows.setdefault(record["key"], record["row"])
        self._journal: BinaryIO | None = None

    def get(self, key: str) -> dict[str, Any] | None:
        """The row stored under `key`, or None."""
        return self._rows.get(key)

    def put(self, rows: dict[str, dict[str, Any]]) -> None:
        """Append rows and make them durable before returning. The first row of a key stays."""
        if self._journal is None:
            self._journal = (self.folder / f"j-{uuid.uuid4().hex}.log").open("ab")
        for key, row in rows.items():
            if key in self._rows:
                continue
            payload = json.dumps({"key": key, "row": row}, ensure_ascii=True).encode()
            self._journal.write(HEADER.pack(len(payload), zlib.crc32(payload)) + payload)
            self._rows[key] = row
        self._journal.flush()
        os.fsync(self._journal.fileno())


def _read_journal(journal: Path) -> Iterator[dict[str, Any]]:
    """Yield every whole record; stop with a warning at the first that is torn or damaged."""
    data = journal.read_bytes()
    offset = 0
    while offset < len(data):
        payload = b""
        if offset + HEADER.size <= len(data):
            length, crc = HEADER.unpack_from(data, offset)
            payload = data[offset + HEADER.size : offset + HEADER.size + length]
        if not payload or len(payload) != length or zlib.crc32(payload) != crc:
            logger.warning("%s: damaged at byte %d of %d; rows after it are asked again", journal, offset, len(data))
            return
        yield json.loads(payload)
        offset += HEADER.size + length
