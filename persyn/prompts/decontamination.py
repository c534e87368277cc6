"""Decontamination: the prompts that repeat an evaluation item, or nearly, and which item it was."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from persyn.errors import printable
from persyn.messages import Message
from persyn.prompts.near import Similar
from persyn.prompts.overlap import Items

logger = logging.getLogger(__name__)
CONTAMINATED, NEARLY, NEAR_DUPLICATE = "contaminated", "nearly contaminated", "near duplicate"
EXAMPLES, SHOWN = 5, 160
"""How many dropped prompts are shown for each reason, and how many characters of each text."""


@dataclass(frozen=True)
class Met:
    """What a prompt was dropped for."""

    reason: str
    prompt: str
    """The part of it that met."""
    item: str
    """The evaluation item, or the earlier prompt."""
    source: str
    """Where that is from."""
    shared: str | None = None
    """The words that both have in a row, of a repetition."""
    similarity: float | None = None
    """The share of their runs of three words that both have, of what is nearly the same."""


def questions(messages: Iterable[Message]) -> list[Message]:
    """All but the system messages, which are no part of the question and often the same in many rows."""
    return [turn for turn in messages if turn["role"] != "system"]


class EvaluationSets:
    """Evaluation items that no prompt may repeat."""

    def __init__(self, size: int, near: float | None) -> None:
        """
        Args:
            size: words in a row that must not be shared, see Items.
            near: similarity from which on a prompt nearly repeats an item; None looks for repetitions only.
        """
        self._items, self._similar = Items(size), None if near is None else Similar(near, size)
        self._texts: list[tuple[str, str]] = []
        self._first: list[int] = []

    def add(self, source: str, messages: Iterable[Message]) -> None:
        """An item. Its question is the first user turn: later ones, such as `Continue.`, ask nothing by themselves."""
        asked = False
        for turn in questions(messages):
            is_question = turn["role"] == "user" and not asked
            self._items.add(len(self._texts), turn["content"], is_question)
            if is_question and self._similar:
                self._similar.add(turn["content"])
                self._first.append(len(self._texts))
            asked = asked or is_question
            self._texts.append((turn["content"], source))

    def met(self, messages: Iterable[Message]) -> Met | None:
        """The first item that a turn repeats, or else the one that a turn is most similar to."""
        texts = [turn["content"] for turn in questions(messages)]
        for text in texts:
            if found := self._items.find(text):
                return Met(CONTAMINATED, text, *self._texts[found[0]], shared=found[1])
        matches = [(text, self._similar.find(text)) for text in texts] if self._similar else []
        near = [(text, *match) for text, match in matches if match]
        if not near:
            return None
        text, number, similarity = max(near, key=lambda match: match[2])
        return Met(NEARLY, text, *self._texts[self._first[number]], similarity=similarity)


@dataclass
class NearDuplicates:
    """The prompts kept so far, to which a later one may be too similar. Without a threshold none is.

    Prompts with different system messages are different.
    """

    threshold: float | None
    size: int
    kept: dict[str, Similar] = field(default_factory=dict)
    sources: dict[str, list[str]] = field(default_factory=dict)

    def met(self, messages: list[Message], source: str) -> Met | None:
        """The kept prompt that this one nearly repeats; without one it is kept."""
        if self.threshold is None:
            return None
        system = "\n".join(turn["content"] for turn in messages if turn["role"] == "system")
        text = "\n\n".join(turn["content"] for turn in questions(messages))
        kept = self.kept.setdefault(system, Similar(self.threshold, self.size))
        origins = self.sources.setdefault(system, [])
        if near := kept.find(text):
            return Met(NEAR_DUPLICATE, text, kept.texts[near[0]], origins[near[0]], similarity=near[1])
        kept.add(text)
        origins.append(source)
        return None


@dataclass
class Examples:
    """The first dropped prompts of each reason, with what they met."""

    found: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)
    """reason -> prompt_id -> {prompt, item, source, shared, similarity}. No list: DVC would draw one as a plot."""

    def note(self, identity: str, met: Met) -> None:
        """Remember a dropped prompt, and log it, if it is among the first of its reason."""
        seen = self.found.setdefault(met.reason, {})
        if identity in seen or len(seen) == EXAMPLES:
            return
        texts = {"prompt": _cut(met.prompt), "item": _cut(met.item), "source": met.source}
        seen[identity] = {**texts, "shared": met.shared and _cut(met.shared), "similarity": met.similarity}
        both = f"both have {_cut(met.shared)!r}" if met.shared else f"similarity {met.similarity:.2f}"
        logger.info("%s: %r meets %r of %s; %s", met.reason, *texts.values(), both)


def _cut(text: str) -> str:
    line = " ".join(printable(text, "\n").split())
    return line if len(line) <= SHOWN else line[: SHOWN - 3] + "..."
