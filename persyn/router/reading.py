"""Reading: the text that a router reads of a prompt."""

from collections.abc import Sequence

import polars as pl

from persyn.messages import Message, as_messages


def prompt_texts(prompts: pl.DataFrame) -> list[str]:
    """The texts of the column `prompt`, in its order."""
    return [prompt_text(prompt) for prompt in prompts["prompt"].to_list()]


def prompt_text(prompt: str | Sequence[Message]) -> str:
    """Of a single user turn its text; of a longer conversation the last turn first, and so on back to the oldest. A
    router that reads only so many tokens then leaves the oldest out.
    """
    return "\n\n".join(turn["content"] for turn in reversed(as_messages(prompt)))
