"""Thinking: a response's thought apart from its answer, whatever form the model wrote them in.

A reasoning model writes its thought first, in a block (`<think>...</think>`) or a channel (gpt-oss), then its answer.
Only what the text begins with is a thought: an answer that talks of such tags keeps them.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

TAGS = {
    **{f"<{name}>": f"</{name}>" for name in ("think", "thinking", "thought", "reasoning", "seed:think", "mm:think")},
    "[THINK]": "[/THINK]",
    "◁think▷": "◁/think▷",
    "<|START_THINKING|>": "<|END_THINKING|>",
    "<|begin_of_thought|>": "<|end_of_thought|>",
    "<|channel>thought": "<channel|>",
}
"""Opening tag -> closing tag, of the model families that are known."""
ANSWER_TAGS = {
    "<|START_RESPONSE|>": "<|END_RESPONSE|>",
    "<|begin_of_solution|>": "<|end_of_solution|>",
    "<response>": "</response>",
    "[BEGIN FINAL RESPONSE]": "[END FINAL RESPONSE]",
}
"""Tags that some of these families put around the answer."""
CHANNEL_TOKENS = {f"<|{name}|>" for name in ("start", "end", "return", "call", "channel", "message", "eom", "eot")}
"""Control tokens of the families that write messages to channels or recipients."""


def _either(texts: Iterable[str]) -> str:
    return f"(?:{'|'.join(map(re.escape, texts))})"


OPENING = re.compile(rf"\s*({_either(TAGS)})")
OPENED = re.compile(_either(TAGS))
OPEN_AT_END = re.compile(rf"({_either(TAGS)})\s*\Z")
ALONE = re.compile(rf"^[ \t]*{_either(TAGS.values())}|{_either(TAGS.values())}[ \t]*$", re.MULTILINE)
"""A closing tag at the beginning or the end of a line, where models write it."""
GLUED = re.compile(rf"(?<=[^\s`'\"]){_either(TAGS.values())}(?=[^\s`'\".,;:)])")
"""A closing tag between words of which it touches both: DeepSeek and GLM write their answers right after it."""
PHRASES = re.compile(r"Here(?:'s| is) my thought process:(.*?)Here(?:'s| is) my response:(.*)", re.DOTALL)
"""Granite 3.2 writes plain words instead of tags."""
CHANNELS = re.compile(r"(?:<\|start\|>)?(?:assistant)?\s*(?:<\|channel\|>|to=(?:self|user)<\|message\|>)")
CHANNEL_END = re.compile(r"<\|(?:start|end|return|call|eom|eot)\|>")
TO_USER = re.compile(r"<\|channel\|>\s*final\b|\bto=user\b")
STRIPPED_CHANNELS = re.compile(r"analysis(.*?)assistantfinal(.*)", re.DOTALL)
"""Channels whose control tokens were removed: the text begins and goes on with their names, glued to the words."""


@dataclass(frozen=True)
class Thought:
    """A response in two parts."""

    reasoning: str | None
    """The thought; None where there is none."""
    answer: str
    """What follows the thought; empty where that never closed."""
    closed: bool = True
    """False if the response ended inside its thought."""


def split_thought(text: str, opened: bool | None = False) -> Thought:
    """Split a response into its thought and its answer. Both are stripped of blanks at their ends.

    Several blocks in a row are one thought, as is every channel but the final one. A thought that never closed takes
    the whole text.

    Args:
        opened: whether the prompt ended with an opening tag, so that the text begins inside the thought. None: nobody
            knows (a text from a store or a data set). Then a closing tag without an opening one before it, at the
            beginning or end of a line and outside fenced code, ends a thought; of several the last, since a thought
            may speak of the tag.
    """
    text = text.strip()
    if CHANNELS.match(text):
        return _from_channels(text)
    if found := PHRASES.fullmatch(text) or STRIPPED_CHANNELS.fullmatch(text):
        return _thought([found[1]], found[2])
    parts: list[str] = []
    rest = f"<think>{text}" if opened else text
    while block := OPENING.match(rest):
        rest = rest[block.end() :]
        while rest.lstrip().startswith(block[1]):  # opened by the prompt, and by the model again
            rest = rest.lstrip().removeprefix(block[1])
        inside, closing, rest = rest.partition(TAGS[block[1]])
        parts.append(inside)
        if not closing:
            return _thought(parts, None)
    end = None if parts or opened is not None else _end_of_thought(text)
    return _thought(parts, rest) if end is None else _thought([text[: end.start()]], text[end.end() :])


def opening_tag(prompt: str) -> str:
    """The opening tag at the end of a rendered prompt, after which the model writes its thought; empty if none."""
    found = OPEN_AT_END.search(prompt)
    return found[1] if found else ""


def never_closed(reasoning: str | None, response: str, finish_reason: str) -> bool:
    """Whether a row of RESPONSES has a thought and ended before its answer began."""
    return bool(reasoning) and not response and finish_reason == "length"


def _thought(parts: Iterable[str], answer: str | None) -> Thought:
    """The Thought of these parts; without an answer it was not closed. Where all parts are blank there is none."""
    reasoning = "\n\n".join(part.strip() for part in parts if part.strip()) or None
    answer_text = (answer or "").strip()
    for opening, closing in ANSWER_TAGS.items():
        if (reasoning or opening.startswith("<|")) and answer_text.startswith(opening):
            answer_text = answer_text.removeprefix(opening).removesuffix(closing).strip()
    return Thought(reasoning, answer_text, closed=answer is not None or reasoning is None)


def _end_of_thought(text: str) -> re.Match[str] | None:
    """The last closing tag that ends a thought whose opening tag is not in the text."""
    opening = OPENED.search(text)
    before = text[: opening.start()] if opening else text
    found = [*ALONE.finditer(before)] or ([*GLUED.finditer(before)] if not opening else [])
    ends = [end for end in found if before.count("```", 0, end.start()) % 2 == 0]
    return ends[-1] if ends else None


def _from_channels(text: str) -> Thought:
    """The final channel (or the message to the user) is the answer; analysis, commentary and calls are the thought."""
    messages = [message.partition("<|message|>") for message in CHANNEL_END.split(text)]
    written = [(header, body) for header, mark, body in messages if mark]
    if not written:  # an answer that speaks of channels
        return Thought(None, text)
    answers = [body.strip() for header, body in written if TO_USER.search(header)]
    return _thought(
        [body for header, body in written if not TO_USER.search(header)], "\n\n".join(answers) if answers else None
    )
