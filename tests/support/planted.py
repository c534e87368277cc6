"""Rewards with a planted order, for a router to find, and the settings under which a tiny model finds it."""

from typing import Any

import polars as pl

from persyn.router.settings import RouterSettings
from persyn.schemas import REWARDS
from tests.support.tables import prompts_table

TEACHERS = ["low", "middle", "high"]
SUM, POEM = "12 + 34 + 5 99", "poem story tale 99"
SOURCES = ["sums", "poems"]
"""Of SUM and of POEM."""


def planted(number: int = 24) -> tuple[pl.DataFrame, pl.DataFrame]:
    """On sums `high` is best, then `middle`; on poems the other way round. Sums are one source, poems the other."""
    texts = [f"{'12 + 34 + 5' if i % 2 else 'poem story tale'} {i}" for i in range(number)]
    sources = pl.Series([SOURCES[0] if text[0] == "1" else SOURCES[1] for text in texts])
    prompts = prompts_table(texts).with_columns(source=sources)
    rows = [
        (identity, teacher, 0.0, 0.0, float(rank if text[0] == "1" else -rank))
        for identity, text in zip(prompts["prompt_id"], texts, strict=True)
        for rank, teacher in enumerate(TEACHERS)
    ]
    return prompts, pl.DataFrame(rows, schema=REWARDS, orient="row")


def settings(model: str, **changes: Any) -> RouterSettings:
    """Method finetuned without shrinkage, unless `changes` say otherwise."""
    shape: dict[str, Any] = {"method": "finetuned", "shrink": False}
    shape |= {"learning_rate": 3e-3, "epochs": 20, "batch_size": 8, "holdout": 0.25, "max_length": 64}
    return RouterSettings(model=model, **{**shape, **changes})
