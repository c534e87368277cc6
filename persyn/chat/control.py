"""Control text: text that spells a control token of a chat template, and stays text.

A prompt or a response must never act as a control token. Where its text spells one (`<|im_end|>`), a tokenizer would
read the token, and a prompt could end its own turn. Such text is kept away from the template, put back into what the
template wrote, and tokenised as plain text: unchanged, by a copy of the tokenizer that knows the control tokens under
other names. Where a template marks its turns with plain text (`[/INST]` of Llama 2), only another spelling can be told
from it: an invisible character goes inside, and `count_altered` counts the conversations.
"""

import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from persyn.messages import Message

logger = logging.getLogger(__name__)

# What looks like a control token in the source of a chat template.
CONTROL_SHAPE = re.compile(r"<<?[^\s<>'\"{}()]+>>?|\[/?[A-Z][A-Z_]+\]")
# Turn markers of the known model families, used where the tokenizer is unknown.
KNOWN_CONTROL = re.compile(
    r"<[|\uff5c][^\s<>]{1,64}[|\uff5c]>|<</?SYS>>|\[/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS)\]"
    r"|</?(?:bos|eos|start_of_turn|end_of_turn)>"
)
# `<s>` and `</s>` begin and end a text; a pair around words is HTML.
BOUNDS = re.compile(r"(<s>(?:(?!</?s>).)*</s>)|</?s>", re.DOTALL)
THINK_TAG = re.compile(r"</?think>")
SLOT, NAME, MARK, GUARD = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3"
"""Characters that Unicode keeps out of texts, and that are replaced where a text has them. SLOT marks where control
text was taken out of a message, NAME the other name of a control token, MARK a place in a template; GUARD stands before
a text, and no tokenizer joins it with another character."""
# A conversation that makes a template write all its turn markers.
MARKED: tuple[Message, ...] = (
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"},
)


@dataclass(frozen=True)
class Control:
    """The control text of one tokenizer under one chat template."""

    tokens: re.Pattern[str]
    """The spellings of its control tokens: those flagged special, and the added ones that its template writes."""
    spelled: re.Pattern[str]
    """All control text: the tokens, and whatever in the template looks like one."""
    altered: re.Pattern[str]
    """The control text that must be spelled otherwise, because the tokenizer cannot tell it from the template's own."""
    renamed: Any = field(default=None, repr=False, compare=False)
    """A copy of the tokenizer's core that knows the control tokens under other names; None where there is none."""
    names: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """Control token -> its other name."""
    own_ids: Mapping[int, int] = field(default_factory=dict, repr=False, compare=False)
    """Id in `renamed` -> id in the tokenizer."""

    def take_out(self, text: str, taken: list[str]) -> str:
        """`text` with a numbered slot for each piece of control text, which goes to `taken`."""

        def take(match: re.Match[str]) -> str:
            piece = match[0]
            taken.append(alter(piece) if self.altered.fullmatch(piece) else piece)
            return f"{SLOT}{len(taken) - 1}{SLOT}"

        return self.spelled.sub(take, text)

    def encode(self, tokenizer: Any, text: str, taken: Sequence[str]) -> list[int]:
        """Token ids of what a template wrote, the slots filled by the text that was taken out of them."""
        if SLOT not in text:
            return list(tokenizer(text, add_special_tokens=False)["input_ids"])
        # `names` is empty where there is no copy: all control text is altered then, and none can be read as a token.
        filled = "".join(
            taken[int(part)] if number % 2 else self.tokens.sub(lambda match: self.names.get(match[0], match[0]), part)
            for number, part in enumerate(text.split(SLOT))
        )
        if self.renamed is None:
            return list(tokenizer(filled, add_special_tokens=False)["input_ids"])
        ids = self.renamed.encode(filled, add_special_tokens=False).ids
        return [self.own_ids.get(id, id) for id in ids]


def alter(piece: str) -> str:
    """`piece` with an invisible word joiner inside; a single character becomes the replacement character."""
    return f"{piece[0]}\u2060{piece[1:]}" if len(piece) > 1 else "\ufffd"


def without_control_text(text: str) -> str:
    """`text` with an invisible word joiner inside every control token, for a server that renders the chat template
    itself, with a tokenizer that is unknown here.
    """
    guarded = KNOWN_CONTROL.sub(lambda match: alter(match[0]), text)
    return BOUNDS.sub(lambda match: match[1] or alter(match[0]), guarded)


def count_altered(tokenizer: Any, conversations: Iterable[Iterable[Message]], who: str) -> int:
    """How many conversations hold control text that has to be spelled otherwise; a warning says so, if any does."""
    altered = find_control(tokenizer, tokenizer.get_chat_template()).altered
    rows = [any(altered.search(message["content"]) for message in messages) for messages in conversations]
    if any(rows):
        logger.warning(
            "%s: %d of %d conversations spell control text of its chat template that its tokenizer cannot tell from "
            "the template's own; it reaches the model with an invisible character inside",
            *(who, sum(rows), len(rows)),
        )
    return sum(rows)


@lru_cache(maxsize=32)
def find_control(tokenizer: Any, template: str) -> Control:
    """The control text of this tokenizer under this template."""
    added = {
        token.content: id
        for id, token in tokenizer.added_tokens_decoder.items()
        if len(token.content.strip()) > 1 and (token.special or token.content in template)
    }
    special = {token for token in tokenizer.all_special_tokens if len(token.strip()) > 1}
    tokens = {**{token: tokenizer.convert_tokens_to_ids(token) for token in special}, **added}
    shapes = set(CONTROL_SHAPE.findall(template))
    renamed, names, own_ids = _rename(tokenizer, tokens)
    # Text that is no token, yet marks turns.
    altered = {shape for shape in _written(tokenizer, template) - set(tokens) if not THINK_TAG.fullmatch(shape)}
    altered |= {SLOT, NAME, MARK, GUARD} if renamed is not None else {SLOT, NAME, MARK, GUARD, *tokens}
    return Control(
        tokens=_any_of(tokens),
        spelled=_any_of({*tokens, *shapes, *altered}),
        altered=_any_of(altered),
        renamed=renamed,
        names=names,
        own_ids=own_ids,
    )


def _any_of(texts: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted(texts, key=lambda text: (-len(text), text))
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


def _written(tokenizer: Any, template: str) -> set[str]:
    """What looks like a control token in the rendering of a plain conversation."""
    from jinja2 import TemplateError

    system: Message = {"role": "system", "content": "s"}
    for messages in ([system, *MARKED], [*MARKED], [MARKED[0]]):  # some templates refuse a system message
        try:
            text = tokenizer.apply_chat_template(
                messages, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        except TemplateError:
            continue
        return set(CONTROL_SHAPE.findall(text))
    return set()


def _rename(tokenizer: Any, tokens: Mapping[str, int]) -> tuple[Any, dict[str, str], dict[int, int]]:
    """A copy of a fast tokenizer's core in which the control tokens have other names, so that text that spells them is
    plain text; the names, and its ids of them. (None, {}, {}) if there is no such core, or it still reads a token.
    """
    from tokenizers import Tokenizer

    if getattr(tokenizer, "backend_tokenizer", None) is None:
        return None, {}, {}
    described = json.loads(tokenizer.backend_tokenizer.to_str())
    names = {token: f"{NAME}{id}{NAME}" for token, id in tokens.items()}
    for entry in described["added_tokens"]:
        entry["content"] = names.get(entry["content"], entry["content"])
    described["post_processor"] = described["truncation"] = described["padding"] = None
    core = Tokenizer.from_str(json.dumps(described))
    # The copy may number all of them anew.
    numbers = [(core.token_to_id(entry["content"]), entry["id"]) for entry in described["added_tokens"]]
    own_ids = {new: own for new, own in numbers if new is not None}
    names = {token: name for token, name in names.items() if core.token_to_id(name) is not None}
    spelled = [text for token in tokens for text in (token, f"a{token}a", f" {token} ")]
    read = {own_ids.get(id, id) for text in spelled for id in core.encode(text, add_special_tokens=False).ids}
    return (None, {}, {}) if read & set(tokens.values()) else (core, names, own_ids)
