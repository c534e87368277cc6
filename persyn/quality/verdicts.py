"""Verdicts: the score that a judge's reply states. Judges keep to no one form, so many are read."""

import json
import math
import re
import unicodedata

OTHERS = (
    r"puntuaci[o\u00f3]n|calificaci[o\u00f3]n|pontua[c\u00e7][a\u00e3]o|punteggio|voto|nota|bewertung|punktzahl|\u043e\u0446\u0435\u043d\u043a\u0430"
    r"|\u0431\u0430\u043b\u043b|\u8bc4\u5206|\u8a55\u5206|\u5f97\u5206|\u5206\u6570|\u5206\u6578|\u70b9\u6570|\u8a55\u4fa1|\u30b9\u30b3\u30a2|\uc810\uc218|\ud3c9\uc810"
)
"""A score in other languages, where the word is not also one of English."""
LABEL = rf"(?<![A-Za-z])(?:scores?|scored|rating|rated|grade|verdict|mark|points|overall|{OTHERS})"
POINTS = r"(?:points?|pts|\u5206|\u70b9|\uc810)"
NUMBER = rf"([+-]?\d+(?:[.,]\d+)?)(?!(?!{POINTS})\w|[.,]?\d|\s*%)"
ABOUT = r"(?:(?:about|approximately|around|roughly)\s+)?"
SUM = r"(?:[\d.\s+*/()\u2013-]{3,40}=\s*)?"
"""`10 - 2 = 8`."""
OUT_OF = rf"(?:\s*{POINTS})?" + r"(?:\s*(?:/|out\s+of|of)\s*(\d+(?:\.\d+)?)(?:\s*points?)?)?"
SUPPOSED = (
    r"(?!\s*(?:would|could|might|may|means?|if|when|only|is\s+(?:for|only|perfect|reserved|useless|given|the)\b"
    r"|[-\u2013]\s*\d|(?:to|or)\s+\d))"
)
STATED = re.compile(
    rf"{LABEL}\b[^\d:=\n]{{0,24}}(?::|=|->|\u2192|\s[-\u2013\u2014](?=\s))+\s*{SUM}{ABOUT}{NUMBER}{OUT_OF}{SUPPOSED}",
    re.I,
)
"""`score: 8`, `Final rating = 8/10`: a label, a sign and the number."""
SAID = re.compile(
    rf"(?:{LABEL}|\brate|give|grade|award|assign)\b(?:\s+(?:it|this|that|the|a|an|of|is|as|to|at|be|should|answer|response|final))*"
    rf"\s+{NUMBER}{OUT_OF}{SUPPOSED}",
    re.I,
)
"""`The score is 8`, `I rate this answer 8`."""
SHARE = re.compile(
    rf"(?<![\d/.\u2013-])(?<!\bor )(?<!\bto ){NUMBER}\s*(?:/|out\s+of)\s*(\d+(?:\.\d+)?)(?![\d/]){SUPPOSED}", re.I
)
"""`8/10`, `8 out of 10`."""
ALONE = re.compile(rf"[\s(\[]*{NUMBER}{OUT_OF}[\s)\]]*[.!]?\s*", re.I)
DOUBLE = re.compile(r"\[\[\s*(?:(?:score|rating)\s*:\s*)?([^\[\]]{1,12}?)\s*\]\]", re.I)
BOXED = re.compile(r"\\(?:boxed|text|mathbf|textbf)\s*\{([^{}]*)\}")
ENCLOSED = re.compile(r"([:=]\s*)[(\[]\s*([+-]?\d[\d.,]*(?:\s*/\s*\d+)?)\s*[)\]]")
REMARK = re.compile(r"\([^()]*\)|\[[^\[\]]*\]")
SCALE = re.compile(
    r"(?:/|\bout\s+of)\s*\d+(?=\s*[:=])|(?:\bon\s+(?:a|the)\s+)?(?:\bscale\s+)?(?:\b(?:from|of)\s+)?\b\d+\s*(?:-|\u2013|to)\s*\d+(?=\s*[:=,])",
    re.I,
)
TAG = re.compile(rf"<\s*({LABEL})\s*>\s*([^<>]{{1,12}}?)\s*<\s*/\s*{LABEL}\s*>", re.I)
MARKUP = re.compile(r"[*_`#<>\"'{}$~\\]+")
SUPPOSITION = re.compile(r"(?<=[.;]\s)(?:if|with|had)\b[^.\n]*", re.I)
"""A sentence that is not the first one of its line."""
SPLIT_LABEL = re.compile(rf"({LABEL}\b[ \t*_`#:\"'|=]*)\n\s*(?=[*_`\s]*[+-]?\d)", re.I)
KEYS = ("score", "final_score", "overall_score", "rating", "overall_rating", "overall", "grade", "verdict", "mark")
OBJECT = re.compile(r"\{[^{}]*\}")


def read_verdict(reply: str, lowest: float, highest: float, *, cut: bool = False) -> float:
    """The score of the last line that states one; a remark in brackets, and a score that is only supposed ("10 would
    be"), do not count. A JSON object with a score is read first.

    Args:
        cut: whether the reply ended at its limit of tokens: its last line, where a number may lack digits, is not read.

    Returns:
        NaN where no score is stated, or the last one is not from `lowest` to `highest`, or is out of another number
        than `highest`.
    """
    text = unicodedata.normalize("NFKC", reply).replace("\u2212", "-").strip()
    if cut:
        text = text.rpartition("\n")[0]
    score, scale = _in_object(text) or _in_lines(text) or (math.nan, None)
    fits = lowest <= score <= highest and scale in (None, highest)
    return score if fits else math.nan


def _in_object(text: str) -> tuple[float, None] | None:
    """The score in the last JSON object that has one: the whole reply, or a part without braces."""
    for part in (text, *reversed(OBJECT.findall(text))):
        try:
            found = json.loads(part)
        except ValueError:
            continue
        named = {str(key).lower(): value for key, value in found.items()} if isinstance(found, dict) else {}
        for value in (named[key] for key in KEYS if key in named):
            try:
                if not isinstance(value, bool):
                    return float(value), None
            except (TypeError, ValueError):
                continue
    return None


def _in_lines(text: str) -> tuple[float, float | None] | None:
    """The score of the last line that states one, and what it is out of if that is said."""
    lines = [_plain(line) for line in SPLIT_LABEL.sub(r"\1 ", text).splitlines() if line.strip()]
    for patterns in ((STATED, SAID), (SHARE,)):  # what is called a score comes before a bare 8/10
        for line in reversed(lines):
            for pattern in patterns:
                if found := list(pattern.finditer(line)):
                    return _number(found[-1])
    alone = ALONE.fullmatch(lines[-1]) or ALONE.fullmatch(text) if lines else None
    return _number(alone) if alone else None


def _plain(line: str) -> str:
    """A line without markup, remarks in brackets, and the scale that a label names."""
    line = BOXED.sub(r"\1", TAG.sub(r"\1: \2", DOUBLE.sub(r"score: \1", line)))
    line = ENCLOSED.sub(r"\1\2", MARKUP.sub(" ", line.replace("|", ":")))
    line = SUPPOSITION.sub(" ", line)
    while (shorter := REMARK.sub(" ", line)) != line:
        line = shorter
    return SCALE.sub(" ", line)


def _number(found: re.Match[str]) -> tuple[float, float | None]:
    score, scale = found.groups()
    return float(score.replace(",", ".")), None if scale is None else float(scale)
