"""Reading: what the engines of this process share: conversations to token ids, and the tokens of a response to text."""

from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError

from persyn.chat import count_altered, decode_response, encode_prompt, stop_strings
from persyn.errors import InputError
from persyn.generation import Generation, Teacher
from persyn.messages import Message
from persyn.thinking import opening_tag, split_thought

TAIL = 24
"""An opening tag is looked for in this many tokens at the end of a prompt."""


def encode_conversations(
    tokenizer: Any, conversations: Sequence[Sequence[Message]], teacher: Teacher
) -> list[list[int]]:
    """Token ids of each conversation, as the teacher's chat template renders it.

    Raises:
        InputError: the template refuses a conversation.
    """
    count_altered(tokenizer, conversations, teacher.model)
    try:
        return [encode_prompt(tokenizer, messages, template=teacher.template) for messages in conversations]
    except InputError as error:
        refused = error.__cause__
        if not isinstance(refused, TemplateError):
            raise
        given = [name for name in ("system", "examples", "template") if getattr(teacher, name)]
        cure = f"drop the teacher's {' or '.join(given)}" if given else "choose another model for these prompts"
        if teacher.system:
            cure += ", or put the system prompt's text into the prompts or `examples`"
        words = " ".join(str(refused).split())[:200]
        raise InputError(f"{teacher.model}: its chat template refuses the conversation: {words!r}; {cure}") from error


def read_generation(
    tokenizer: Any,
    prompt: Sequence[int],
    ids: Sequence[int],
    finish_reason: str,
    num_tokens: int,
    stops: Sequence[str] = (),
) -> Generation:
    """The Generation of a response's token ids: its text is cut at the first stop string, its thought is apart.

    Args:
        prompt: token ids of the prompt, whose end says whether the response begins inside a thought.
        ids: without the token that ended the response.
        num_tokens: response tokens that were paid for.
        stops: the sampling's own stop strings.
    """
    text = decode_response(tokenizer, ids)
    for stop in (*stop_strings(tokenizer), *stops):
        text, separator, _ = text.partition(stop)
        finish_reason = "stop" if separator else finish_reason
    thought = split_thought(opening_tag(tokenizer.decode(list(prompt[-TAIL:]))) + text)
    return Generation(
        response=thought.answer,
        finish_reason=finish_reason if thought.closed else "length",
        num_prompt_tokens=len(prompt),
        num_response_tokens=num_tokens,
        reasoning=thought.reasoning,
    )
