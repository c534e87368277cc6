"""Dataset: routed responses -> what the student is trained on, in TRL's prompt-completion form."""

from collections import Counter
from typing import Any

import polars as pl

from persyn.chat import assistant_message, user_message
from persyn.schemas import DATASET, InputError


def build_dataset(
    prompts: pl.DataFrame, routed: pl.DataFrame, *, keep_length: bool = False
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Join prompts with their routed responses.

    Args:
        prompts: PROMPTS.
        routed: RESPONSES, one row a prompt.
        keep_length: whether a response cut at max_tokens is trained on. It teaches the student to end in
            mid-sentence, so the default leaves it out.

    Returns:
        DATASET, and the counts {rows, kept, dropped: {empty, error, length: count}}.

    Raises:
        InputError: no row is left.
    """
    cut = (pl.col("finish_reason") == "length") & (not keep_length)
    rows = routed.join(prompts, on="prompt_id", how="left", validate="1:1").sort("prompt_id")
    reason = (
        pl.when(pl.col("finish_reason") == "error")
        .then(pl.lit("error"))
        .when(cut)
        .then(pl.lit("length"))
        .when(pl.col("response") == "")
        .then(pl.lit("empty"))
    )
    rows = rows.with_columns(dropped=reason)
    kept, dropped = rows.filter(pl.col("dropped").is_null()), Counter(rows["dropped"].drop_nulls().sort())
    if kept.is_empty():
        raise InputError(
            f"no response is fit to train on (dropped: {dict(dropped)}); raise sampling.max_tokens of the teachers, "
            f"or set dataset.keep_length: true"
        )
    series = [
        pl.Series("prompt", [user_message(text) for text in kept["prompt"]], dtype=DATASET["prompt"]),
        pl.Series("completion", [assistant_message(text) for text in kept["response"]], dtype=DATASET["completion"]),
    ]
    dataset = kept.select("prompt_id", "teacher").hstack(series).select(DATASET.names())
    return dataset, {"rows": rows.height, "kept": kept.height, "dropped": dict(dropped)}
