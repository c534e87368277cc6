"""Kept routers: the last ones that were trained, in the cache, so that a teacher with anchors is placed beside one
without another training. DVC runs the stage again for such a teacher, since the rewards have more rows.
"""

import contextlib
import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import polars as pl

from persyn.files import cache_folder, write_text

MOST = 3
"""Routers that are kept."""


class Kept:
    """The place of one router, named by all that decides it: the inputs, and the code of this package."""

    def __init__(self, *decides: Any) -> None:
        code = [file.read_text() for file in sorted(Path(__file__).parent.glob("*.py"))]
        digest = hashlib.sha256(json.dumps([*decides, *code], sort_keys=True).encode()).hexdigest()
        self.folder = cache_folder() / "routers" / digest[:24]

    @property
    def router(self) -> Path:
        return self.folder / "router"

    def measured(self) -> tuple[dict[str, Any], pl.DataFrame] | None:
        """The card and the reliability of the router; None if it is not kept."""
        with contextlib.suppress(OSError):
            card = json.loads((self.folder / "card.json").read_text())
            return card, pl.read_parquet(self.folder / "reliability.parquet")
        return None

    def keep(self, router: Any, card: dict[str, Any], reliability: pl.DataFrame) -> None:
        """Write it, and remove the oldest ones."""
        shutil.rmtree(self.folder, ignore_errors=True)
        router.save(self.router)
        reliability.write_parquet(self.folder / "reliability.parquet")
        write_text(json.dumps(card), self.folder / "card.json")  # last: what has none is not whole
        others = sorted(self.folder.parent.iterdir(), key=lambda each: each.stat().st_mtime, reverse=True)
        for folder in others[MOST:]:
            shutil.rmtree(folder, ignore_errors=True)
