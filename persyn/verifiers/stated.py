"""Statements: where a response without a box says what its answer is, in the words that responses have for it."""

import re
from collections.abc import Iterator

NOUN = (
    r"(?:answers?|solutions?|results?|r\u00e9ponse|respuesta|antwort|risposta|resposta|jawaban\w*|\u043e\u0442\u0432\u0435\u0442"
    r"|\u7b54\u6848|\u7b54\u3048|\u56de\u7b54|\u89e3\u7b54|\uc815\ub2f5\uc740?|\ub2f5\uc740?)"
)
"""`Answer` in the languages of most responses, with the particle that Korean adds."""
VERB = (
    r"(?:(?:is|are|was|equals|becomes|(?:would|should|must|will|could|may|might)\s+be|est|es|ist|lautet|\u00e8|\u00e9|adalah)\b"
    r"|\u662f|\u4e3a|\u70ba|\u306f|=|\uff1a|:)"
)
LINK = rf"(?:\s*[*_]{{0,3}}\s*(?:{VERB}|(?:therefore|thus|then|simply|clearly|option|choice)\b))+"
SAID = r"\\\[[\s\S]{1,300}?\\\][^\n]*|\$\$[\s\S]{1,300}?\$\$[^\n]*|\S[^\n]*"
STATED = re.compile(rf"{NOUN}(?:\s+to\s+[^\n.:]{{1,60}}?)?{LINK}[*_\s]*(?P<said>{SAID})", re.IGNORECASE)
"""What a line, or the first one after it that is not empty, says after `the answer is`."""
HEADING = re.compile(rf"^[#*_ ]*(?:the |final |correct )*{NOUN}[*_: ]*\n\s*(?P<said>{SAID})", re.I | re.MULTILINE)
BOLD = re.compile(r"</?(?:b|strong|em|i|u)>", re.IGNORECASE)
TAG = re.compile(r"<answer>\s*(.*?)\s*</answer>", re.DOTALL | re.IGNORECASE)
DENIED = re.compile(r"(?:not|n't|cannot|unknown|unclear)\b", re.IGNORECASE)
ENDS = (
    r"(?<!\d)\.\s|\.\s+(?=\D)|(?<!\\)[!?\u3002](?:\s|$)",
    r"[;(]|\s[-\u2013\u2014]\s|,?\s(?:because|since|as|so|which|not)\b",
    r",\s",
)
"""Where what is said may end: a sentence, a remark, a part of a sentence."""
TRAILING = re.compile(
    r"[!.\s*_\u2190-\u21ff\u2600-\u27bf\U0001f000-\U0001faff\ufe0f]+$|\s*(?:</?\w+>)+$|\u3067\u3059.*$|\uc785\ub2c8\ub2e4.*$"
)

CHOSEN = re.compile(
    rf"(?:{NOUN}|option|choice)(?:{LINK})?\s*[*_$\s]*(?:(?:option|choice)\s+)?"
    r"(?:[(\[\"'\u201c]|\\text\w*\{\(?|\\math\w+\{\(?|\\\()?\s*([A-J])(?![\w'])(?!\s+(?:[a-z]{2,}|[a-z]\s))",
    re.IGNORECASE,
)
CHOSEN_OTHERS = re.compile(
    rf"(?i:{NOUN}|option|choice|choose|select|pick)(?i:{LINK})?\s*[*_$\s]*\(?([B-HJ])\b(?!['.]\w)"
)
CALLED_RIGHT = re.compile(r"\b([A-J])\W{0,3}\s+is\s+(?:the\s+)?(?:correct|right)\b")
LAST_LETTER = re.compile(
    r"(?:^|\n)\W*([A-J])\W*$|(?:\b(?:so|hence|thus|therefore|be|it's|is|with|for)\b[,:]?\s+)\W*([B-HJ])\W*$", re.I
)
IN_BRACKETS = re.compile(r"\(([A-J])\)")


def statements(text: str) -> Iterator[str]:
    """What a response says its answer is, the last statement first; of each all of it, and then less and less of its
    end. What it says the answer is not is an empty text.
    """
    text = BOLD.sub("", text)
    found = [*STATED.finditer(text), *HEADING.finditer(text)]
    for match in sorted(found, key=lambda match: match.start("said"), reverse=True):
        said = match["said"].strip()
        if DENIED.match(said):
            yield ""
        before = ""
        for end in ("", *ENDS):
            said = re.split(end, said, maxsplit=1)[0].strip() if end else said
            while said != before:
                before, said = said, TRAILING.sub("", said).strip()
            yield said


def tagged(text: str) -> str:
    """What stands in the last <answer> of a response; empty if it has none."""
    return (TAG.findall(text) or [""])[-1]


def chosen_letter(text: str) -> str:
    """The letter that a response without a box says that it chooses; empty if none."""
    text = tagged(text) or text
    found = [*CHOSEN.finditer(text), *CHOSEN_OTHERS.finditer(text), *CALLED_RIGHT.finditer(text)]
    return str(max(found, key=lambda match: match.end())[1]).upper() if found else ""


def last_letter(text: str) -> str:
    """The letter that ends a response, or else its last one in brackets; empty if there is none."""
    last = LAST_LETTER.search(text.strip())
    if last:
        return str(last[1] or last[2]).upper()
    return str((IN_BRACKETS.findall(text) or [""])[-1])
