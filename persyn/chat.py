"""Chat: the only place where messages become tokens, so that scoring, training and evaluation see the same ones.

A model with a chat template keeps it. A base model gets BASE_TEMPLATE, a plain question-and-answer form;
stored on its tokenizer, so that TRL and lm-eval, which only know `tokenizer.chat_template`, render it too.
"""

from collections.abc import Sequence
from typing import Any

from persyn.schemas import InputError

Message = dict[str, str]

BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}Answer:\n{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}Question:\n{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAnswer:\n' }}{% endif %}"
)
# A base model shown BASE_TEMPLATE goes on with the next question instead of ending: generation stops there.
BASE_STOP = "\n\nQuestion:"


def with_chat_template(tokenizer: Any) -> Any:
    """Give a base model's tokenizer BASE_TEMPLATE; leave any other as it is. Returns the tokenizer."""
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has neither a chat template nor an end token")
        tokenizer.chat_template = BASE_TEMPLATE
    return tokenizer


def stop_strings(tokenizer: Any) -> list[str]:
    """The texts at which generation must stop although the model does not end by itself."""
    return [BASE_STOP] if tokenizer.chat_template == BASE_TEMPLATE else []


def user_message(prompt: str) -> list[Message]:
    """A prompt as the messages the student sees."""
    return [{"role": "user", "content": prompt}]


def assistant_message(response: str) -> list[Message]:
    """A response as the messages the student learns to write."""
    return [{"role": "assistant", "content": response}]


def encode_prompt(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of `messages` up to the point where the assistant's turn begins."""
    return _ids(tokenizer, list(messages), add_generation_prompt=True)


def encode_conversation(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation, the assistant's turn ended."""
    return _ids(tokenizer, list(messages), add_generation_prompt=False)


def encode_completion(tokenizer: Any, prompt: str, response: str, finished: bool) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, as the student is trained on them.

    Args:
        finished: whether the response ended by itself. If so, the end-of-turn token is its last token;
            whatever the template writes after that token is no part of the response.

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


def _ids(tokenizer: Any, messages: list[Message], add_generation_prompt: bool) -> list[int]:
    encoded = tokenizer.apply_chat_template(
        messages, add_generation_prompt=add_generation_prompt, tokenize=True, return_dict=True
    )
    return list(encoded["input_ids"])


def _end_id(tokenizer: Any, response_ids: list[int]) -> int:
    """The end-of-turn token: the last control token that the template writes after the response."""
    special = set(tokenizer.all_special_ids)
    for token in reversed(response_ids):
        if token in special:
            return token
    raise InputError(f"{tokenizer.name_or_path}: its chat template writes no end-of-turn token after a response")
