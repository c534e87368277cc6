"""Bodies: what servers and proxies send around a completion, taken off it. What was paid is read."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

DECODER = json.JSONDecoder(strict=False)
"""Takes a raw line break inside a text, too."""


def decode_body(text: str) -> Any:
    """A body as json; as text if it is none.

    Read too are a stream of events that nobody asked for, comments before the json, something behind it, and a
    completion inside a list, an object or a text.
    """
    text = text.strip()
    events = list(_events(text))
    if any(isinstance(event, Mapping) and event.get("choices") for event in events):
        return _joined([event for event in events if isinstance(event, Mapping)])
    return _unwrapped(_decode(text))


def _decode(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    bare = "\n".join(line for line in text.splitlines() if not line.startswith(":")).lstrip()
    try:
        body, _ = DECODER.raw_decode(bare)
    except (ValueError, RecursionError):
        return text
    return body if isinstance(body, Mapping) and body.get("choices") else text


def _unwrapped(body: Any) -> Any:
    """The completion in a body that holds nothing else; other bodies as they are."""
    if isinstance(body, str):
        inner = _decode(body)
    elif isinstance(body, list) and len(body) == 1:
        inner = body[0]
    elif isinstance(body, Mapping) and "choices" not in body:
        inner = next((body[name] for name in ("data", "result", "response", "body") if name in body), None)
    else:
        return body
    return inner if isinstance(inner, Mapping) and inner.get("choices") else body


def _events(text: str) -> Iterator[Any]:
    """The data of server-sent events; none if the text is no stream of them."""
    if text.startswith(("data:", "event:", "id:", ":")):
        for line in text.splitlines():
            if line.startswith("data:") and line[5:].strip() != "[DONE]":
                yield _decode(line[5:].strip())


def _joined(events: list[Mapping[str, Any]]) -> dict[str, Any]:
    """The completion that a stream of events is; without its last event it has no finish reason: it was cut."""
    message: dict[str, str] = {}
    finish, usage, error = "incomplete", None, None
    for event in events:
        usage, error = event.get("usage") or usage, event.get("error") or error
        for choice in event.get("choices") or []:
            if choice.get("index"):
                continue
            part = choice.get("delta") or choice.get("message") or {}
            for name, value in part.items():
                if isinstance(value, str) and name != "role":
                    message[name] = message.get(name, "") + value
            finish = choice.get("finish_reason") or finish
    body = {"choices": [{"index": 0, "finish_reason": finish, "message": message}], "usage": usage}
    return {**body, "error": error} if error else body
