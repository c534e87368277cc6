r"""Answers: what the final answer of a text means, before math-verify compares what is more than a number.

docs/answers.md states the meaning of every kind of writing; a text with two meanings has two readings.
"""

import contextlib
import functools
import re
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

from persyn.verifiers.boxes import boxed
from persyn.verifiers.signs import LONGEST, PERCENT, PERCENTS, as_latex, readable, stripped, unwrapped, without_percents
from persyn.verifiers.stated import chosen_letter, last_letter, statements, tagged

DIGITS = 6
"""Decimal places in which a decimal number must agree."""

LATER = re.compile(r"final answer\b[^\n.]{0,100}?\bis\b:?", re.IGNORECASE)
EMPTY_BOX = re.compile(r"\\+boxed\s*\{\s*\}")
HASHES = re.compile(r"^[ \t]*####[ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
LEAD = re.compile(r"(?:the\s+)?(?:final\s+)?answer\s*(?:is\s*:?|:)\s*(?=\S)", re.IGNORECASE)
YES = re.compile(r"[\W_]*(yes|no|true|false)\b", re.IGNORECASE)
LABEL = re.compile(r"(?:[A-Za-z]{2,}\s+){0,4}[A-Za-z]{2,}\s*:\s*(?=\S)")
"""`Total: `, before a number."""
UNEQUAL = re.compile(r"\\n(?:e|eq|ot)\b|!=|\u2260")
TIME = re.compile(r"(\d{1,2})(:[0-5]\d)?(?::00)?(?:\s*([ap])\.?\s*m\b\.?)?", re.IGNORECASE)
DOTS = re.compile(r"\\[lc]?dots[bcmio]?\b|\.\.\.+|\u2026")
IN_BASE = re.compile(r"([+-]?\d+)\s*_\s*\{?\s*(\d{1,2})\s*\}?")
LETTER = re.compile(r"(?:(?i:option|choice)\s+)?\(?\s*([A-Za-z])\s*\)?\s*[.:]?|\\\(\s*([A-Za-z])\s*\\\)")
LABELLED = re.compile(r"(?:(?i:option|choice)\s+)?(?:\(([A-J])\)[.:]?\s*|([A-J])[).:]\s+)(\S.*)", re.DOTALL)
AND_FRACTION = re.compile(r"([+-]?\d+)\s+and\s+(\d+\s*/\s*\d+)")
CURRENCY = (
    r"(?:(?:US|AU?|CA?|HK|NZ|NT|MX|S|R)?\\?\$|[\u00a2\u00a3\u00a5\u20a0-\u20bf\u0e3f]|z\u0142|(?:USD|EUR|GBP|JPY|CNY|RMB|INR"
    r"|KRW|RUB|CAD|AUD|NZD|CHF|SEK|NOK|DKK|PLN|BRL|MXN|SGD|HKD|Rs\.?|[Kk]r\.?)(?=[\s\d]))"
)
GROUPS = r"\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d{1,3}(?:'\d{3})+|\d{1,2}(?:,\d{2})+,\d{3}|\d+"
DECIMAL = rf"(?:{GROUPS})(?:\.\d*)?|\.\d+"
NUMBER = re.compile(
    rf"(?:\\approx|\u2248)?\s*(?P<sign>[+-]?)\s*{CURRENCY}?\s*(?P<inner>[+-]?)\s*(?:"
    rf"(?P<european>\d{{1,3}}(?:\.\d{{3}})+,\d+|\d{{1,3}}(?: \d{{3}})+,\d+|\d{{1,3}}(?:\.\d{{3}}){{2,}}|0,\d+)|"
    rf"\\frac\{{\s*(?P<up>[+-]?(?:{DECIMAL}))\s*\}}\{{\s*(?P<down>[+-]?(?:{DECIMAL}))\s*\}}|"
    rf"(?P<top>{DECIMAL})(?:\s*/\s*(?P<bottom>{DECIMAL}))?)"
    rf"(?P<rest>(?![\d/]).*)",
    re.DOTALL,
)
DECIMAL_COMMA = re.compile(r"([+-]?)\s*(\d+),(\d{1,2}|\d{4,})")
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
UNITS = (
    "mm cm dm km mg kg lb lbs oz ft yd mi ml cl dl kl gal hr hrs min mins sec secs ms yr yrs mph kmh kph kmph rs hz "
    "khz mhz ghz kw mw kwh kj pa kpa mol rad deg kb mb gb tb am pm sq cu in pcs of kr st nd rd th"
)
"""Short units, in any case; any other word of three letters or more after a space is a unit too."""
FOREIGN = 0x400
"""Letters from here on, such as Cyrillic and Chinese ones, name no unknown, so they are a unit."""
LETTER_UNITS = "m g s h l L t N J W V A K C F"
MATHS = (
    "and mod exp log ln lim sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh max min gcd lcm sqrt inf infty "
    "infinity pi det deg theta alpha beta"
)
"""Words of an expression."""
NOT_UNITS = (
    "or choose to plus minus times over divided by if when where for with else otherwise is are not the then thus but"
)
MISSING = "n/a na nan null none proof unknown todo tbd qed"
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
    known = _known_form(plain, bare)
    if known:
        return (known,)
    labelled = LABELLED.fullmatch(bare)
    if labelled and len(bare) <= 2 * LONGEST:
        return (Reading(bare, letter=labelled[1] or labelled[2]), *readings(labelled[3]))
    comma = DECIMAL_COMMA.fullmatch(bare)
    if comma and comma[2] != "0":
        decimal = Reading(bare, number=Fraction(f"{comma[1]}{comma[2]}.{comma[3]}"), is_decimal=True)
        return (decimal, Reading(plain))
    found = _number(bare, is_wrapped=bare != plain)
    label = LABEL.match(bare)
    if label and not found:
        found = _number(stripped(bare[label.end() :]))
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


def _known_form(plain: str, bare: str) -> Reading | None:
    """What is not equal to a number, goes on and on, is a time of day or a number in a base; None if none of these."""
    if UNEQUAL.match(bare):
        return Reading(f"x {plain}")
    if DOTS.search(bare):
        return Reading(plain, words=re.sub(r"\s|\\[,;:! ]", "", DOTS.sub("...", bare)))
    time = TIME.fullmatch(bare)
    if time and (time[2] or time[3]):
        hour = time[1].lstrip("0") or "0"
        number = None if time[2] else Fraction(hour)
        return Reading(bare, words=hour + (time[2] or ":00"), number=number, name=(time[3] or "").lower())
    based = IN_BASE.fullmatch(bare)
    return Reading(plain, number=Fraction(based[1]), name=f"base {based[2]}") if based else None


def read_reference(text: str) -> tuple[Reading, ...]:
    """The meanings of a reference: of its last box, of what follows #### or `the answer is`, or of all of it."""
    return readings(boxed(text) or _hashed(text) or _stated(text, True) or EMPTY_BOX.sub("", text))


def read_response(text: str, wants_letter: bool, wants_words: bool = False) -> tuple[Reading, ...]:
    """The meanings of a response's final answer: its last box (or what `final answer is` says after it), else what
    <answer> holds or follows ####, else what it says its answer is, else what math-verify finds. A thought before
    </think> is no part of it.
    """
    text = text.rpartition("</think>")[2]
    after = LATER.search(text, text.rfind("\\boxed") + 1) if "\\boxed" in text else None
    later = read_response(text[after.end() :], wants_letter) if after else ()
    final = boxed(text) or (tagged(text) if _is_definite(tagged(text), True) else "") or _hashed(text)
    if later or final:
        return later or readings(final)
    if wants_letter:
        whole = next((reading.letter for reading in readings(text)), "") if len(text) <= 2 * LONGEST else ""
        letter = chosen_letter(text) or whole or last_letter(text)
        return (Reading(letter, letter=letter),) if letter else ()
    said = _stated(text, wants_words)
    if said is None and len(text) < LONGEST and "\n" not in text.strip() and _is_definite(text, wants_words):
        said = text
    answered = YES.match(text) if wants_words and said is None else None
    if answered:
        said = answered[1]
    if said is not None:
        return readings(said)
    plain = readable(text).replace("\u00b0", "")
    written = _parse_response(without_percents(plain, False))
    has_percent = bool(PERCENTS.search(plain))
    hundredths = _parse_response(without_percents(plain, True)) if has_percent else written
    return (Reading(text, is_percent=written != hundredths, parsed=(written, hundredths)),) if written else ()


def same(reference: Reading, answer: Reading, **settings: Any) -> bool:
    """Whether two readings mean the same; `settings` are math-verify's.

    A percent equals its number and that many hundredths, but two percents are compared as such.
    """
    if reference.letter and answer.letter:
        return reference.letter == answer.letter
    if reference.name and answer.name and reference.name != answer.name:
        return False
    if reference.words and answer.words:
        return reference.words == answer.words
    scales = [(True, True)]
    if reference.is_percent != answer.is_percent:
        scales.append((False, False))
    if reference.number is not None and answer.number is not None:
        return any(_equal(reference, answer, *scale) for scale in scales)
    return any(_verified(reference.forms(gold), answer.forms(given), **settings) for gold, given in scales)


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
    if (
        reading.letter
        or reading.number is not None
        or (reading.words and (text.startswith("\\") or reading.words not in MISSING.split()))
    ):
        return ""
    if re.search(r"(?<![\d_^.])\d+\s+\d", text):
        return "can be read in two ways"
    form = next(iter(reading.forms(True)), "")
    is_sound = not isinstance(form, str) and not form.has(sympy.zoo, sympy.nan) and not re.search(r"\d\.\d+\.\d", text)
    is_answer = is_sound and not reading.words and text.lower() not in MISSING.split() and not _has_words(text)
    return "" if is_answer and same(reading, reading) else "is not a mathematical answer"


def _verified(gold: list[Any], given: list[Any], **settings: Any) -> bool:
    """What math-verify says, but two constants must agree in three significant digits too: 2^{-99} is not 2^{-98}. A
    set may be given as an inequality that is solved, so that the question itself is no answer.
    """
    import sympy
    from math_verify.grader import verify

    sets, given_sets = _as_sets(gold), _as_sets(given)
    if settings.get("allow_set_relation_comp", True) and not (sets and given_sets):
        gold, given = gold + sets, given + given_sets
    if not verify(gold, given, **settings):
        return False
    one, two = (next(iter(forms), None) for forms in (gold, given))
    if not (isinstance(one, sympy.Expr) and isinstance(two, sympy.Expr) and one.is_number and two.is_number):
        return True
    with contextlib.suppress(TypeError, ValueError, ArithmeticError):
        return one == two or bool(abs(sympy.N(one - two, 15)) <= abs(sympy.N(one, 15)) / 1000)
    return True


def _as_sets(forms: list[Any]) -> list[Any]:
    """The sets of numbers that those forms describe that are inequalities and solved, such as x < 2 or x > 3."""
    import sympy

    found = []
    for form in forms:
        parts = form.args if isinstance(form, sympy.FiniteSet) else (form,)
        if all(map(_is_solved, parts)):
            with contextlib.suppress(NotImplementedError, TypeError, ValueError):
                found.append(sympy.Union(*(part.as_set() for part in parts)))
    return found


def _is_solved(form: Any) -> bool:
    """Whether a form is an inequality, or several, of an unknown and numbers."""
    import sympy

    if isinstance(form, sympy.And):
        return all(map(_is_solved, form.args))
    is_inequality = isinstance(
        form, sympy.StrictLessThan | sympy.StrictGreaterThan | sympy.LessThan | sympy.GreaterThan
    )
    return is_inequality and all(side.is_Symbol or side.is_number for side in form.args)


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
        value = Fraction(match["european"].replace(".", "").replace(" ", "").replace(",", "."))
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
    is_letter = len(rest.strip()) == 1 and rest.strip().isalpha() and ord(rest.strip()) < FOREIGN
    return (number, Reading(text)) if is_letter and not is_wrapped else (number,)


def _value(text: str) -> Fraction:
    return Fraction(re.sub(r"[ ,']", "", text).removesuffix("."))


def _is_unit(text: str, is_wrapped: bool) -> bool:
    """Whether what follows a number only says of what it is so many; nothing is so too."""
    degree = "\u00b0"
    text = re.sub(r"\^\{?\s*(?:st|nd|rd|th)\s*\}?", "", text)
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
    is_foreign = all(ord(letter) >= FOREIGN for letter in first)
    is_known = (
        is_foreign or first.lower() in UNITS.split() or first in LETTER_UNITS.split() or (is_apart and len(first) > 2)
    )
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


def _stated(text: str, wants_words: bool = False) -> str | None:
    """What a text says its answer is, if that is a number, a letter, an expression or, where wanted, words; empty if
    it says what it is not, and None if it says nothing.
    """
    for said in statements(text):
        if not said:
            return ""
        if _is_definite(said, wants_words):
            return said
    return None


def _is_definite(text: str, wants_words: bool = False) -> bool:
    """Whether a text is an answer and nothing else."""
    found = readings(text) if len(text) <= 2 * LONGEST else ()
    return bool(found) and all(
        reading.letter or reading.number is not None or (wants_words if reading.words else _is_expression(reading.text))
        for reading in found
    )


def _is_expression(text: str) -> bool:
    """Whether a text has an operator or a command of LaTeX, and no words of prose."""
    rest = re.sub(r"\\text\w*\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    words = set(re.findall(r"[^\W\d_]{2,}", rest.lower())) - {"or", "and", *MATHS.split()}
    return (
        not words
        and bool(re.search(r"\w|[^\x00-\x7f]", text))
        and bool(re.search(r"\\|[-+*/^=<>(\[{,:]|\d|[^\x00-\x7f]", text))
    )


def _has_words(text: str) -> bool:
    """Whether an expression has words that are neither commands nor text of LaTeX, nor names of functions."""
    rest = re.sub(r"\\(?:begin|end|operatorname\*?|text\w*|math\w+)\s*\{[^{}]*\}|\\[A-Za-z]+", " ", text)
    return any(word not in MATHS.split() for word in re.findall(r"[A-Za-z]{3,}", rest))
