"""Tally: what became of a teacher's responses, counted part by part, and told once all have come."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from persyn.errors import InputError
from persyn.thinking import never_closed

logger = logging.getLogger(__name__)


@dataclass
class Failures:
    """Prompts without a response."""

    kinds: Counter[str] = field(default_factory=Counter)
    """Kind of error -> how many."""
    first: dict[str, str] = field(default_factory=dict)
    """prompt_id -> its error, of the first one."""

    def add(self, identity: str, reason: str) -> None:
        self.first = self.first or {identity: reason}
        self.kinds[reason.partition(":")[0]] += 1


class Tally:
    """The counts of one teacher."""

    def __init__(self, name: str, max_tokens: int) -> None:
        """
        Args:
            name: the teacher's key in params.yaml.
            max_tokens: of its sampling.
        """
        self.name, self.max_tokens, self.rows = name, max_tokens, 0
        self._finished, self._never, self._failed = Counter[str](), Failures(), Failures()
        self._thoughts = self._open = self._estimated = 0
        self._empty, self._unknown = Counter[str](), Counter[str]()

    def add(self, identities: Iterable[str], rows: list[dict[str, Any]]) -> None:
        """Count rows of the store, as read_row gives them, of the prompts with these prompt_id."""
        self.rows += len(rows)
        for identity, row in zip(identities, rows, strict=True):
            self._finished[row["finish_reason"]] += 1
            self._thoughts += row["reasoning"] is not None
            self._open += never_closed(row["reasoning"], row["response"], row["finish_reason"])
            self._estimated += row.get("estimated", False)
            if row["finish_reason"] == "error":
                (self._never if row.get("final") else self._failed).add(identity, row["error"])
            elif "origin" not in row:
                self._note_oddities(row)

    def _note_oddities(self, row: Mapping[str, Any]) -> None:
        if not (row["response"].strip() or row["reasoning"]):
            self._empty[row["finish_reason"]] += 1
        if row.get("said"):
            self._unknown[row["said"]] += 1

    def tell(self, max_error_share: float) -> None:
        """Log them, warn of what a server left out and of thoughts that never ended.

        Raises:
            InputError: a larger share of the prompts has no response, though asking again may bring one.
        """
        self._tell_errors(max_error_share)
        self._tell_thoughts()
        self._tell_oddities()

    def _tell_errors(self, max_error_share: float) -> None:
        finished = " + ".join(f"{n} {why}" for why, n in sorted(self._finished.items()))
        logger.info("%s: %d prompts = %s", self.name, self.rows, finished)
        if never := self._never.kinds.total():
            logger.warning(
                "%d of %d prompts of %s (%.0f %%) can never be answered at this max_tokens (%s) and are not asked "
                "again; first %s: %s",
                *(never, self.rows, self.name, 100 * never / self.rows, dict(self._never.kinds)),
                *next(iter(self._never.first.items())),
            )
        failed = self._failed.kinds.total()
        if not failed:
            return
        first, reason = next(iter(self._failed.first.items()))
        message = (
            f"{failed} of {self.rows} prompts of {self.name} have no response ({dict(self._failed.kinds)}); first "
            f"{first}: {reason}"
        )
        if failed > max_error_share * self.rows:
            raise InputError(
                f"{message}. That is more than responses.max_error_share {max_error_share}; run again to ask only "
                f"those again, or raise it"
            )
        logger.warning("%s", message)

    def _tell_thoughts(self) -> None:
        if self._thoughts:
            logger.info(
                "%s: %d of %d responses have a thought; %d never closed it",
                *(self.name, self._thoughts, self.rows, self._open),
            )
        if self._open:
            logger.warning(
                "%s: %d of %d responses (%.0f %%) ended inside their thought and have no answer; raise its "
                "sampling.max_tokens, or turn its thoughts off (for many models, template: {enable_thinking: false})",
                *(self.name, self._open, self.rows, 100 * self._open / self.rows),
            )

    def _tell_oddities(self) -> None:
        """Words, counts of tokens, a reason that is known."""
        if cut := self._empty["length"]:
            logger.warning(
                "%s: %d of %d empty at max_tokens %d (%.0f %%): the model thinks longer; raise its "
                "sampling.max_tokens, or turn its thoughts off (for many models, template: {enable_thinking: false})",
                *(self.name, cut, self.rows, self.max_tokens, 100 * cut / self.rows),
            )
        if silent := self._empty["stop"]:
            logger.warning(
                "%s: %d of %d empty: the model ended by itself, without a word", self.name, silent, self.rows
            )
        if self._estimated:
            logger.warning(
                "%s: the server did not count all tokens of %d of %d responses; they are estimated (a token for every "
                "four bytes)",
                *(self.name, self._estimated, self.rows),
            )
        if self._unknown:
            reasons = ", ".join(f"{reason} x {n}" for reason, n in self._unknown.most_common(3))
            logger.warning(
                "%s: %d of %d responses ended for a reason that nobody knows (%s); they are kept, as stop below "
                "max_tokens and as length at it",
                *(self.name, self._unknown.total(), self.rows, reasons),
            )
