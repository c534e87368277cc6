"""Attempts: one prompt may take several calls. What each brought, and what those without a response cost."""

import json
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from persyn.generation import Generation
from persyn.generation.bodies import decode_body
from persyn.generation.completions import estimate_prompt, estimate_text, read_body, salvage_usage
from persyn.generation.servers import CONNECTION, CUT, MALFORMED, TIMEOUT, Case, Said, Verdict, is_error, read_verdict
from persyn.messages import Message

Usage = tuple[int | None, int | None]
"""Prompt and response tokens; None: paid, but the count did not arrive."""


@dataclass(frozen=True)
class Attempt:
    """What one call brought."""

    generation: Generation
    """The response, or the error that becomes the record if no further call is made."""
    verdict: Verdict | None = None
    """None: a response."""
    usage: Usage = (0, 0)
    """What it took, where `generation` does not say."""
    status: int = 0
    address: str = ""
    """Of the server that answered, where there are several."""


@dataclass
class Lost:
    """The calls for one conversation that were paid for and brought no response."""

    conversation: Sequence[Message]
    usages: list[Usage] = field(default_factory=list)

    def add(self, usage: Usage) -> None:
        if usage != (0, 0):
            self.usages.append(usage)

    def added_to(self, generation: Generation) -> Generation:
        """`generation` with what was lost. A call whose count did not arrive took what the call that arrived took: it
        asked the same. If none arrived, the prompt is estimated.
        """
        if not self.usages:
            return generation
        likely = generation.num_prompt_tokens or estimate_prompt(self.conversation), generation.num_response_tokens
        counts = [[likely[end] if usage[end] is None else usage[end] for usage in self.usages] for end in (0, 1)]
        asked, said = (sum(count or 0 for count in counted) for counted in counts)
        guessed = any(None in usage for usage in self.usages)
        return replace(
            generation,
            lost_prompt_tokens=asked,
            lost_response_tokens=said,
            estimated=generation.estimated or guessed,
        )


def read_answer(
    status: int, content: bytes, sent: Mapping[str, Any], limit: int, secrets: Sequence[str] = ()
) -> Attempt:
    """What an answer brought.

    Args:
        content: its body.
        sent: the request's body.
        limit: max_tokens.
    """
    conversation = sent["messages"]
    text = content.decode(json.detect_encoding(content), "replace").lstrip("\ufeff")
    body = decode_body(text)
    usage: Usage = (0, 0)
    status = 200 if 200 <= status < 300 else status
    if status == 200 and not is_error(body):
        try:
            reading = read_body(body, conversation, limit)
        except (AttributeError, TypeError, LookupError, ValueError):
            return _malformed(text, body, sent, secrets)
        generation = reading.generation
        inside = body.get("error") or next((choice.get("error") for choice in body["choices"] or []), None)
        if not inside or generation.response or generation.reasoning:
            return Attempt(generation, Verdict(reading.case) if reading.case else None, status=status)
        body = {"error": inside}
        usage = (generation.num_prompt_tokens, generation.num_response_tokens) if not generation.estimated else (0, 0)
    prompt = [message["content"] for message in conversation]
    verdict = read_verdict(status, body, sent, prompt, secrets)
    if verdict.case.paid == "perhaps":
        usage = (None, limit)
    return Attempt(_record(verdict, status), verdict, usage, status)


def _malformed(text: str, body: Any, sent: Mapping[str, Any], secrets: Sequence[str]) -> Attempt:
    """An answer with status 200 that is no completion. One that has the beginning of a completion was paid for."""
    verdict = read_verdict(200, body, sent, [message["content"] for message in sent["messages"]], secrets)
    words = verdict.said.words if isinstance(body, str) and not text.lstrip().startswith("{") else ""
    usage = salvage_usage(text) or (0, 0)
    if isinstance(body, dict) and usage == (None, None):  # whole json without counts: what it holds is all there is
        usage = (None, estimate_text(text) if body.get("choices") else 0)
    generation = Generation("", "error", error="malformed: the body is not a chat completion")
    return Attempt(generation, Verdict(MALFORMED, Said(200, (), words)), usage, 200)


def broken(cause: BaseException, *, began: bool) -> Attempt:
    """A call without a whole answer.

    Args:
        cause: the exception of the connection.
        began: whether the answer's first line had come.
    """
    name = type(cause).__name__
    late = "Timeout" in name and name not in ("ConnectTimeout", "PoolTimeout")
    case: Case = TIMEOUT if "Timeout" in name else CUT if began else CONNECTION
    usage: Usage = (None, None) if late or began else (0, 0)
    return Attempt(Generation("", "error", error=f"{case.kind}: {name}"), Verdict(case), usage)


def _record(verdict: Verdict, status: int) -> Generation:
    """The record of an answer without a response, if it becomes one."""
    case, told = verdict.case, verdict.said.told()
    reason = f"status {status}{f', {told}' if told else ''}"
    return Generation("", "error", error=f"{case.kind or 'refused'}: {reason}", final=case.action == "skip")


def pause(number: int) -> float:
    """Seconds to wait after the `number`-th failure of a call: ever longer, and not the same for all calls."""
    return float(min(0.5 * 2 ** (number - 1), 8.0) * (1 - 0.25 * random.random()))


def hinted_seconds(words: str) -> float:
    """Seconds that an answer's words ask for (`try again in 7m12.5s`); 0 if they ask for none."""
    found = re.search(
        r"(?:again|retry|wait)\w*(?: again)? (?:in|after|for) ((?:\d+(?:\.\d+)? ?[a-z]+ ?)+)", words.lower()
    )
    if not found:
        return 0.0
    units = {"ms": 0.001, "s": 1.0, "sec": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "hour": 3600.0, "day": 86400.0}
    units |= {"second": 1.0, "millisecond": 0.001, "minute": 60.0, "d": 86400.0}
    parts = re.findall(r"(\d+(?:\.\d+)?) ?([a-z]+)", found[1])
    return sum(float(count) * units.get(unit if unit in units else unit.rstrip("s"), 0.0) for count, unit in parts)
