"""Chat: the only place where messages become tokens, so that scoring, training and evaluation see the same ones.

A model with a chat template keeps it. A base model gets BASE_TEMPLATE, a plain question-and-answer form,
stored on its tokenizer so that lm-eval, which only knows `tokenizer.chat_template`, renders it too.
`forms` knows what a template writes around an answer and a thought, `control` keeps text from becoming control tokens.
"""

import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any

from persyn.chat.control import GUARD, count_altered, find_control, without_control_text
from persyn.chat.forms import (
    Context,
    Form,
    check_reads_text,
    find_context,
    find_form,
    render,
    without_control,
    written_answer,
)
from persyn.errors import InputError
from persyn.messages import Message, as_messages, assistant_message, user_message
from persyn.settings import DATE, Thinking
from persyn.thinking import CHANNEL_TOKENS, TAGS, split_thought

__all__ = [
    "BASE_STOP",
    "BASE_TEMPLATE",
    "Message",
    "assistant_message",
    "count_altered",
    "decode_response",
    "encode_completion",
    "encode_conversation",
    "encode_parts",
    "encode_prompt",
    "end_by_turn",
    "stop_ids",
    "stop_strings",
    "student_tokenizer",
    "user_message",
    "with_chat_template",
    "without_control_text",
]
BASE_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\n\n' }}{% endif %}"
    "{% if message['role'] == 'assistant' %}Answer:\n{{ message['content'] }}{{ eos_token }}"
    "{% elif message['role'] == 'system' %}{{ message['content'] }}"
    "{% else %}Question:\n{{ message['content'] }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAnswer:\n' }}{% endif %}"
)
# Under BASE_TEMPLATE a base model continues with the next question instead of ending: generation stops there.
BASE_STOP = "\n\nQuestion:"
TODAY = re.compile(r"strftime_now\s*\(\s*(['\"])(.*?)\1\s*\)")
OTHER_DAYS = re.compile(r"strftime_now(?!\s+is\s+(?:not\s+)?defined)")


def with_chat_template(tokenizer: Any, date: str = DATE) -> Any:
    """Make a tokenizer ready to render: a base model gets BASE_TEMPLATE, and a template that writes today's date
    writes `date` instead. Returns the tokenizer.

    Raises:
        InputError: it has neither a chat template nor an end token, or its template asks for the date in a form that
            cannot be replaced.
    """
    template = tokenizer.chat_template
    if template is None:
        if tokenizer.eos_token is None:
            raise InputError(f"{tokenizer.name_or_path}: the tokenizer has neither a chat template nor an end token")
        template = BASE_TEMPLATE
    elif isinstance(template, dict):  # some models have one for tools as well
        if "default" not in template:
            raise InputError(
                f"{tokenizer.name_or_path}: it has the chat templates {', '.join(template)}, and none is the default; "
                f"give its tokenizer one"
            )
        template = template["default"]
    day = datetime.date.fromisoformat(date)
    template = TODAY.sub(lambda match: json.dumps(day.strftime(match[2])), template)
    if OTHER_DAYS.search(template):
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template asks for today's date in a form that cannot be replaced by "
            f"{date}, so its prompts would differ from day to day; give the model a template with a fixed date"
        )
    tokenizer.chat_template = template
    return tokenizer


def student_tokenizer(tokenizer: Any, thinking: Thinking = "none", date: str = DATE) -> Any:
    """Make a tokenizer render what the student is scored on, trained on and evaluated on. Returns the tokenizer.

    Its chat template then writes, as its generation prompt, all that stands before a response: with `none` also the
    empty thought that the template puts before an answer. So everything that reads the student's folder, lm-eval and
    vLLM among it, renders the same. The end-of-turn token becomes its eos token (see end_by_turn).

    Raises:
        InputError: as with_chat_template, or the template does not tell a response from its prompt.
    """
    with_chat_template(tokenizer, date)
    tokenizer.chat_template = find_form(tokenizer, tokenizer.chat_template, thinking).template
    return end_by_turn(tokenizer, thinking)


def end_by_turn(tokenizer: Any, thinking: Thinking = "none") -> Any:
    """Make the end-of-turn token the tokenizer's eos token, at which lm-eval and every engine stop. Returns the
    tokenizer. A base model with a chat template (Qwen2.5) may have the end of the text as its eos token: its student
    would end its turn and keep generating.
    """
    _, response = encode_completion(tokenizer, "Name a colour.", "Red.", finished=True, thinking=thinking)
    end, written = tokenizer.convert_ids_to_tokens(response[-1]), tokenizer.eos_token
    if end != written and re.search(r"\beos_token\b", tokenizer.chat_template):  # the template writes it elsewhere
        tokenizer.chat_template = f"{{% set eos_token = {json.dumps(written)} %}}{tokenizer.chat_template}"
    tokenizer.eos_token = end
    return tokenizer


def stop_strings(tokenizer: Any) -> list[str]:
    """The texts at which generation must stop if the model does not stop by itself."""
    return [BASE_STOP] if tokenizer.chat_template == BASE_TEMPLATE else []


def stop_ids(tokenizer: Any, model: Any) -> set[int]:
    """The tokens at which generation must stop: the tokenizer's end, and those that the model's own files declare."""
    declared = model.generation_config.eos_token_id
    return {tokenizer.eos_token_id, *(declared if isinstance(declared, list) else [declared])} - {None}


def encode_prompt(
    tokenizer: Any, messages: str | Sequence[Message], template: Mapping[str, Any] | None = None
) -> list[int]:
    """Token ids of `messages` up to the point where the assistant's turn begins.

    Args:
        template: arguments of the chat template, such as {enable_thinking: False}.

    Raises:
        InputError: the chat template refuses the messages, or leaves their text out.
    """
    return _encode(tokenizer, as_messages(messages), True, template)


def encode_conversation(tokenizer: Any, messages: Sequence[Message]) -> list[int]:
    """Token ids of a whole conversation, with the end of the assistant's turn."""
    return _encode(tokenizer, list(messages), False, None)


def encode_completion(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    response: str,
    finished: bool,
    reasoning: str | None = None,
    thinking: Thinking = "none",
) -> tuple[list[int], list[int]]:
    """Token ids of prompt and response, as the student is trained on them.

    Args:
        prompt: the user's turn, or a conversation that ends with it.
        response: the answer. A think-block at its start is taken for `reasoning`, if there is none.
        finished: whether the response ended by itself. If so, the end-of-turn token is its last token;
            whatever the template writes after that token is not part of the response.
        reasoning: the thought before the answer.
        thinking: none leaves the thought out, and whatever the template writes in its place belongs to the prompt.
            keep writes it in the template's own form, as part of the response.

    Returns:
        Two lists of ids: the prompt (context only) and the response (what is scored).

    Raises:
        InputError: the template does not write the prompt as a prefix of the whole conversation, or no end of turn.
    """
    context, thought, answer = encode_parts(tokenizer, prompt, response, finished, reasoning, thinking)
    return context, thought + answer


def encode_parts(
    tokenizer: Any,
    prompt: str | Sequence[Message],
    response: str,
    finished: bool,
    reasoning: str | None = None,
    thinking: Thinking = "none",
) -> tuple[list[int], list[int], list[int]]:
    """As encode_completion, with the response in two: the thought and all that the template writes around it (empty
    with `none`), and the answer.
    """
    form = find_form(tokenizer, tokenizer.get_chat_template(), thinking)
    if reasoning is None and form.knows_thought:
        split = split_thought(response)
        if split.reasoning is not None or split.answer != response.strip():
            reasoning, response = split.reasoning or "", split.answer
    control = find_control(tokenizer, form.template)
    turns = tuple((message["role"], message["content"]) for message in as_messages(prompt))
    context, prompt_ids = _context(tokenizer, form, turns)
    taken = list(context.taken)
    answer = written_answer(tokenizer, form, context, control.take_out(response, taken)) if response.strip() else ""
    if form.keeps and reasoning:
        closed = finished or bool(response)
        thought = control.take_out(reasoning.strip(), taken)
        before = context.opening + thought + (context.closing if closed else "")
    elif context.plain.strip():
        before = context.plain
    else:
        before, answer = "", context.plain + answer

    def encode(text: str) -> list[int]:
        return control.encode(tokenizer, text, taken)

    thought_ids = _continue(tokenizer, encode, prompt_ids, context.prompt, before) if before else []
    answer += context.tail if finished else ""
    begun = prompt_ids + thought_ids
    return prompt_ids, thought_ids, _continue(tokenizer, encode, begun, context.prompt + before, answer)


@lru_cache(maxsize=64)
def _context(tokenizer: Any, form: Form, turns: tuple[tuple[str, str], ...]) -> tuple[Context, list[int]]:
    """What stands around the response to a conversation, and the ids of its prompt."""
    context = find_context(tokenizer, form, [{"role": role, "content": content} for role, content in turns])
    return context, find_control(tokenizer, form.template).encode(tokenizer, context.prompt, context.taken)


def decode_response(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of a response's token ids without special tokens, except for those that mark a thought."""
    marks, parts = _thought_marks(tokenizer), list[str]()
    start = 0
    for end, token in enumerate(ids):
        if token in marks:
            parts += [tokenizer.decode(ids[start:end], skip_special_tokens=True), marks[token]]
            start = end + 1
    return "".join([*parts, tokenizer.decode(ids[start:], skip_special_tokens=True)])


@lru_cache(maxsize=16)
def _thought_marks(tokenizer: Any) -> dict[int, str]:
    """Id -> text of the special tokens that mark thoughts. Channel tokens count only together: `<|end|>` alone ends a
    turn in other families.
    """
    special = {id: token.content for id, token in tokenizer.added_tokens_decoder.items() if token.special}
    marks = {*TAGS, *TAGS.values(), "<|channel>"}
    if {"<|start|>", "<|message|>"} <= set(special.values()):
        marks |= CHANNEL_TOKENS
    return {id: text for id, text in special.items() if text in marks}


def _continue(tokenizer: Any, encode: Callable[[str], list[int]], ids: list[int], text: str, more: str) -> list[int]:
    """The ids of `more`, which follows `text`, whose ids are `ids`.

    Where a token of the whole spans the border (a line feed of the template and one of the response), it is read as a
    model would go on from `ids`: the rest encoded alone, or, since some tokenizers put a blank before a text, behind a
    guard; whichever gives the text.
    """
    whole = encode(text + more)
    if whole[: len(ids)] == ids:
        return whole[len(ids) :]
    guard, guarded = encode(GUARD), encode(GUARD + more)
    for rest in (encode(more), guarded[len(guard) :]):
        if tokenizer.decode(ids + rest) == tokenizer.decode(whole):
            return rest
    raise InputError(
        f"{tokenizer.name_or_path}: its tokenizer joins the end of a prompt with the start of the response "
        f"{more[:60]!r}; the response cannot be told apart"
    )


def _encode(
    tokenizer: Any, messages: list[Message], add_generation_prompt: bool, template: Mapping[str, Any] | None
) -> list[int]:
    """Render and tokenise."""
    written = tokenizer.get_chat_template()
    check_reads_text(tokenizer, written)
    emptied, taken = without_control(tokenizer, written, messages)
    text = render(tokenizer, emptied, add_generation_prompt, **(template or {}))
    return find_control(tokenizer, written).encode(tokenizer, text, taken)
