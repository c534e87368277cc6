"""Forms: what a chat template writes before an answer, around a thought and after the answer, found by rendering.

A template is asked what it writes around two marks that no text has. What it writes for a prompt alone must stand at
the start of what it writes for the whole conversation; otherwise the response cannot be told from its prompt, and the
model is refused. Many templates of models that think write something else before an answer in a conversation (an empty
thought) than they write for a prompt (nothing, or an opened thought): `find_form` then adds to the template what makes
the two equal.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from persyn.chat.control import MARK, MARKED, find_control
from persyn.errors import InputError
from persyn.messages import Message
from persyn.thinking import TAGS, opening_tag

ANSWER, THOUGHT = f"{MARK}answer{MARK}", f"{MARK}thought{MARK}"
BLOCKS = {
    "<think>": ("<think>\n", "\n</think>\n\n"),
    "<|channel>": ("<|channel>thought\n", "\n<channel|>"),
    "[THINK]": ("[THINK]", "[/THINK]"),
}
"""How a thought is written where a template leaves it out of a last answer: in the first of these that it names, or in
the first of all."""
SWITCHES = ("enable_thinking", "thinking")
"""The arguments by which templates turn thinking on and off."""
FIELDS = ("reasoning_content", "reasoning", "thinking")
"""The fields of a message in which templates look for its thought."""
EARLIER_THOUGHT = re.compile(r"\s*<think>(.*?)</think>(.*)", re.DOTALL)
PROBES = (MARKED[:1], MARKED)


@dataclass(frozen=True)
class Form:
    """How one model's responses are written."""

    template: str
    """Its chat template, which writes all that stands before a response as its generation prompt."""
    keeps: bool
    """Whether the thought is part of the response."""
    native: bool
    """Whether the template itself writes the thought."""
    knows_thought: bool
    """Whether a think-block at the start of a response is a thought; otherwise it is text like any other."""


@dataclass(frozen=True)
class Context:
    """What one conversation's prompt looks like, and what stands around its response. Texts may have slots."""

    messages: Sequence[Message]
    taken: Sequence[str]
    """The control text of the messages."""
    prompt: str
    opening: str
    """Between the prompt and a thought."""
    closing: str
    """Between a thought and the answer."""
    plain: str
    """Between the prompt and an answer without a thought."""
    before: str
    """All that the template writes before an answer without a thought."""
    after: str
    """All that it writes after it."""
    tail: str
    """The part of `after` that ends the turn: up to its first control token."""


def render(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    add_generation_prompt: bool,
    template: str | None = None,
    **arguments: Any,
) -> str:
    """What a chat template (the tokenizer's own by default) writes for these messages.

    Raises:
        InputError: the template refuses them.
    """
    from jinja2 import TemplateError
    from jinja2.exceptions import SecurityError

    try:
        text = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            chat_template=template,
            add_generation_prompt=add_generation_prompt,
            tokenize=False,
            **arguments,
        )
    except SecurityError:
        raise
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template refuses a conversation of {roles}: "
            f"{' '.join(str(error).split())[:200]}; leave that turn out (a system prompt can go into the user's turn), "
            f"or take another model"
        ) from error
    return str(text)


@lru_cache(maxsize=32)
def find_form(tokenizer: Any, template: str, thinking: str) -> Form:
    """How responses are written under this template.

    Args:
        thinking: none or keep, as in chat.encode_completion.

    Raises:
        InputError: the template leaves out the text of messages, or writes a prompt that does not stand at the start
            of the whole conversation.
    """
    keeps = thinking == "keep"
    knows = keeps or "think" in template or "<think>" in tokenizer.get_added_vocab()
    if ANSWER not in _conversation(tokenizer, template, PROBES[0]):
        raise _leaves_out(tokenizer)
    if not keeps:
        return Form(_for_answers(tokenizer, template), keeps, False, knows)
    candidates = _switched(template, "true")
    for candidate in candidates:
        prompts = [render(tokenizer, probe, True, candidate) for probe in PROBES]
        wholes = [_conversation(tokenizer, candidate, probe, THOUGHT) for probe in PROBES]
        if all(_holds(whole, prompt) for whole, prompt in zip(wholes, prompts, strict=True)):
            return Form(candidate, keeps, True, knows)
    return Form(candidates[0], keeps, False, knows)


@lru_cache(maxsize=32)
def check_reads_text(tokenizer: Any, template: str) -> None:
    """Refuse a template that leaves the text of the user's turn out of the prompt.

    Raises:
        InputError: it does.
    """
    try:
        text = render(tokenizer, [{"role": "user", "content": ANSWER}], True, template)
    except InputError:  # it wants another conversation: that is said where one is rendered
        return
    if ANSWER not in text:
        raise _leaves_out(tokenizer)


def _leaves_out(tokenizer: Any) -> InputError:
    return InputError(
        f"{tokenizer.name_or_path}: its chat template leaves out the text of messages (it wants them in parts, as "
        f"models for images do); take a model for text, or give it a template for text"
    )


def _holds(whole: str, prompt: str) -> bool:
    return whole.startswith(prompt) and 0 <= whole.find(THOUGHT) < whole.find(ANSWER)


def _conversation(tokenizer: Any, template: str, messages: Sequence[Message], thought: str | None = None) -> str:
    """What the template writes for these messages and an answer, with a thought where one is given."""
    fields = {} if thought is None else dict.fromkeys(FIELDS, thought)
    answer = {"role": "assistant", "content": ANSWER, **fields}
    return render(tokenizer, [*messages, answer], False, template)


def _switched(template: str, value: str) -> list[str]:
    """The template with each of its switches for thinking set, and as it is."""
    known = [name for name in SWITCHES if re.search(rf"\b{name}\b", template)]
    return [*(f"{{% set {name} = {value} %}}{template}" for name in known), template]


def _for_answers(tokenizer: Any, template: str) -> str:
    """The template, made to write for a prompt all that it writes before an answer."""

    def added(candidate: str, generation: bool) -> list[str] | None:
        """What is missing at the end of its prompts; None where they do not stand at the start."""
        missing = []
        for probe in PROBES:
            before, prompt = _before(tokenizer, candidate, probe), render(tokenizer, probe, generation, candidate)
            if not before.startswith(prompt):
                return None
            missing.append(before[len(prompt) :])
        return missing

    candidates = _switched(template, "false")
    usual = [render(tokenizer, probe, True, template) for probe in PROBES]
    for candidate in candidates:
        missing = added(candidate, generation=True)
        # Blanks are left to the response: a prompt that ends in one would split the first word's token.
        if missing is not None and not "".join(missing).strip():
            prompts = [render(tokenizer, probe, True, candidate) for probe in PROBES]
            return _closed(tokenizer, template if prompts == usual else candidate, prompts)
    for generation in (True, False):
        for candidate in candidates:
            missing = added(candidate, generation)
            if missing and len(set(missing)) == 1:
                return _with_prompt(candidate, missing[0], generation)
    raise InputError(
        f"{tokenizer.name_or_path}: its chat template renders a prompt differently once the response follows; the "
        f"response cannot be told apart"
    )


def _closed(tokenizer: Any, template: str, prompts: Sequence[str]) -> str:
    """The template, if its prompts do not end inside a thought."""
    if any(map(opening_tag, prompts)):
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template opens a thought before an answer and never closes it, so it "
            f"has no form for an answer without a thought; set student.thinking: keep"
        )
    return template


def _with_prompt(template: str, text: str, generation: bool) -> str:
    """The template with `text` at the end of its generation prompt, or in its place."""
    written = f"{{{{ {json.dumps(text, ensure_ascii=False)} }}}}"
    body = template.removesuffix("\n")
    if generation:
        return f"{body}{{% if add_generation_prompt %}}{written}{{% endif %}}"
    first = "{% set prompt_wanted = add_generation_prompt %}{% set add_generation_prompt = false %}"
    return f"{first}{body}{{% if prompt_wanted %}}{written}{{% endif %}}"


def _before(tokenizer: Any, template: str, messages: Sequence[Message]) -> str:
    return _conversation(tokenizer, template, messages).partition(ANSWER)[0]


def find_context(tokenizer: Any, form: Form, messages: Sequence[Message]) -> Context:
    """What stands around the response to these messages.

    Raises:
        InputError: as find_form, or the template writes no end of turn after an answer.
    """
    emptied, taken = without_control(tokenizer, form.template, messages)
    prompt = render(tokenizer, emptied, True, form.template)
    before, found, after = _conversation(tokenizer, form.template, emptied).partition(ANSWER)
    differs = InputError(
        f"{tokenizer.name_or_path}: its chat template renders a prompt differently once the response follows; "
        f"the response of the prompt {messages[-1]['content'][:60]!r} cannot be told apart"
    )
    begins_alike = before.startswith(prompt)
    plain = before[len(prompt) :] if begins_alike else ""
    last = emptied[-1]["content"].strip()
    # Mistral's templates write the system message beside the last turn, if that is the user's.
    ends_alike = before.rpartition(last)[2] == prompt.rpartition(last)[2]
    if not found or (not form.keeps and (plain.strip() or not (begins_alike or ends_alike))):
        raise differs
    opening = closing = ""
    if form.native:
        whole = _conversation(tokenizer, form.template, emptied, THOUGHT)
        if not _holds(whole, prompt):
            raise differs
        begins, _, rest = whole.partition(THOUGHT)
        opening, closing = begins[len(prompt) :], rest.partition(ANSWER)[0]
    elif form.keeps:
        opening, closing = _block(form.template, opening_tag(prompt))
        closing += "" if any(tag in plain for tag in TAGS) else plain
    if form.keeps and opening_tag(prompt) and not plain.strip():
        plain = closing
    tail = _tail(tokenizer, form.template, emptied, after)
    return Context(emptied, taken, prompt, opening, closing, plain, before, after, tail)


def _block(template: str, opened: str) -> tuple[str, str]:
    """What stands before and after a thought, under a template that writes none; `opened`: the tag that opened it."""
    if opened:
        return "", f"\n{TAGS[opened]}\n\n" if opened not in BLOCKS else BLOCKS[opened][1]
    return next((block for tag, block in BLOCKS.items() if tag in template), BLOCKS["<think>"])


def without_control(tokenizer: Any, template: str, messages: Sequence[Message]) -> tuple[list[Message], list[str]]:
    """The messages with slots for their control text, and that text.

    A template that looks for the thought of an earlier answer, which most leave out, is shown where it ends.
    """
    control, taken = find_control(tokenizer, template), list[str]()

    def emptied(message: Message) -> str:
        thought = EARLIER_THOUGHT.fullmatch(message["content"])
        if message["role"] != "assistant" or not thought or "</think>" not in template:
            return control.take_out(message["content"], taken)
        inside, answer = (control.take_out(text, taken) for text in thought.groups())
        return f"<think>{inside}</think>{answer}"

    return [{**message, "content": emptied(message)} for message in messages], taken


def _tail(tokenizer: Any, template: str, messages: Sequence[Message], after: str) -> str:
    """What ends the turn of an answer: up to the first control token that follows it, if only in the next turn."""
    control = find_control(tokenizer, template)
    end = control.tokens.search(after)
    if not end:  # GLM's models end by the marker of the user's turn
        follows: list[Message] = [*messages, {"role": "assistant", "content": ANSWER}, MARKED[-1]]
        after = render(tokenizer, follows, False, template).partition(ANSWER)[2]
        end = control.tokens.search(after)
    if not end:
        raise InputError(f"{tokenizer.name_or_path}: its chat template writes no end-of-turn token after a response")
    return after[: end.end()]


def written_answer(tokenizer: Any, form: Form, context: Context, answer: str) -> str:
    """The answer as the template writes it, which may cut blanks at its ends."""
    whole = render(tokenizer, [*context.messages, {"role": "assistant", "content": answer}], False, form.template)
    if not (whole.startswith(context.before) and whole.endswith(context.after)):
        raise InputError(
            f"{tokenizer.name_or_path}: its chat template renders the response {answer[:60]!r} differently from "
            f"others; it cannot be told from its prompt"
        )
    return whole[len(context.before) : len(whole) - len(context.after)]
