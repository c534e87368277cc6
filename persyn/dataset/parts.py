"""Parts: a dataset of millions of rows, of which a part is in memory at a time."""

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import polars as pl

from persyn.dataset import Building
from persyn.dataset.card import count_origins, sum_origins
from persyn.dataset.mix import Chosen
from persyn.schemas import DATASET, sink_parts

Mixes = Callable[[pl.Series], tuple[list[Chosen], dict[str, Any]]]
"""prompt_id of the routed rows -> choose_mixes."""


def sink_dataset(
    parts: Callable[[], Iterable[list[pl.DataFrame]]], building: Building, mixes: Mixes | None, folder: Path, out: str
) -> tuple[dict[str, Any], pl.DataFrame]:
    """Write DATASET, with the rows of the mixes among its own.

    Args:
        parts: begins anew each time: PROMPTS, ROUTES and RESPONSES of the same prompts, in the order of prompt_id.
        mixes: None: there are none.
        folder: an empty one for the parts.

    Returns:
        The counts of build_dataset with those of choose_mixes as mix, and count_origins of all rows.

    Raises:
        InputError: as build_dataset and choose_mixes.
    """
    files = list[Path]()
    for number, (prompts, routes, routed) in enumerate(parts()):
        files.append(folder / f"{number:06}.parquet")
        building.add(prompts, routed, routes).write_parquet(files[-1], compression="lz4", statistics=False)
    stays = building.stays()
    counts = building.counts()
    chosen = list[Chosen]()
    if mixes:
        chosen, counts["mix"] = mixes(_identities(files).filter(stays))
    more = list[Path]()
    for table in (table for one in chosen for table in one.tables()):
        more.append(folder / f"mix-{len(more):06}.parquet")
        table.write_parquet(more[-1], compression="lz4", statistics=False)
    origins = list[pl.DataFrame]()

    def merged() -> Iterator[pl.DataFrame]:
        done, before = 0, ""
        asked = (prompts for prompts, *_ in parts())
        for file, prompts in zip(files, asked, strict=True):
            rows = pl.read_parquet(file)
            rows, done = rows.filter(stays[done : done + rows.height]), done + rows.height
            last = prompts["prompt_id"][-1] if file != files[-1] else None
            rows = pl.concat([rows, _between(more, before, last)]) if more else rows
            before = last or ""
            origins.append(count_origins(prompts, rows))
            yield rows

    sink_parts(merged(), out, DATASET)
    return counts, sum_origins(origins)


def _identities(files: list[Path]) -> pl.Series:
    return pl.scan_parquet(files).select("prompt_id").collect()["prompt_id"]


def _between(files: list[Path], before: str, last: str | None) -> pl.DataFrame:
    """The rows with a prompt_id after `before`, up to `last` (None: all)."""
    within = pl.col("prompt_id") > before
    within = within if last is None else within & (pl.col("prompt_id") <= last)
    return pl.scan_parquet(files).filter(within).collect()
