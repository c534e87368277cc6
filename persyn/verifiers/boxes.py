"""Boxes: what the last \\boxed of a text holds."""

import re
from collections.abc import Iterator

from persyn.verifiers.signs import PERCENT, closing

BOX = re.compile(r"(?:\\+boxed|\x08oxed|(?<![\w\\])boxed(?=\s*\{)|\\+f(?:rame)?box)\s*")
"""Also without its backslash, or with one that was read as the sign \\b."""
JOINT = re.compile(r"(?:[\s,;+&$]|\\[()\[\],;: ]|\\q?quad)*")
"""What stands between boxes of one answer, without a word; a line of its own is another answer."""
CONJUNCTION = re.compile(r"[^\n.?!]{0,70}\b(?:and|or)\b[^\n.?!]{0,70}")
CORRECTION = re.compile(
    r"\b(?:no|not|wait|but|actually|rather|instead|wrong|should|correct\w*|so|then|thus|hence|therefore|sorry|final"
    r"|answer|is|are|was|be|equals?|gives?|makes?|gets?|total|sum|becomes?|maybe|perhaps|hmm)\b"
    r"|(?<!_)(?<!_\{)\d|\\(?:to|R?r\w*arrow)|[\u2192\u21d2]",
    re.IGNORECASE,
)
"""What shows that a box replaces the one before, or follows from it."""


def boxed(text: str) -> str:
    """What the last box with content holds, with the boxes that are joined to it by a comma, `and` or `or`."""
    parts: list[str] = []
    after = ""
    start = len(text)
    for begin, end, content in reversed(list(_boxes(text))):
        if not content.strip():
            continue
        between = text[end:start]
        if parts and not _is_joint(between):
            break
        if not parts:
            percent = re.match(rf"\s*(?:\$|\\[)\]])?\s*{PERCENT}", text[end:], re.IGNORECASE)
            after = r"\%" if percent else ""
        if content not in parts:
            parts.insert(0, content)
        start = begin
    return ", ".join(parts) + after


def _is_joint(between: str) -> bool:
    """Whether the boxes on both sides are one answer together."""
    if JOINT.fullmatch(between):
        return not between or bool(re.search("[,;+&]", between))
    return bool(CONJUNCTION.fullmatch(between)) and not CORRECTION.search(between)


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """Where each outermost box begins and ends, and what it holds; one that is cut off ends with its line."""
    position = 0
    while match := BOX.search(text, position):
        begin, inside = match.span()
        if text[inside : inside + 1] == "{":
            position = closing(text, inside) + 1
            if position:
                yield begin, position, text[inside + 1 : position - 1]
                continue
            content = text[inside + 1 :].partition("\n")[0]
        else:
            content = (re.match(r"[^\s$]*", text[inside:]) or [""])[0]
        position = inside + len(content) + 1
        yield begin, position, content
