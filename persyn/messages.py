"""Messages: a prompt as a conversation, and as text to read."""

from collections.abc import Sequence

Message = dict[str, str]


def as_messages(prompt: str | Sequence[Message]) -> list[Message]:
    """A prompt as its messages. A plain string is one user turn."""
    return user_message(prompt) if isinstance(prompt, str) else [dict(message) for message in prompt]


def as_text(prompt: str | Sequence[Message]) -> str:
    """A prompt as text to read: of a single user turn its content, of a longer conversation every turn after a line
    that names its role.
    """
    turns = as_messages(prompt)
    if len(turns) == 1 and turns[0]["role"] == "user":
        return turns[0]["content"]
    return "\n\n".join(f"[{turn['role']}]\n{turn['content']}" for turn in turns)


def user_message(prompt: str) -> list[Message]:
    """A prompt as the messages the student sees."""
    return [{"role": "user", "content": prompt}]


def assistant_message(response: str) -> list[Message]:
    """A response as the messages the student learns to write."""
    return [{"role": "assistant", "content": response}]
