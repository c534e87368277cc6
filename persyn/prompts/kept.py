"""Kept: the prompts that are used, spilled to files by the beginning of their prompt_id, so that millions need little
memory: of each some 150 bytes, whatever its length.
"""

import hashlib
from array import array
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from persyn.errors import InputError
from persyn.schemas import DOMAINS, PROMPTS, write_table

ROWS = 50_000
"""Prompts in memory before they are written."""
PARTS = "0123456789abcdef"
"""Files in the end: one for each first character of prompt_id. Each fits in memory."""


class Kept:
    """The prompts kept so far, told apart by their prompt_id."""

    def __init__(self, folder: Path) -> None:
        """
        Args:
            folder: an empty one for the files.
        """
        self.folder, self.domains = folder, Counter[str]()
        self._known, self._rows, self._written = set[int](), list[dict[str, Any]](), 0
        self._ids, self._domain_of = array("Q"), array("B")
        self._names: list[str] = DOMAINS.categories.to_list()

    def __contains__(self, identity: str) -> bool:
        return int(identity, 16) in self._known

    def add(self, row: dict[str, Any]) -> None:
        """A row of PROMPTS without `parallel`."""
        identity = int(row["prompt_id"], 16)
        self._known.add(identity)
        self._ids.append(identity)
        self._domain_of.append(self._names.index(row["domain"]))
        self.domains[row["domain"]] += 1
        self._rows.append(row)
        if len(self._rows) == ROWS:
            self._spill()

    def table(self, num_parallel: int, seed: int) -> pl.LazyFrame:
        """PROMPTS in the order of prompt_id, which is read from the files.

        Args:
            num_parallel: how many are marked as parallel, in proportion to the domains.
            seed: with the content it decides which.

        Raises:
            InputError: there are fewer prompts.
        """
        if not 0 < num_parallel <= len(self._ids):
            raise InputError(
                f"prompts.num_parallel is {num_parallel}; it must be 1 to {len(self._ids)}, the prompts kept"
            )
        self._spill()
        self._known.clear()
        parallel = None if num_parallel == len(self._ids) else self._parallel(num_parallel, seed)
        return pl.scan_parquet([part for name in PARTS for part in self._sorted(name, parallel)])

    def _spill(self) -> None:
        rows = pl.DataFrame(self._rows, schema={name: kind for name, kind in PROMPTS.items() if name != "parallel"})
        for (first,), part in rows.group_by(pl.col("prompt_id").str.head(1)):
            part.write_parquet(self.folder / f"{first}.{self._written}.parquet", statistics=False)
        self._rows, self._written = [], self._written + 1

    def _parallel(self, count: int, seed: int) -> pl.Series:
        """prompt_id of `count` prompts, in proportion to the domains, chosen by a hash of the content and the seed."""
        lots = np.fromiter((_lot(f"{seed}:{identity:016x}") for identity in self._ids), np.uint64, len(self._ids))
        of_prompts = {"id": np.frombuffer(self._ids, np.uint64), "domain": np.frombuffer(self._domain_of, np.uint8)}
        order = pl.DataFrame(of_prompts | {"lot": lots})
        # Sorted by rank over domain size, every prefix has the domains in proportion to their sizes.
        rank = (pl.col("lot").rank("ordinal").over("domain") - 0.5) / pl.len().over("domain")
        chosen = order.with_columns(share=rank).sort("share", "lot").head(count)
        return pl.Series([f"{identity:016x}" for identity in chosen["id"]])

    def _sorted(self, name: str, parallel: pl.Series | None) -> Iterable[Path]:
        """The file of the prompts whose prompt_id begins with `name`, if there are any."""
        parts = sorted(self.folder.glob(f"{name}.*.parquet"))
        if not parts:
            return
        marked = pl.lit(True) if parallel is None else pl.col("prompt_id").is_in(parallel.implode())
        out = self.folder / f"{name}.parquet"
        write_table(pl.read_parquet(parts).with_columns(parallel=marked), out, PROMPTS)
        for part in parts:
            part.unlink()
        yield out


def _lot(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
