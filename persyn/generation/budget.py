"""Budget: a limit on paid tokens, so that a run stops before it overspends."""

import json
import threading
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from datetime import date, datetime
from itertools import accumulate
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, PrivateAttr

from persyn.errors import InputError
from persyn.messages import Message
from persyn.settings import Settings
from persyn.store import Rows, paid_tokens, shelves

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


class Overspent(InputError):
    """The next response could exceed the budget."""


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
        rows = (json.loads(payload)["row"] for shelf in shelves(folder) for payload in Rows(shelf).values())
        counted = (row for row in rows if "origin" not in row and row.get("created", "") >= self.since)
        return sum(sum(paid_tokens(row)) for row in counted)

    def waves(self, folder: Path, requests: Sequence[Any], max_tokens: int) -> Iterator[list[Any]]:
        """The requests in groups, each sure to fit the tokens left when it is taken. A group must be in the store
        before the next one is asked for.

        Raises:
            Overspent: not even the next request fits.
        """
        needs = [_most_tokens(request.conversation, max_tokens) for request in requests]
        done = 0
        while done < len(needs):
            sure = self.reserve(folder, needs[done:])
            yield list(requests[done : done + sure])
            done += sure

    def reserve(self, folder: Path, needs: Sequence[int]) -> int:
        """How many of the next responses, from the first on, are sure to fit the tokens left.

        Args:
            needs: what each could take at most. Once the true counts are known, more may fit.

        Raises:
            Overspent: not even the first fits.
        """
        if self.max_tokens is None:
            return len(needs)
        spent = self.spent(folder)
        sure = _fitting(needs, int(self.max_tokens) - spent)
        if not sure:
            raise self._overspent(spent, needs)
        return sure

    def _overspent(self, spent: int, needs: Sequence[int]) -> Overspent:
        return Overspent(
            f"{spent:,} of {self.max_tokens:,.0f} tokens are spent; the next of {len(needs):,} responses "
            f"could take {needs[0]:,} and exceed budget.max_tokens. All responses are kept: raise it, lower a "
            f"teacher's max_tokens, or set budget.since"
        )

    def divided(self, folder: Path, num_parts: int) -> "Budget":
        """The budget of one of `num_parts` processes at once: each may spend an equal share of the tokens left now."""
        if self.max_tokens is None or num_parts == 1:
            return self
        spent = self.spent(folder)
        return self.changed(max_tokens=spent + max(0, int(self.max_tokens) - spent) // num_parts)


class SharedBudget(Budget):
    """A budget for several teachers that are asked at once, in threads of this process: what one of them may still
    spend is no longer there for the others, until its responses are in the store and count as spent.
    """

    _changed: threading.Condition = PrivateAttr(default_factory=threading.Condition)
    _reserved: dict[int, int] = PrivateAttr(default_factory=dict)
    """By the id of a part."""

    def part(self) -> "BudgetPart":
        """The budget of one teacher, until it is closed."""
        part = BudgetPart(max_tokens=self.max_tokens, since=self.since)
        part._whole = self
        self._reserve(part, 0)
        return part

    def _reserve(self, part: "BudgetPart", tokens: int) -> None:
        with self._changed:
            self._reserved[id(part)] = tokens
            self._changed.notify_all()


class BudgetPart(Budget):
    """One teacher's part of a SharedBudget: it shares the tokens left equally with those that have reserved none."""

    _whole: SharedBudget = PrivateAttr()

    def close(self) -> None:
        """Leave to the others what it did not spend."""
        with self._whole._changed:
            del self._whole._reserved[id(self)]
            self._whole._changed.notify_all()

    def reserve(self, folder: Path, needs: Sequence[int]) -> int:
        """As Budget.reserve. Waits while other teachers could leave enough of what they have reserved."""
        whole = self._whole
        if self.max_tokens is None:
            return len(needs)
        whole._reserve(self, 0)  # what was reserved before is spent
        with whole._changed:
            while True:
                spent = self.spent(folder)
                left = int(self.max_tokens) - spent - sum(whole._reserved.values())
                parts = sum(not tokens for tokens in whole._reserved.values())  # its own among them
                sure = _fitting(needs, left // parts) or _fitting(needs[:1], left)
                if sure:
                    whole._reserve(self, sum(needs[:sure]))
                    return sure
                if not any(whole._reserved.values()):
                    raise self._overspent(spent, needs)
                whole._changed.wait()


def _most_tokens(conversation: Sequence[Message], max_tokens: int) -> int:
    """What a response could take at most. A prompt counts as one token per byte, which no tokenizer exceeds."""
    return max_tokens + sum(MESSAGE_TOKENS + len(message["content"].encode()) for message in conversation)


def _fitting(needs: Sequence[int], left: int) -> int:
    """How many of `needs`, from the first on, fit into what is left."""
    return bisect_right(list(accumulate(needs)), left)
