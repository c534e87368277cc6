r"""Answers: what the final answer of a text means, before math-verify compares what is more than a number.

docs/answers.md states the meaning of every kind of writing; a text with two meanings has two readings.
"""

import functools
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from persyn.verifiers.boxes import boxed
from persyn.verifiers.signs import LONGEST, PERCENT, PERCENTS, as_latex, readable, stripped, unwrapped, without_percents

DIGITS = 6
"""Decimal places in which a decimal number must agree."""

LATER = re.compile(r"final answer\b[^\n.]{0,100}?\bis\b:?", re.IGNORECASE)
STATED = re.compile(r"answer(?:\s+is|\s*:)\s*:?\s*(\S[^\n]*)", re.IGNORECASE)
EMPTY_BOX = re.compile(r"\\+boxed\s*\{\s*\}")
HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
LEAD = re.compile(r"(?:the\s+)?(?:final\s+)?answer\s*(?:is\s*:?|:)\s*(?=\S)", re.IGNORECASE)
LETTER = re.compile(r"(?:(?i:option|choice)\s+)?\(?\s*([A-Za-z])\s*\)?\s*[.:]?|\\\(\s*([A-Za-z])\s*\\\)")
LABELLED = re.compile(r"(?:\(([A-J])\)[.:]?\s*|([A-J])[).:]\s+)(\S.*)", re.DOTALL)
AND_FRACTION = re.compile(r"([+-]?\d+)\s+and\s+(\d+\s*/\s*\d+)")
STATED_LETTER = re.compile(
    r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*[*_$\s]*(?:(?:option|choice)\s+)?"
    r"(?:\(|\\text\w*\{\(?|\\mathrm\{\(?)?([A-J])(?![\w'])(?!\s+(?:[a-z]{2,}|[a-z]\s))",
    re.IGNORECASE,
)
STATED_OTHERS = re.compile(
    r"(?i:answer|option|choice|choose|select|pick)(?i:\s+is)?\s*:?\s*[*_$\s]*\(?([B-HJ])\b(?!['.]\w)"
)
CALLED_RIGHT = re.compile(r"\b([A-J])\W{0,3}\s+is\s+(?:the\s+)?(?:correct|right)\b")
IN_BRACKETS = re.compile(r"\(([A-J])\)")
CURRENCY = r"(?:(?:US|A|C)?\\?\$|[\u00a2\u00a3\u00a5\u20a0-\u20bf\u0e3f]|(?:USD|EUR|GBP|Rs\.?)(?=[\s\d]))"
GROUPS = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+"
DECIMAL = rf"(?:{GROUPS})(?:\.\d*)?|\.\d+"
NUMBER = re.compile(
    rf"(?:\\approx|\u2248)?\s*(?P<sign>[+-]?)\s*{CURRENCY}?\s*(?P<inner>[+-]?)\s*(?:"
    rf"(?P<european>\d{{1,3}}(?:\.\d{{3}})+,\d+|0,\d+)|"
    rf"\\frac\{{\s*(?P<up>[+-]?(?:{DECIMAL}))\s*\}}\{{\s*(?P<down>[+-]?(?:{DECIMAL}))\s*\}}|"
    rf"(?P<top>{DECIMAL})(?:\s*/\s*(?P<bottom>{DECIMAL}))?)"
    rf"(?P<rest>(?![\d/]).*)",
    re.DOTALL,
)
DECIMAL_COMMA = re.compile(r"([+-]?)\s*(\d+),(\d{1,2}|\d{4,})")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = (
    "mm cm dm km mg kg lb lbs oz ft yd mi ml cl dl kl gal hr hrs min mins sec secs ms yr yrs mph kmh kph kmph rs hz "
    "khz mhz ghz kw mw kwh kj pa kpa mol rad deg kb mb gb tb am pm sq cu in pcs of"
)
"""Short units, in any case; any other word of three letters or more after a space is a unit too."""
LETTER_UNITS = "m g s h l L t N J W V A K C F"
MATHS = (
    "and mod exp log ln lim sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh max min gcd lcm sqrt inf infty "
    "infinity pi det deg theta alpha beta"
)
"""Words of an expression."""
NOT_UNITS = (
    "or choose to plus minus times over divided by if when where for with else otherwise is are not the then thus but"
)
MISSING = "n/a na nan null none proof unknown"
"""What data sets write where there is no answer."""


@dataclass(frozen=True)
class Reading:
    """One meaning of an answer: a letter of a multiple choice, a number, words, or an expression for math-verify."""

    text: str
    letter: str = ""
    words: str = ""
    number: Fraction | None = None
    name: str = ""
    """The unknown that the number is said to be, as in x = 5."""
    is_decimal: bool = False
    is_percent: bool = False
    parsed: tuple[tuple[Any, ...], tuple[Any, ...]] | None = None
    """What math-verify found in a whole response: as written, and with percents as hundredths."""

    def forms(self, in_hundredths: bool) -> list[Any]:
        """SymPy's expressions, or texts; of a percent either its number or that many hundredths."""
        import sympy

        if self.parsed:
            return list(self.parsed[in_hundredths])
        if self.number is None:
            return list(_parse(without_percents(self.text, in_hundredths)))
        value = self.number / 100 if in_hundredths and self.is_percent else self.number
        exact = sympy.Rational(value.numerator, value.denominator)
        return [sympy.Float(exact, 30) if self.is_decimal else exact]


def readings(text: str) -> tuple[Reading, ...]:
    """The meanings of an answer that stands alone: a reference, or what a box holds."""
    plain = stripped(readable(text))
    if not plain:
        return ()
    bare = stripped(unwrapped(plain))
    said = LEAD.match(bare)
    if said:
        plain = bare = stripped(bare[said.end() :])
    letter = LETTER.fullmatch(bare)
    if letter:
        return (Reading(bare, letter=(letter[1] or letter[2]).upper()),)
    labelled = LABELLED.fullmatch(bare)
    if labelled and len(bare) <= 2 * LONGEST:
        return (Reading(bare, letter=labelled[1] or labelled[2]), *readings(labelled[3]))
    comma = DECIMAL_COMMA.fullmatch(bare)
    if comma and comma[2] != "0":
        decimal = Reading(bare, number=Fraction(f"{comma[1]}{comma[2]}.{comma[3]}"), is_decimal=True)
        return (decimal, Reading(plain))
    found = _number(bare, is_wrapped=bare != plain)
    if found:
        return found
    name, _, value = bare.partition("=")
    found = _number(stripped(value)) if re.fullmatch(r"\s*[A-Za-z]\w*\s*", name) else ()
    if len(found) == 1:
        return (replace(found[0], name=name.strip()),)
    both = AND_FRACTION.fullmatch(bare)
    if both:
        return (*readings(f"{both[1]} {both[2]}"), Reading(plain))
    is_text = re.fullmatch(r"\\text\s*\{[^{}]*\}", plain) or (bare.isalpha() and bare.isascii())
    if is_text and len(bare) > 2 and re.search("[A-Za-z]{2}", bare) and bare.lower() not in MATHS.split():
        return (Reading(plain, words=" ".join(bare.casefold().split())),)
    return (Reading(plain, is_percent=bool(PERCENTS.search(plain))),)


def read_reference(text: str) -> tuple[Reading, ...]:
    """The meanings of a reference: of its last box, of what follows #### or `the answer is`, or of all of it."""
    return readings(boxed(text) or _hashed(text) or _stated(text) or EMPTY_BOX.sub("", text))


def read_response(text: str, wants_letter: bool) -> tuple[Reading, ...]:
    """The meanings of a response's final answer: its last box (or what `final answer is` says after it), else what
    follows ####, else what math-verify finds.
    """
    after = LATER.search(text, text.rfind("\\boxed") + 1) if "\\boxed" in text else None
    later = read_response(text[after.end() :], wants_letter) if after else ()
    final = boxed(text) or _hashed(text)
    if later or final:
        return later or readings(final)
    if wants_letter:
        letter = _stated_letter(text)
        return (Reading(letter, letter=letter),) if letter else ()
    if len(text) < 100 and "\n" not in text.strip():
        whole = readings(text)
        if any(reading.number is not None for reading in whole):
            return whole
    plain = readable(text).replace("\u00b0", "")
    written = _parse_response(without_percents(plain, False))
    has_percent = bool(PERCENTS.search(plain))
    hundredths = _parse_response(without_percents(plain, True)) if has_percent else written
    return (Reading(text, is_percent=written != hundredths, parsed=(written, hundredths)),) if written else ()


def same(reference: Reading, answer: Reading, **settings: Any) -> bool:
    """Whether two readings mean the same; `settings` are math-verify's.

    A percent equals its number and that many hundredths, but two percents are compared as such.
    """
    from math_verify.grader import verify

    if reference.letter and answer.letter:
        return reference.letter == answer.letter
    if reference.words and answer.words:
        return reference.words == answer.words
    scales = [(True, True)]
    if reference.is_percent != answer.is_percent:
        scales.append((False, False))
    if reference.number is not None and answer.number is not None:
        if reference.name and answer.name and reference.name != answer.name:
            return False
        return any(_equal(reference, answer, *scale) for scale in scales)
    return any(verify(reference.forms(gold), answer.forms(given), **settings) for gold, given in scales)


def fault(reference: str) -> str:
    """Why a reference cannot be compared with; empty if it can."""
    import sympy

    found = read_reference(reference)
    if not found:
        return "is empty"
    if len(found) > 1:
        return "can be read in two ways"
    [reading] = found
    text = reading.text
    if reading.letter or reading.number is not None or (reading.words and reading.words not in MISSING.split()):
        return ""
    if re.search(r"\d\s+\d", text):
        return "can be read in two ways"
    form = next(iter(reading.forms(True)), "")
    is_sound = not isinstance(form, str) and not form.has(sympy.zoo, sympy.nan) and not re.search(r"\d\.\d+\.\d", text)
    is_answer = is_sound and not reading.words and text.lower() not in MISSING.split() and not _has_words(text)
    return "" if is_answer and same(reading, reading) else "is not a mathematical answer"


def _equal(reference: Reading, answer: Reading, gold: bool, given: bool) -> bool:
    assert reference.number is not None
    assert answer.number is not None
    one = reference.number / 100 if gold and reference.is_percent else reference.number
    two = answer.number / 100 if given and answer.is_percent else answer.number
    if not (reference.is_decimal or answer.is_decimal) or one.denominator == two.denominator == 1:
        return one == two
    return abs(one - two) <= min(Fraction(1, 2 * 10**DIGITS), abs(one) / 1000)


def _number(text: str, is_wrapped: bool = False) -> tuple[Reading, ...]:
    """A number with its currency sign, percent sign or unit; empty if the text is something else."""
    match = NUMBER.fullmatch(text) if len(text) <= LONGEST else None
    if not match or (match["sign"] and match["inner"]):
        return ()
    if match["european"]:
        value = Fraction(match["european"].replace(".", "").replace(",", "."))
    else:
        bottom = _value(match["down"] or match["bottom"] or "1")
        if not bottom:
            return ()
        value = _value(match["up"] or match["top"]) / bottom
    value = -value if "-" in (match["sign"], match["inner"]) else value
    is_fraction = bool(match["down"] or match["bottom"])
    is_decimal = bool(match["european"]) or (not is_fraction and value.denominator != 1)
    rest = match["rest"]
    scale = re.match(rf"\s*({'|'.join(SCALES)})s?\b", rest, re.IGNORECASE)
    if scale:
        value, rest = value * SCALES[scale[1].lower()], rest[scale.end() :]
    percent = re.match(rf"\s*{PERCENT}", rest, re.IGNORECASE)
    rest = rest[percent.end() :] if percent else rest
    if not _is_unit(rest, is_wrapped):
        return ()
    number = Reading(text, number=value, is_decimal=is_decimal, is_percent=bool(percent))
    is_letter = len(rest.strip()) == 1 and rest.strip().isalpha()
    return (number, Reading(text)) if is_letter and not is_wrapped else (number,)


def _value(text: str) -> Fraction:
    return Fraction(re.sub(r"[ ,']", "", text).removesuffix("."))


def _is_unit(text: str, is_wrapped: bool) -> bool:
    """Whether what follows a number only says of what it is so many; nothing is so too."""
    degree = "\u00b0"
    text = re.sub(r"\^?\{?\s*\\circ\s*\}?|\\degree|[\u00b0\u2032\u2033]", f" {degree} ", text)
    if re.fullmatch(rf"\s*{CURRENCY}?\s*", text):
        return True
    words = re.sub(rf"\^\{{?-?\d\}}?|(?<=[a-zA-Z])[23]\b|[/.(){degree}-]|\\cdot", " ", text)
    found = words.replace(",", " ").split()
    if not found:
        return degree in text and not text.strip(f" {degree}")
    if not all(word.replace("'", "").isalpha() for word in found) or {"and", "or"} & set(found):
        return False
    first = found[0]
    is_apart = is_wrapped or text.startswith((" ", "-", "("))
    is_known = first.lower() in UNITS.split() or first in LETTER_UNITS.split() or (is_apart and len(first) > 2)
    is_maths = first.lower() in (*MATHS.split(), *NOT_UNITS.split()) and first.lower() not in UNITS.split()
    others = all(is_wrapped or len(word) > 1 or word in ("a", *LETTER_UNITS.split()) for word in found[1:])
    return is_known and not is_maths and others


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Any, ...]:
    """What math-verify makes of an answer that stands alone."""
    from math_verify.parser import parse

    return tuple(parse(f"\\boxed{{{as_latex(text)}}}"))


def _parse_response(text: str) -> tuple[Any, ...]:
    from math_verify.parser import parse

    return tuple(parse(text))


def _hashed(text: str) -> str:
    """What follows the last ####, as in GSM8K; a heading of markdown is no answer."""
    for content in reversed(HASHES.findall(text)):
        found = readings(content)
        if any(reading.letter or reading.number is not None for reading in found) or content.startswith("$"):
            return str(content)
    return ""


def _stated(text: str) -> str:
    """What the last `answer is` of a reference is followed by, if that is a number or a letter."""
    content = (STATED.findall(text) or [""])[-1]
    found = readings(content)
    return str(content) if any(reading.letter or reading.number is not None for reading in found) else ""


def _stated_letter(text: str) -> str:
    """The letter that a response without a box chooses; empty if none."""
    found = [*STATED_LETTER.finditer(text), *STATED_OTHERS.finditer(text), *CALLED_RIGHT.finditer(text)]
    if found:
        return max(found, key=lambda match: match.end())[1].upper()
    whole = readings(text)
    if whole and whole[0].letter:
        return whole[0].letter
    return (IN_BRACKETS.findall(text) or [""])[-1]


def _has_words(text: str) -> bool:
    """Whether an expression has words that are neither commands nor text of LaTeX, nor names of functions."""
    rest = re.sub(r"\\(?:begin|end|operatorname\*?|text\w*|math\w+)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    return any(word not in MATHS.split() for word in re.findall(r"[A-Za-z]{3,}", rest))
