"""Completions: what a chat completion says, in whichever dialect a server writes it.

Known dialects: OpenAI's own, content as a list of parts, thoughts in a field of their own or in parts, the names that
other servers have for a finish reason, and counts of tokens that are missing, partial or elsewhere.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persyn.generation import Generation
from persyn.generation.servers import BROKEN_OFF, EMPTY, FILTERED, LIMITS, TOOLS, Case
from persyn.generation.wording import shorten
from persyn.messages import Message
from persyn.prompts.conversations import read_reasoning
from persyn.thinking import split_thought

STOP = {"stop", "eos", "eos_token", "end_turn", "stop_sequence", "stop_token", "complete", "completed", "end", "done"}
LIMIT = {"length", "max_tokens", "max_length", "max_output_tokens", "token_limit", "max_new_tokens", *LIMITS}
"""Names of an end by the limit: as many tokens were written."""
FAILED = {"error", "abort", "aborted", "cancelled", "timeout", "insufficient_system_resource"}
CUT_SHORT = {"incomplete", "model_length", "model_context_window_exceeded", *FAILED}
"""Names of an end by the context, or by a failure in mid-text: the text is cut too."""
FILTER = {
    *(
        "content_filter",
        "content_filtered",
        "filter",
        "safety",
        "recitation",
        "blocklist",
        "prohibited_content",
        "spii",
    ),
    *("refusal", "sensitive", "guardrail_intervened", "blocked", "language"),
}
TOOL = {"tool_calls", "tool_use", "function_call", "malformed_function_call", "tool_call"}
BYTES_A_TOKEN = 4
"""Of UTF-8: the rule for a text that nobody has counted. English has 4 to 5, other languages and code 2 to 4."""
TOKENS_A_MESSAGE = 4
"""A chat template adds about as many to a message."""


@dataclass(frozen=True)
class Reading:
    """A completion as a Generation, and the case of servers.py that it is; None for a response."""

    generation: Generation
    case: Case | None = None


def read_completion(completion: Any, conversation: Sequence[Message] = (), limit: int | None = None) -> Generation:
    """As read_body, the Generation alone; a completion of the official client is read too."""
    body = completion if isinstance(completion, Mapping) else completion.to_dict()
    return read_body(body, conversation, limit).generation


def read_body(body: Any, conversation: Sequence[Message], limit: int | None = None) -> Reading:
    """A completion's body as a Generation.

    A server that knows its model's thoughts sends them apart; of any other, the content is split. A thought without
    content never closed. A text is a response whatever its finish reason is called; one that nobody knows is `stop` for
    a text below the limit, else `length`.

    Args:
        conversation: what was asked, for an estimate where the server counts no tokens.
        limit: max_tokens.

    Raises:
        AttributeError, TypeError, LookupError: it is not in the API's form.
    """
    choice, message = _choice(body)
    content, thoughts = read_content(message.get("content"))
    reasoning = read_reasoning(message) or thoughts
    thought = split_thought(content, opened=None if reasoning is None else False)
    if thought.reasoning and thought.reasoning not in (reasoning or ""):  # some servers send it both ways
        reasoning = "\n\n".join(filter(None, (reasoning, thought.reasoning)))
    asked, said = read_usage(_usage(body, choice), estimate_prompt(conversation))
    written = content + (thoughts or "") + ("" if thoughts else reasoning or "")
    said = said if said or not written else None  # a text of no tokens is not counted at all
    generation = Generation(
        thought.answer,
        "stop",
        asked or estimate_prompt(conversation),
        said if said is not None else _estimate_end(choice, written, limit),
        reasoning=reasoning,
        estimated=not asked or said is None,
    )
    return _finished(generation, choice, message, limit, closed=thought.closed)


def _choice(body: Mapping[str, Any]) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """The choice that is read, and its message: the first one with a text.

    A completion without choices is an empty response if it cost response tokens, and a filtered one if it says so.
    """
    choices = body["choices"]
    if not choices:
        usage = read_usage(body.get("usage"))
        blocked = body.get("prompt_feedback") or body.get("promptFeedback")
        if not (usage[1] or (isinstance(blocked, Mapping) and any("reason" in name.lower() for name in blocked))):
            raise LookupError("no choices")
        return {"finish_reason": "content_filter" if blocked else "stop"}, {}
    read = [(choice, _message(choice)) for choice in choices]
    return next((pair for pair in read if pair[1].get("content")), read[0])


def _message(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    for name in ("message", "delta"):
        if message := choice.get(name):
            if isinstance(message, Mapping):
                return message
            raise TypeError("a message that is no object")
    if choice.get("text"):
        return {"content": choice["text"]}
    if not choice.get("finish_reason"):
        raise TypeError("a choice without a message")
    return {}


def _finished(
    generation: Generation, choice: Mapping[str, Any], message: Mapping[str, Any], limit: int | None, *, closed: bool
) -> Reading:
    """The Reading of a text by what its server says of its end."""
    finish, name = choice.get("finish_reason"), _finish(choice)
    refusal = message.get("refusal")
    if name in FILTER or (isinstance(refusal, str) and refusal.strip() and not generation.response):
        words = shorten(refusal, 200) if isinstance(refusal, str) and refusal.strip() else f"finish_reason {finish}"
        return Reading(_without_response(generation, f"filtered: {words}"), FILTERED)
    if not generation.response and not generation.reasoning and (name in TOOL or message.get("tool_calls")):
        return Reading(_without_response(generation, "tool_calls: the answer is no text"), TOOLS)
    known = "stop" if name in STOP or name in TOOL else "length" if name in LIMIT or name in CUT_SHORT else ""
    unnamed = generation.num_response_tokens >= limit if limit is not None else False
    end = known or ("length" if unnamed else "stop")
    closed = closed and bool(generation.response or generation.reasoning is None)
    generation = replace(
        generation, finish_reason=end if closed else "length", said="" if known else str(finish or "nothing")[:40]
    )
    empty = not generation.response and not generation.reasoning
    if empty and name in FAILED:
        return Reading(replace(generation, finish_reason="error", error=f"server: finish_reason {finish}"), BROKEN_OFF)
    if empty and end == "stop" and not generation.num_response_tokens:
        return Reading(generation, EMPTY)
    return Reading(generation)


def _without_response(generation: Generation, error: str) -> Generation:
    return replace(generation, finish_reason="error", error=error, final=True)


def read_content(content: Any) -> tuple[str, str | None]:
    """The text of a message's content, and the thoughts among its parts; None if there are none."""
    if content is None or isinstance(content, str):
        return content or "", None
    parts = content if isinstance(content, list) else [content]
    texts: list[str] = []
    if isinstance(content, Mapping) and not _part_text(content):  # an object where json was asked for
        return json.dumps(content, ensure_ascii=False), None
    thoughts: list[str] = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping):
            kind, text = str(part.get("type", "text")), _part_text(part)
            (thoughts if re.search(r"think|thought|reason", kind) or part.get("thought") is True else texts).append(
                text
            )
        elif part is not None:
            texts.append(json.dumps(part))
    said = [text.strip() for text in thoughts if text.strip()]
    return "".join(texts), "\n\n".join(said) or None


def _part_text(part: Mapping[str, Any]) -> str:
    """The text of a part, in whichever field it has it."""
    for name in ("text", "thinking", "content", "reasoning", "summary", "value", "refusal"):
        inner = part.get(name)
        if isinstance(inner, str):
            return inner
        if isinstance(inner, Mapping | list):
            text, thoughts = read_content(inner)
            return text or thoughts or ""
    return ""


def _usage(body: Mapping[str, Any], choice: Mapping[str, Any]) -> Any:
    """The counts of tokens, wherever a server has them."""
    groq = body.get("x_groq")
    found = [body.get("usage"), body.get("usageMetadata"), choice.get("usage"), body.get("timings")]
    found.append(groq.get("usage") if isinstance(groq, Mapping) else None)
    return next((usage for usage in found if usage), None)


def read_usage(usage: Any, likely: int = 0) -> tuple[int | None, int | None]:
    """Prompt tokens and response tokens; None for what is not counted.

    Some servers count thoughts in the total alone: what the total has beyond the prompt is the response's. Thoughts
    that are more than the whole response are counted beside it.

    Args:
        likely: prompt tokens where only the total is counted.
    """
    usage = usage[0] if isinstance(usage, list) and usage else usage
    counts = usage if isinstance(usage, Mapping) else {}
    inner: Mapping[str, Any] = next(
        (counts[name] for name in ("billed_units", "tokens") if isinstance(counts.get(name), Mapping)), {}
    )
    counts = {**inner, **counts}
    asked = _count(
        counts, "prompt_tokens", "input_tokens", "prompt_eval_count", "promptTokens", "promptTokenCount", "prompt_n"
    )
    said = _count(
        *(counts, "completion_tokens", "output_tokens", "eval_count", "completionTokens", "candidatesTokenCount"),
        "predicted_n",
    )
    total = _count(counts, "total_tokens", "totalTokens", "totalTokenCount")
    if _count(counts, "prompt_tokens") is None and asked is not None:  # Anthropic's own form counts the cache apart
        asked += sum(_count(counts, f"cache_{way}_input_tokens") or 0 for way in ("read", "creation"))
    details = counts.get("completion_tokens_details")
    thoughts = _count(details if isinstance(details, Mapping) else counts, "reasoning_tokens")
    if said and thoughts and thoughts > said and not (total and asked and total - asked > said):
        said += thoughts
    if total and not asked and not said:
        return None, max(0, total - likely)
    if total and asked and total - asked > (said or 0):
        said = total - asked
    if total and said and not asked and total > said:
        asked = total - said
    return asked, said


def _finish(choice: Mapping[str, Any]) -> str:
    """A choice's finish reason in small letters."""
    finish = choice.get("finish_reason")
    if finish is None:
        return ""
    finish = next(iter(finish.values()), "") if isinstance(finish, Mapping) else finish
    finish = next(iter(finish), "") if isinstance(finish, list) else finish
    name = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", str(finish)).lower().replace("-", "_")
    return name.rpartition(".")[2].removeprefix("finish_reason_")


def _estimate_end(choice: Mapping[str, Any], written: str, limit: int | None) -> int:
    """Response tokens that nobody has counted: the limit where it cut the text, which may hide its thoughts."""
    return max(estimate_text(written), limit or 0) if _finish(choice) in LIMIT else estimate_text(written)


def _count(counts: Mapping[str, Any], *names: str) -> int | None:
    for name in names:
        value = counts.get(name)
        if isinstance(value, str) and re.fullmatch(r"\s*\d[\d,]{0,15}(?:\.\d{1,9})?\s*", value):
            value = float(value.replace(",", ""))
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1e12:
            return int(value)
    return None


def estimate_text(text: str) -> int:
    """Tokens of a text that nobody has counted."""
    return -(-len(text.encode("utf-8", "replace")) // BYTES_A_TOKEN)


def estimate_prompt(conversation: Sequence[Message]) -> int:
    """Tokens of a conversation that nobody has counted."""
    return sum(TOKENS_A_MESSAGE + estimate_text(message["content"]) for message in conversation)


def salvage_usage(text: str) -> tuple[int | None, int | None] | None:
    """The counts in a body that is no whole json; None for one that is no completion at all, which nobody bills.
    A count that did not arrive is None.
    """
    if '"choices"' not in text and '"usage"' not in text:
        return None
    found = [re.search(rf'"{name}_tokens"\s*:\s*(\d{1, 12})(?!\d)', text) for name in ("prompt", "completion")]
    asked, said = (int(match[1]) if match else None for match in found)
    return asked, said
