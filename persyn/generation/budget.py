"""Budget: a limit on paid tokens, so that a run stops before it overspends."""

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date, datetime
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field

from persyn.errors import InputError
from persyn.messages import Message
from persyn.settings import Settings
from persyn.store import shelves, verify

MESSAGE_TOKENS = 16
"""A chat template adds at most this many tokens to a message."""


def _as_text(value: Any) -> Any:
    return str(value) if isinstance(value, date) else value  # YAML reads a date as a date


def _whole(value: float) -> float:
    if value != value // 1:
        raise ValueError(f"is {value!r}; it must be a whole number of tokens, or null for no limit")
    return value


Tokens = Annotated[Annotated[int, Field(ge=0)] | Annotated[float, Field(ge=0)], AfterValidator(_whole)]


def _iso(value: str) -> str:
    """Compared with times as text, so any other text would count nothing, or everything, as spent."""
    try:
        datetime.fromisoformat(value or "2000-01-01")
    except ValueError:
        raise ValueError(f"is {value!r}; it must be an ISO date or time, such as 2026-01-31") from None
    return value


class Budget(Settings):
    """The section `budget`. All tokens in the response store, of all teachers, count as spent."""

    max_tokens: Tokens | None = None
    """Prompt and response tokens that may be paid for; null sets no limit."""
    since: Annotated[str, BeforeValidator(_as_text), AfterValidator(_iso)] = ""
    """ISO date or time (UTC): responses made before it do not count."""

    def spent(self, folder: Path) -> int:
        """Prompt and response tokens of all generated responses in the response store at `folder`, and of the attempts
        and failures that brought none.
        """
        rows = (json.loads(payload)["row"] for shelf in shelves(folder) for payload in verify(shelf)[1].values())
        counted = (row for row in rows if "origin" not in row and row.get("created", "") >= self.since)
        return sum(sum(paid_tokens(row)) for row in counted)

    def waves(self, folder: Path, requests: Sequence[Any], max_tokens: int) -> Iterator[list[Any]]:
        """The requests in groups, each sure to fit the tokens left when it is taken.

        Raises:
            InputError: as affords.
        """
        left = list(requests)
        while left:
            sure = self.affords(folder, [request.conversation for request in left], max_tokens)
            yield left[:sure]
            left = left[sure:]

    def affords(self, folder: Path, conversations: Sequence[Sequence[Message]], max_tokens: int) -> int:
        """How many of the conversations, from the first on, are sure to fit the tokens left.

        A prompt counts as one token per byte, which no tokenizer exceeds. Once the true counts are known, more may fit.

        Raises:
            InputError: not even the first fits.
        """
        if self.max_tokens is None:
            return len(conversations)
        spent = self.spent(folder)
        needed, sure = 0, 0
        for messages in conversations:
            needed += max_tokens + sum(MESSAGE_TOKENS + len(message["content"].encode()) for message in messages)
            if spent + needed > self.max_tokens:
                break
            sure += 1
        if not sure:
            raise InputError(
                f"{spent:,} of {self.max_tokens:,.0f} tokens are spent; the next of {len(conversations):,} responses "
                f"could take {needed:,} and exceed budget.max_tokens. All responses are kept: raise it, lower a "
                f"teacher's max_tokens, or set budget.since"
            )
        return sure

    def divided(self, folder: Path, num_parts: int) -> "Budget":
        """The budget of one of `num_parts` processes at once: each may spend an equal share of the tokens left now."""
        if self.max_tokens is None:
            return self
        spent = self.spent(folder)
        return self.changed(max_tokens=spent + max(0, int(self.max_tokens) - spent) // num_parts)


def paid_tokens(row: Mapping[str, Any]) -> tuple[int, int]:
    """Prompt and response tokens that a stored row took: its own, and those of attempts that brought nothing."""
    asked, said = (row.get(f"num_{end}_tokens", 0) + row.get(f"lost_{end}_tokens", 0) for end in ("prompt", "response"))
    return asked, said
