r"""Answers: what the final answer of a text means, before math-verify compares what is more than a number.

docs/answers.md states the meaning of every kind of writing; a text with two meanings has two readings.
"""

import functools
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

DIGITS = 6
"""Decimal places in which a decimal number must agree."""

_SIGNS = dict.fromkeys("‐‑‒–—−﹣－", "-") | dict.fromkeys("\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000", " ")
_SIGNS |= {"⁄": "/", "∕": "/", "％": "%", "﹪": "%", "＋": "+", "．": ".", "，": ",", "＝": "=", "＄": "$"}
_SIGNS |= {"\u200b": "", "\ufeff": "", "\u2062": "", "º": "°", "˚": "°"}
_SIGNS |= {chr(0xFF10 + digit): str(digit) for digit in range(10)}
_SIGNS |= {chr(code): f"\0{Fraction(unicodedata.numeric(chr(code))).limit_denominator(10)}\0" for code in range(0xBC, 0xBF)}
_SIGNS |= {
    chr(code): f"\0{Fraction(unicodedata.numeric(chr(code))).limit_denominator(10)}\0" for code in range(0x2150, 0x215F)
}
SIGNS = str.maketrans(_SIGNS)
RAISED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺", "0123456789-+")
LATEX = str.maketrans(
    {"×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "∙": r"\cdot ", "÷": "/", "π": r"\pi ", "∞": r"\infty ", "√": r"\sqrt "}
    | {"≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "∪": r"\cup ", "∩": r"\cap ", "∈": r"\in ", "±": r"\pm "}
)
SHORT_FRACTION = re.compile(r"\\[dtc]?frac\s*(?:\{([^{}]*)\}|(\d))\s*(?:\{([^{}]*)\}|(\d))")
MIXED = re.compile(r"(?<![\d.,/^_{\\])(\d+)(?:\s+(?:and\s+)?|\s*\0)(\d+)\s*/\s*(\d+)(?![\d/^.]*\d)")
MIXED_LATEX = re.compile(r"(?<![\d.,/^_}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
POWER_OF_TEN = r"\s*(?:\\times|\\cdot|×|·|⋅|\*|[xX])\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,3})\s*\}?"
SCIENTIFIC = re.compile(rf"(?<![\w.,^])(\d+(?:\.\d+)?|\.\d+)(?:[eE]([+-]?\d{{1,3}})(?![\w.]*\w)|{POWER_OF_TEN})")
PERCENT = r"(?:\\?%|(?:per\s?cent(?:age)?(?:\s+points?)?|pct)(?![a-z]))"
PERCENTS = re.compile(rf"(\d[\d,]*(?:\.\d+)?|\.\d+)(\}}?)(\s*\$?\s*){PERCENT}", re.IGNORECASE)
"""A number, a brace that may close its box, and what says that it is a percent."""
BOX = re.compile(r"\\+(?:boxed|fbox)\s*")
JOINT = re.compile(r"(?:[\s,;+&$]|\\[()\[\],;: ]|\\q?quad)*")
"""What stands between boxes of one answer, without a word; a line of its own is another answer."""
CONJUNCTION = re.compile(r"[^\n.?!]{0,70}\b(?:and|or)\b[^\n.?!]{0,70}")
CORRECTION = re.compile(
    r"\b(?:no|not|wait|but|actually|rather|instead|wrong|should|correct\w*|so|then|thus|hence|therefore|sorry|final|answer"
    r"|is|are|was|be|equals?|gives?|makes?|gets?|get|total|sum|becomes?|maybe|perhaps|hmm)\b|(?<!_)(?<!_\{)\d|\\(?:to|R?r\w*arrow)|[→⇒]",
    re.IGNORECASE,
)
LATER = re.compile(r"final answer\b[^\n.]{0,100}?\bis\b:?", re.IGNORECASE)
HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
WRAPPED = re.compile(r"\\(?:text|math)(?:bf|rm|it|tt|sf|normal)?\s*\{([^{}]*)\}|\\(?:bf|rm|it)\b\s*")
MARKDOWN = re.compile(r"(\*\*\*|\*\*|__|[*_`])(.+)\1\Z", re.DOTALL)
SPACES = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad\b)|~")
LETTER = re.compile(r"\(?\s*([A-Za-z])\s*\)?\s*[.:]?|\\\(\s*([A-Za-z])\s*\\\)")
LABELLED = re.compile(r"(?:\(([A-J])\)[.:]?\s*|([A-J])[).:]\s+)(\S.*)", re.DOTALL)
STATED_LETTER = re.compile(
    r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*[*_$\s]*(?:(?:option|choice)\s+)?"
    r"(?:\(|\\text\w*\{\(?|\\mathrm\{\(?)?([A-J])(?![\w'])(?!\s+(?:[a-z]{2,}|[a-z]\s))",
    re.IGNORECASE,
)
STATED_OTHERS = re.compile(r"(?:answer|option|choice)(?:\s+is)?\s*:?\s*[*_$\s]*\(?([B-HJ])\b(?!['.]\w)")
IN_BRACKETS = re.compile(r"\(([A-J])\)")
CURRENCY = r"(?:(?:US|A|C)?\\?\$|[€£¥₹₩₽₺₪฿]|(?:USD|EUR|GBP|Rs\.?)(?=[\s\d]))"
GROUPS = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+"
DECIMAL = rf"(?:{GROUPS})(?:\.\d*)?|\.\d+"
NUMBER = re.compile(
    rf"(?:\\approx|≈)?\s*(?P<sign>[+-]?)\s*{CURRENCY}?\s*(?P<inner>[+-]?)\s*(?:"
    rf"(?P<european>\d{{1,3}}(?:\.\d{{3}})+,\d+|0,\d+)|"
    rf"\\frac\{{\s*(?P<up>[+-]?(?:{DECIMAL}))\s*\}}\{{\s*(?P<down>[+-]?(?:{DECIMAL}))\s*\}}|"
    rf"(?P<top>{DECIMAL})(?:\s*/\s*(?P<bottom>{DECIMAL}))?)"
    rf"(?P<rest>(?![\d/]).*)",
    re.DOTALL,
)
DECIMAL_COMMA = re.compile(r"([+-]?)\s*(\d+),(\d{1,2}|\d{4,})")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = set(
    "mm cm dm km mg kg lb lbs oz ft yd mi ml cl dl kl gal hr hrs min mins sec secs ms yr yrs mph kmh kph kmph km/h "
    "rs hz khz mhz ghz kw mw kwh kj pa kpa mol rad deg kb mb gb tb am pm sq cu in pcs".split()
)
"""Short units; any other word of three letters or more after a space is one too."""
LETTER_UNITS = set("m g s h l L t N J W V A K C F".split())
NOT_UNITS = set(
    "and or mod choose to plus minus times over divided by if when where for with else otherwise is are not pi exp log "
    "ln lim sin cos tan cot sec csc max gcd lcm sqrt the then thus but".split()
) - {"sec"}


@dataclass(frozen=True)
class Reading:
    """One meaning of an answer: a letter of a multiple choice, a number, or an expression for math-verify."""

    text: str
    letter: str = ""
    number: Fraction | None = None
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
            return list(_parse(_without_percents(self.text, in_hundredths)))
        value = self.number / 100 if in_hundredths and self.is_percent else self.number
        exact = sympy.Rational(value.numerator, value.denominator)
        return [sympy.Float(exact, 30) if self.is_decimal else exact]


def readings(text: str) -> tuple[Reading, ...]:
    """The meanings of an answer that stands alone: a reference, or what a box holds."""
    plain = _stripped(_plain(text))
    if not plain:
        return ()
    bare = _stripped(WRAPPED.sub(lambda match: match[1] or "", plain))
    letter = LETTER.fullmatch(bare)
    if letter:
        return (Reading(bare, letter=(letter[1] or letter[2]).upper()),)
    labelled = LABELLED.fullmatch(bare)
    if labelled:
        return (Reading(bare, letter=labelled[1] or labelled[2]), *readings(labelled[3]))
    comma = DECIMAL_COMMA.fullmatch(bare)
    if comma and comma[2] != "0":
        decimal = Reading(bare, number=Fraction(f"{comma[1]}{comma[2]}.{comma[3]}"), is_decimal=True)
        return (decimal, Reading(plain))
    found = _number(bare, is_wrapped=bare != plain)
    if found:
        return found
    name, equals, value = bare.partition("=")
    of = _number(_stripped(value)) if equals and re.fullmatch(r"\s*[A-Za-z]\w*\s*", name) else ()
    if len(of) == 1 and of[0].number is not None:
        percent = r"\%" if of[0].is_percent else ""
        return (Reading(f"{name}= {_latex_number(of[0])}{percent}", is_percent=of[0].is_percent),)
    return (Reading(plain, is_percent=bool(PERCENTS.search(plain))),)


def read_reference(text: str) -> tuple[Reading, ...]:
    """The meanings of a reference: of its last box, of what follows its last ####, or of all of it."""
    return readings(_boxed(text) or _hashed(text) or text)


def read_response(text: str, wants_letter: bool) -> tuple[Reading, ...]:
    """The meanings of a response's final answer: its last box (or what `final answer is` says after it), else what
    follows ####, else what math-verify finds.
    """
    after = LATER.search(text, text.rfind("\\boxed") + 1) if "\\boxed" in text else None
    later = read_response(text[after.end() :], wants_letter) if after else ()
    final = _boxed(text) or _hashed(text)
    if later or final:
        return later or readings(final)
    if wants_letter:
        letter = _stated_letter(text)
        return (Reading(letter, letter=letter),) if letter else ()
    if len(text) < 100 and "\n" not in text.strip():
        whole = readings(text)
        if any(reading.number is not None for reading in whole):
            return whole
    plain = _plain(text).replace("°", "")
    written = _parse_response(_without_percents(plain, False))
    has_percent = bool(PERCENTS.search(plain))
    hundredths = _parse_response(_without_percents(plain, True)) if has_percent else written
    return (Reading(text, is_percent=written != hundredths, parsed=(written, hundredths)),) if written else ()


def same(reference: Reading, answer: Reading, **settings: Any) -> bool:
    """Whether two readings mean the same; `settings` are math-verify's.

    A percent equals its number and that many hundredths, but two percents are compared as such.
    """
    from math_verify.grader import verify

    if reference.letter and answer.letter:
        return reference.letter == answer.letter
    scales = [(True, True)]
    if reference.is_percent != answer.is_percent:
        scales.append((False, False))
    if reference.number is not None and answer.number is not None:
        return any(_equal(reference, answer, *scale) for scale in scales)
    return any(verify(reference.forms(gold), answer.forms(given), **settings) for gold, given in scales)


def fault(reference: str) -> str:
    """Why a reference cannot be compared with; empty if it can."""
    found = read_reference(reference)
    if not found:
        return "is empty"
    if len(found) > 1:
        return "can be read in two ways"
    [reading] = found
    if reading.letter or reading.number is not None:
        return ""
    is_readable = not isinstance(next(iter(reading.forms(True)), ""), str) and not _has_words(reading.text)
    return "" if is_readable and same(reading, reading) else "is not a mathematical answer"


def _equal(reference: Reading, answer: Reading, gold: bool, given: bool) -> bool:
    assert reference.number is not None and answer.number is not None
    one = reference.number / 100 if gold and reference.is_percent else reference.number
    two = answer.number / 100 if given and answer.is_percent else answer.number
    if not (reference.is_decimal or answer.is_decimal) or one.denominator == two.denominator == 1:
        return one == two
    return abs(one - two) <= min(Fraction(1, 2 * 10**DIGITS), abs(one) / 1000)


def _plain(text: str) -> str:
    """Signs of Unicode, mixed numbers and powers of ten in the form that math-verify reads."""
    text = text.translate(SIGNS)
    text = re.sub(r"[⁰¹²³⁴⁵⁶⁷⁸⁹⁻⁺]+", lambda match: f"^{{{match[0].translate(RAISED)}}}", text)
    text = text.replace("{,}", ",").replace(r"\%", "%").replace("%", r"\%")
    text = re.sub(r"(?<!\\)\\!\s*", "", text)
    text = re.sub(r"(?<=\d)(?:\\[,;: ]|~)(?=\d{3}(?!\d))", " ", text)
    text = re.sub(r"\\math(?:rm|bf|it)\s*\{([ei])\}", r"\1", text)
    text = SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", text)
    text = MIXED.sub(_improper, text)
    text = MIXED_LATEX.sub(lambda match: _improper(match, r"\frac{{{}}}{{{}}}"), text).replace("\0", "")
    return SCIENTIFIC.sub(_written_out, text)


def _improper(match: re.Match[str], form: str = "{}/{}") -> str:
    whole, top, bottom = int(match[1]), int(match[2]), int(match[3])
    return form.format(whole * bottom + top, bottom) if top < bottom else match[0]


def _written_out(match: re.Match[str]) -> str:
    value = Fraction(match[1]) * Fraction(10) ** int(match[2] or match[3])
    return _decimal(value) if abs(int(match[2] or match[3])) <= 40 else match[0]


def _decimal(value: Fraction) -> str:
    """A number with finitely many digits, without an exponent."""
    places = next(places for places in range(400) if (value * 10**places).denominator == 1)
    digits = str(abs(value.numerator * 10**places // value.denominator)).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def _stripped(text: str) -> str:
    """Without what only surrounds or decorates: dollar signs, markdown, spaces, a full stop at the end."""
    before = None
    while text != before:
        before = text
        text = SPACES.sub(" ", text).replace(r"\displaystyle", "").strip()
        text = text.removesuffix(".").removesuffix(",").removesuffix(";").rstrip()
        inline = re.fullmatch(r"\$\$?([^$]+)(?<!\\)\$?\$|\\\((.+)\\\)|\\\[(.+)\\\]", text, re.DOTALL)
        if inline:
            text = next(filter(None, inline.groups()))
        text = MARKDOWN.sub(r"\2", text) if MARKDOWN.match(text) else text
        if text.startswith("{") and _closing(text, 0) == len(text) - 1:
            inner = text[1:-1]
            text = inner if "," not in inner else text
    return text


def _number(text: str, is_wrapped: bool = False) -> tuple[Reading, ...]:
    """A number with its currency sign, percent sign or unit; empty if the text is something else."""
    match = NUMBER.fullmatch(text)
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
    is_decimal = bool(match["european"]) or not is_fraction and value.denominator != 1
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
    text = re.sub(r"\^?\{?\s*\\circ\s*\}?|\\degree|°|′|″", " ° ", text)
    if re.fullmatch(rf"\s*{CURRENCY}?\s*", text):
        return True
    is_apart = is_wrapped or text[:1] in " °-("
    words = re.sub(r"\^\{?-?\d\}?|(?<=[a-zA-Z])[23]\b|[/.()°-]|\\cdot", " ", text)
    if not re.fullmatch(r"[A-Za-zµμΩ\s,']*", words):
        return False
    found = words.replace(",", " ").split()
    if not found:
        return "°" in text and not text.strip(" °")
    known = found[0].lower() in UNITS or found[0] in LETTER_UNITS or (is_apart and len(found[0]) > 2)
    others = all(len(word) > 1 or word in LETTER_UNITS | {"a"} or is_wrapped for word in found[1:])
    return known and others and not NOT_UNITS & {found[0].lower()} and not {"and", "or"} & set(found)


def _latex_number(reading: Reading) -> str:
    assert reading.number is not None
    if reading.is_decimal:
        return _decimal(reading.number)
    return rf"\frac{{{reading.number.numerator}}}{{{reading.number.denominator}}}"


def _without_percents(text: str, in_hundredths: bool) -> str:
    if not in_hundredths:
        return PERCENTS.sub(r"\1\2\3", text)

    def hundredth(match: re.Match[str]) -> str:
        return _decimal(_value(match[1]) / 100) + match[2] + match[3]

    return PERCENTS.sub(hundredth, text)


@functools.lru_cache(maxsize=4096)
def _parse(text: str) -> tuple[Any, ...]:
    """What math-verify makes of an answer that stands alone."""
    from math_verify.parser import parse

    text = re.sub(r"√\s*(\d+|[a-z])", r"\\sqrt{\1}", text)
    text = re.sub(r"√\s*\(([^()]*)\)", r"\\sqrt{\1}", text).translate(LATEX)
    return tuple(parse(f"\\boxed{{{text.replace('°', '')}}}"))


def _parse_response(text: str) -> tuple[Any, ...]:
    from math_verify.parser import parse

    return tuple(parse(text))


def _boxed(text: str) -> str:
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
            position = _closing(text, inside) + 1
            if position:
                yield begin, position, text[inside + 1 : position - 1]
                continue
            content = text[inside + 1 :].partition("\n")[0]
        else:
            content = (re.match(r"[^\s$]*", text[inside:]) or [""])[0]
        position = inside + len(content) + 1
        yield begin, position, content


def _closing(text: str, opening: int) -> int:
    """Where the brace at `opening` closes; -1 if it does not."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if text[position] == "{" else -1
            if not depth:
                return position
    return -1


def _hashed(text: str) -> str:
    """What follows the last ####, as in GSM8K; a heading of markdown is no answer."""
    for content in reversed(HASHES.findall(text)):
        found = readings(content)
        if any(reading.letter or reading.number is not None for reading in found) or content.startswith("$"):
            return str(content)
    return ""


def _stated_letter(text: str) -> str:
    """The letter that a response without a box chooses; empty if none."""
    found = [*STATED_LETTER.finditer(text), *STATED_OTHERS.finditer(text)]
    if found:
        return max(found, key=lambda match: match.end())[1].upper()
    whole = readings(text)
    if whole and whole[0].letter:
        return whole[0].letter
    return (IN_BRACKETS.findall(text) or [""])[-1]


def _has_words(text: str) -> bool:
    """Whether an expression has words that are neither commands nor text of LaTeX."""
    rest = re.sub(r"\\[A-Za-z]+|\\text\s*\{[^{}]*\}", " ", text)
    return len(re.findall(r"[A-Za-z]{3,}", rest)) > 0 and not re.fullmatch(r"[A-Za-z]+", rest.strip())
