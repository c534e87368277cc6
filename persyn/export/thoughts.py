"""Thoughts: where each format of an export puts what a teacher thought before its answer."""

import polars as pl

KEY = "reasoning_content"
"""The key of an assistant message by which chat templates, TRL and Axolotl know its thought."""


def thought_message(texts: pl.Series, thoughts: pl.Series | None = None) -> pl.Series:
    """Each text as a list of one assistant message. Where `thoughts` are given, the message has them as its
    `reasoning_content`, null for a text without one.
    """
    parts = {"role": pl.Series(["assistant"] * len(texts), dtype=pl.String), "content": texts}
    if thoughts is not None:
        parts[KEY] = thoughts
    return pl.DataFrame(parts).select(message=pl.concat_list(pl.struct(*parts)))["message"]


def with_thoughts(rows: pl.DataFrame) -> pl.DataFrame:
    """EXPORT whose `completion` and `messages` hold the thoughts of `reasoning`, if there is one."""
    if not rows["reasoning"].count():
        return rows
    completion = thought_message(rows["completion"].list.first().struct.field("content"), rows["reasoning"])
    turn = pl.element().struct
    before = pl.col("prompt").list.eval(
        pl.struct(turn.field("role"), turn.field("content"), pl.lit(None, pl.String).alias(KEY))
    )
    return rows.with_columns(completion=completion).with_columns(messages=pl.concat_list(before, "completion"))


def tagged(answer: str, thought: str | None) -> str:
    """The answer after its thought in tags, as LLaMA-Factory writes them; Axolotl's `split_thinking` reads them."""
    return f"<think>\n{thought}\n</think>\n\n{answer}" if thought else answer
