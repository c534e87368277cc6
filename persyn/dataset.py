"""Dataset: routed responses -> what the student is trained on, in TRL's prompt-completion form."""

import polars as pl

from persyn.chat import assistant_message, user_message
from persyn.schemas import DATASET, InputError


def build_dataset(prompts: pl.DataFrame, routed: pl.DataFrame, *, keep_length: bool = False) -> pl.DataFrame:
    """Join prompts with their routed responses.

    Args:
        prompts: PROMPTS.
        routed: RESPONSES, one row a prompt.
        keep_length: whether a response cut at max_tokens is trained on. It teaches the student to end in
            mid-sentence, so the default leaves it out.

    Returns:
        DATASET. Empty responses and errors are left out.

    Raises:
        InputError: no row is left.
    """
    reasons = ["stop", "length"] if keep_length else ["stop"]
    rows = routed.join(prompts, on="prompt_id", how="left", validate="1:1").sort("prompt_id")
    kept = rows.filter(pl.col("finish_reason").is_in(reasons), pl.col("response") != "")
    if kept.is_empty():
        counts = dict(rows["finish_reason"].value_counts().rows())
        raise InputError(
            f"no response is fit to train on (finish reasons {counts}); raise sampling.max_tokens of the teachers, "
            f"or set dataset.keep_length: true"
        )
    series = [
        pl.Series("prompt", [user_message(text) for text in kept["prompt"]], dtype=DATASET["prompt"]),
        pl.Series("completion", [assistant_message(text) for text in kept["response"]], dtype=DATASET["completion"]),
    ]
    return kept.select("prompt_id", "teacher").hstack(series).select(DATASET.names())
