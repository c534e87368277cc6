"""Conversations: what a row of a source asks, as messages, whatever its shape; and when two prompts are the same.

The shapes: text (one user turn), messages (`[{"role": "user", "content": "Hi"}]`), sharegpt (`[{"from": "human",
"value": "Hi"}]`), turns (`["Hi", "Say it in French."]`, all the user's) and alpaca (columns instruction, input,
system and history). Beside a sharegpt conversation, its system message may stand in a column of its own.
"""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from persyn.messages import Message, as_messages

KEYS = {"messages": ("role", "content"), "sharegpt": ("from", "value")}
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "model", "bot", "bing", "bard"), "assistant"),
}
TOOLS = {"tool", "function", "function_call", "function_response", "tool_call", "tool_response", "observation"}
CALLS = ("tool_calls", "function_call")
WRITTEN = re.compile(r"""\[\s*\{\s*["'](?:role|content|from|value)["']\s*:.*\]""", re.DOTALL)
"""A conversation that someone turned into text."""


class NoPrompt(ValueError):
    """A value asks nothing that can be read. The text continues a sentence about the value."""


@dataclass(frozen=True)
class Asked:
    """What a row asks."""

    shape: str
    """text, messages, sharegpt, turns or alpaca."""
    messages: list[Message]
    """The normalised conversation, without the assistant's turns at its end."""
    answer: str | None = None
    """The text of those turns."""
    thought: str | None = None
    """What these turns have as thoughts apart from their text."""
    unfit: str = ""
    """Why it cannot be used."""
    role: str | None = None
    """The role that is not known, if that is why."""


def read_asked(value: Any, system: Any = None) -> Asked:
    """What a column's value asks.

    Args:
        system: of a conversation without a system message, the one that stands in a column of its own.

    Raises:
        NoPrompt: it has none of the shapes.
    """
    if value is None or isinstance(value, str):
        return asked_text(value or "")
    if isinstance(value, list) and value and all(isinstance(turn, str) for turn in value):
        return _asked("turns", [{"role": "user", "content": turn} for turn in value])
    for shape, (role, content) in KEYS.items():
        if isinstance(value, list) and all(isinstance(turn, dict) and _is_turn(turn, role, content) for turn in value):
            calls = (any(turn.get(name) for name in CALLS) for turn in value)
            turns = [
                turn | {"role": "tool" if call else turn[role], "content": turn.get(content)}
                for turn, call in zip(value, calls, strict=True)
            ]
            led = any(str(turn["role"]).strip().lower() in ("system", "developer") for turn in turns)
            return _asked(shape, turns if led else [*_system(system), *turns])
    got = type(value).__name__
    if isinstance(value, list):
        got += f" of {', '.join(sorted({type(turn).__name__ for turn in value}))}"
        keys = sorted({str(key) for turn in value if isinstance(turn, dict) for key in turn})
        got += f" (keys {', '.join(keys)})" if keys else ""
    raise NoPrompt(
        f"is {got}; it must hold text or a conversation: a list of {{role, content}}, of {{from, value}} or of the "
        f"user's texts (or be made text by a template over its parts)"
    )


def _is_turn(turn: dict[str, Any], role: str, content: str) -> bool:
    """Whether a message has these two keys. In tables of mixed shapes the keys of the others are null; a call of a tool
    may have no content.
    """
    return turn.get(role) is not None and (content in turn or any(turn.get(name) for name in CALLS))


def asked_text(text: str, shape: str = "text", answer: str | None = None) -> Asked:
    """One user turn.

    Raises:
        NoPrompt: the text is a conversation that was turned into text.
    """
    if WRITTEN.fullmatch(text.strip()):
        raise NoPrompt(
            "is a conversation written as text; it must be a list of messages: turn it into one (json.loads) in the "
            "file, or leave the row out by `where`"
        )
    return Asked(shape, [{"role": "user", "content": normalise(text)}], normalise(answer or "") or None)


def asked_alpaca(text: str, answer: str | None, system: Any, history: Any) -> Asked:
    """An instruction, after a system message and pairs of earlier questions and answers, where there are any.

    Raises:
        NoPrompt: as asked_text.
    """
    asked = asked_text(text, "alpaca", answer)
    pairs = history if isinstance(history, list) else []
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs):
        return Asked("alpaca", [], unfit="not text")
    said = ((("user", question), ("assistant", reply)) for question, reply in pairs)
    before = [*_system(system), *({"role": role, "content": text} for turns in said for role, text in turns)]
    return replace(_asked("alpaca", [*before, *asked.messages]), answer=asked.answer) if before else asked


def _system(text: Any) -> list[dict[str, Any]]:
    return [{"role": "system", "content": text}] if isinstance(text, str) else []


def _asked(shape: str, turns: Iterable[dict[str, Any]]) -> Asked:
    """The conversation of these turns, whose roles and contents are as the source has them."""
    messages, thoughts = list[Message](), list[str | None]()
    for turn in turns:
        role, text = re.sub(r"[- ]", "_", str(turn["role"]).strip().lower()), _text(turn["content"])
        if role in TOOLS:
            return Asked(shape, [], unfit="tool turn")
        if role not in ROLES:
            return Asked(shape, [], unfit="unknown role", role=str(turn["role"]))
        if text is None:
            return Asked(shape, [], unfit="not text")
        messages.append({"role": ROLES[role], "content": normalise(text)})
        thoughts = [*thoughts, read_reasoning(turn)] if ROLES[role] == "assistant" else []
    messages = [message for message in messages if message["content"] or message["role"] != "system"]
    said: list[str] = []
    while messages and messages[-1]["role"] == "assistant":
        said.insert(0, messages.pop()["content"])
    answer, thought = ("\n\n".join(filter(None, texts)) or None for texts in (said, thoughts))
    if not any(message["role"] == "user" for message in messages):
        return Asked(shape, [], unfit="no user turn")
    if messages[-1]["role"] != "user":
        return Asked(shape, [], unfit="no user turn at the end")
    unfit = "" if all(message["content"] for message in messages) else "empty"
    return Asked(shape, messages, answer, thought, unfit)


def _text(content: Any) -> str | None:
    """The text of a message's content, which may be a list of parts; None if a part is no text, such as an image."""
    if content is None or isinstance(content, str):
        return content or ""
    if not isinstance(content, list):
        return None
    texts = []
    for part in content:
        text = part.get("text") if isinstance(part, dict) and part.get("type") == "text" else part
        if not isinstance(text, str):
            return None
        texts.append(text)
    return "\n".join(texts)


def read_reasoning(message: Mapping[str, Any]) -> str | None:
    """The thought that a message has apart from its content, in whichever field; None if there is none."""
    for name in ("reasoning_content", "reasoning", "thinking", "thought"):
        text = message.get(name)
        if isinstance(text, str) and text.strip():
            return text.strip()
    details = message.get("reasoning_details")
    parts = [part for part in details if isinstance(part, Mapping)] if isinstance(details, list) else []
    texts = [text for part in parts if isinstance(text := part.get("text") or part.get("summary"), str)]
    return "\n\n".join(text.strip() for text in texts if text.strip()) or None


def normalise(text: str) -> str:
    """NFC, one kind of line end, no trailing blanks on a line, none around the whole, no byte order mark."""
    text = unicodedata.normalize("NFC", text).lstrip("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    return "\n".join(line.rstrip() for line in text.split("\n")).strip()


def prompt_id(prompt: str | Sequence[Message]) -> str:
    """Content hash of a normalised prompt: the key of every table, equal on every machine.

    Of a single user turn it is the hash of its text. That of a conversation begins with a line end, which no normalised
    text does, so no text has the id of a conversation.
    """
    messages = as_messages(prompt)
    if len(messages) == 1 and messages[0]["role"] == "user":
        text = messages[0]["content"]
    else:
        text = "\n" + json.dumps([{"role": turn["role"], "content": turn["content"]} for turn in messages])
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]
