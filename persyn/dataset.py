"""Dataset: routed responses -> what the student is trained on, in TRL's prompt-completion form."""

from collections import Counter
from typing import Any

import polars as pl

from persyn.chat import assistant_message, user_message
from persyn.defects import Policies, count_defects, find_defects
from persyn.schemas import DATASET, InputError


def build_dataset(
    prompts: pl.DataFrame, routed: pl.DataFrame, policies: Policies, *, keep_length: bool = False
) -> tuple[pl.DataFrame, dict[str, Any]]:
    """Join prompts with their routed responses, without those that are not fit to train on.

    Args:
        prompts: PROMPTS.
        routed: RESPONSES, one row a prompt.
        policies: which defects keep a response out.
        keep_length: whether a response cut at max_tokens is trained on. It teaches the student to end in
            mid-sentence, so the default leaves it out.

    Returns:
        DATASET, and the counts {rows, kept, dropped: {reason: count}, teachers: count_defects}. The reason is the
        first that holds of error, length and the kinds of defect.

    Raises:
        InputError: no row is left.
    """
    defects = find_defects(prompts, routed)
    rows = routed.join(prompts, on="prompt_id", how="left", validate="1:1")
    rows = rows.join(defects, on=["prompt_id", "teacher"], how="left", validate="1:1").sort("prompt_id")
    reasons = [
        pl.when(pl.col("finish_reason") == "error").then(pl.lit("error")),
        pl.when((pl.col("finish_reason") == "length") & (not keep_length)).then(pl.lit("length")),
        *(pl.when(kind).then(pl.lit(kind)) for kind in policies.kinds("drop")),
    ]
    rows = rows.with_columns(dropped=pl.coalesce(reasons))
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
    counts = {"rows": rows.height, "kept": kept.height, "dropped": dict(dropped)}
    return dataset, counts | {"teachers": count_defects(defects, routed)}
