"""Chat: the only place where messages become tokens, so that scoring, training and evaluation see the same ones.

A model with a chat template keeps it. A base model gets BASE_TEMPLATE, a plain question-and-answer form,
stored on its tokenizer so that lm-eval, which only knows `tokenizer.chat_template`, renders it too.

A prompt or a response must never act as a control token. Where its text spells one (`<|im_end|>`, `[/INST]`), a
tokenizer would read the token, and a prompt could end its own turn. Such spellings (found by `control_text`) are
encoded in two pieces, so that the model sees their characters. A marker that is no token but plain text in the
template gets an invisible character inside. Other text is encoded exactly as the library does it.
"""

import re
from collections.abc import Container, Mapping, Sequence
from functools import lru_cache
from typing import Any

from persyn.errors import InputError

Message = dict[str, str]

BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}Answer:\n{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}Question:\n{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAnswer:\n' }}{% endif %}"
)
# Under BASE_TEMPLATE a base model continues with the next question instead of ending: generation stops there.
BASE_STOP = "\n\nQuestion:"
DATE = "2025-01-01"
"""What a chat template writes as today's date, unless told otherwise: a prompt must read the same tomorrow."""
# What looks like a control token in the source of a chat template.
CONTROL_SHAPE = re.compile(r"<<?[^\s<>'\"{}()]+>>?|\[/?[A-Z][A-Z_]+\]")
# Control tokens of the known model families, used where the tokenizer is unknown.
KNOWN_CONTROL = re.compile(
    r"<[|\uff5c][^\s<>]{1,64}[|\uff5c]>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|</?(?:s|bos|eos|think|tool_call|tool_response|start_of_turn|end_of_turn)>"
)
SLOT = "\ue000"
"""A private-use character: marks where control text was taken out of a message."""


def with_chat_template(tokenizer: Any, date: str = DATE) -> Any:
    """Give a base model's tokenizer BASE_TEMPLATE; leave any other as it is. Returns the tokenizer.

    Args:
        date: ISO date that its chat template writes where it writes today's.
    """
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has neither a chat template nor an end token")
        tokenizer.chat_template = BASE_TEMPLATE
    return tokenizer


def end_by_turn(tokenizer: Any) -> Any:
    """Make the end-of-turn token the tokenizer's eos token, at which lm-eval and every engine stop. Returns the
    tokenizer. A base model with a chat template (Qwen2.5) may have the end of the text as its eos token: its student
    would end its turn and keep generating.
    """
    whole = encode_conversation(tokenizer, user_message("Name a colour.") + assistant_message("Red."))
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(_end_id(tokenizer, whole))
    return tokenizer


def stop_strings(tokenizer: Any) -> list[str]:
    """The texts at which generation must stop if the model does not stop by itself."""
    return [BASE_STOP] if tokenizer.chat_template == BASE_TEMPLATE else []


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


def encode_prompt(
    tokenizer: Any, messages: Sequence[Message], *, template: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of `messages` up to the point where the assistant's turn begins.

    Args:
        template: arguments of the chat template, such as enable_thinking.
    """
    return _ids(tokenizer, list(messages), add_generation_prompt=True, **(template or {}))


def encode_conversation(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation, with the end of the assistant's turn."""
    return _ids(tokenizer, list(messages), add_generation_prompt=False)


def encode_completion(tokenizer: Any, prompt: str, response: str, finished: bool) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, as the student is trained on them.

    Args:
        finished: whether the response ended by itself. If so, the end-of-turn token is its last token;
            whatever the template writes after that token is not part of the response.

    Returns:
        Two lists of ids: the prompt (context only) and the response (what is scored).

    Raises:
        InputError: the template does not write the prompt as a prefix of the whole conversation.
    """
    prompt_ids = encode_prompt(tokenizer, user_message(prompt))
    whole = encode_conversation(tokenizer, user_message(prompt) + assistant_message(response))
    if whole[: len(prompt_ids)] != prompt_ids:
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template renders a prompt differently once the response follows; "
            f"the response of the prompt {prompt[:60]!r} cannot be told apart"
        )
    response_ids = whole[len(prompt_ids) :]
    end = len(response_ids) - 1 - response_ids[::-1].index(_end_id(tokenizer, response_ids))
    return prompt_ids, response_ids[: end + 1] if finished else response_ids[:end]


@lru_cache(maxsize=16)
def control_text(tokenizer: Any, template: str) -> re.Pattern[str]:
    """A pattern of this tokenizer's control tokens: its special tokens, every added token that its chat template
    writes (not all of those are flagged special), and whatever in the template looks like one.
    """
    added = {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special or token.content in template
    }
    spellings = added | {*tokenizer.all_special_tokens, *CONTROL_SHAPE.findall(template)}
    controls = sorted((text for text in spellings if len(text.strip()) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, controls)) or r"(?!)")


def without_control_text(text: str, controls: re.Pattern[str] = KNOWN_CONTROL) -> str:
    """`text` with an invisible word joiner inside every control token, for a server that renders the chat template
    itself, with a tokenizer that is unknown here.
    """
    return controls.sub(lambda match: f"{match[0][0]}\u2060{match[0][1:]}", text)


def _ids(tokenizer: Any, messages: list[Message], add_generation_prompt: bool, **template: Any) -> list[int]:
    """Render and tokenise. Control text in a message is taken out first; its pieces are put back afterwards."""
    spelled = control_text(tokenizer, tokenizer.get_chat_template())
    if not any(spelled.search(message["content"]) for message in messages):
        encoded = tokenizer.apply_chat_template(
            messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True, **template
        )
        return list(encoded["input_ids"])
    taken: list[str] = []

    def take(match: re.Match[str]) -> str:
        taken.append(match[0])
        return f"{SLOT}{len(taken) - 1}{SLOT}"

    emptied = [{**message, "content": spelled.sub(take, message["content"].replace(SLOT, ""))} for message in messages]
    text = tokenizer.apply_chat_template(
        emptied, add_generation_prompt=add_generation_prompt, tokenize=False, **template
    )
    ids: list[int] = []
    tokens = tokenizer.get_added_vocab()
    for position, part in enumerate(text.split(SLOT)):
        for piece in _pieces(taken[int(part)], tokens, spelled) if position % 2 else [part]:
            ids += tokenizer.encode(piece, add_special_tokens=False)
    return ids


def _pieces(control: str, tokens: Container[str], spelled: re.Pattern[str]) -> list[str]:
    """`control` cut so that no piece spells a control token."""
    if control not in tokens:  # plain text in the template as well: only another spelling can be told from it
        return [without_control_text(control, spelled)]
    rest = control[1:]
    inner = spelled.search(rest)
    if not inner:
        return [control[0], rest]
    return [control[0], rest[: inner.start()], *_pieces(rest[inner.start() :], tokens, spelled)]


def _end_id(tokenizer: Any, response_ids: list[int]) -> int:
    """The end-of-turn token: the last control token that the template writes after the response."""
    special = set(tokenizer.all_special_ids)
    for token in reversed(response_ids):
        if token in special:
            return token
    raise InputError(f"{tokenizer.name_or_path}: its chat template writes no end-of-turn token after a response")
