"""Proxies: how OpenRouter and LiteLLM change the completion of a server, as their documentation says."""

from collections.abc import Mapping
from typing import Any

ROUTED = {"provider": {"order": ["one"], "allow_fallbacks": False}, "reasoning": {"effort": "low"}}
ROUTED |= {"usage": {"include": True}}
"""What a teacher behind OpenRouter has in `extra_body`."""
THOUGHT = "Stories are short."


def openrouter(asked: Mapping[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """The provider and its own finish reason; the thought as text and as parts; the price where it was asked for. What
    its provider failed at is an error inside the choice, with status 200.
    """
    [choice] = sent["choices"]
    choice |= {"native_finish_reason": "end_turn", "logprobs": None}
    if "fail" in asked["messages"][-1]["content"]:
        choice |= {"finish_reason": "error", "error": {"code": 502, "message": "Provider returned error"}}
        choice["message"] |= {"content": ""}
    elif "reasoning" in asked:
        details = [{"type": "reasoning.text", "text": THOUGHT, "format": "unknown", "index": 0}]
        choice["message"] |= {"refusal": None, "reasoning": THOUGHT, "reasoning_details": details}
    if asked.get("usage") == {"include": True}:
        parts = {"reasoning_tokens": 3}
        sent["usage"] |= {"cost": 0.0001, "is_byok": False, "completion_tokens_details": parts}
    return sent | {"provider": asked.get("provider", {}).get("order", ["any"])[0]}


def litellm(asked: Mapping[str, Any], sent: dict[str, Any]) -> dict[str, Any]:
    """The provider's own fields, and the thought of any provider in `reasoning_content`, Anthropic's in blocks too."""
    [choice] = sent["choices"]
    choice |= {"provider_specific_fields": {}}
    blocks = [{"type": "thinking", "thinking": THOUGHT, "signature": "EqoB"}]
    choice["message"] |= {"provider_specific_fields": {"citations": None}, "tool_calls": None, "function_call": None}
    if "reasoning_effort" in asked:
        choice["message"] |= {"reasoning_content": THOUGHT, "thinking_blocks": blocks}
    sent["usage"] |= {"cache_creation_input_tokens": 0, "prompt_tokens_details": {"cached_tokens": 0}}
    return sent | {"service_tier": None, "system_fingerprint": None}
