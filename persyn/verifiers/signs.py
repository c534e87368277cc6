"""Signs: texts with the characters, mixed numbers, powers of ten and percents that math-verify reads as meant."""

import re
import string
import unicodedata
from fractions import Fraction

LONGEST = 100
"""Characters of a number; what is longer is left as it is."""
MINUS = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe63\uff0d"
SPACES = "\u00a0\u2002\u2003\u2007\u2008\u2009\u200a\u202f\u3000"
OTHERS = {0x2044: "/", 0x2215: "/", 0xFE6A: "%", 0x200B: "", 0xFEFF: "", 0x2062: "", 0x00BA: "\u00b0", 0x02DA: "\u00b0"}
OTHERS |= {0x201C: '"', 0x201D: '"', 0x2018: "'", 0x2019: "'", 0x3002: ".", 0x2205: r"\emptyset "}
FULL_WIDTH = {0xFEE0 + ord(sign): sign for sign in f"{string.digits}{string.ascii_letters}%+.,:=$()/"}
FRACTIONS = {
    code: f"\0{Fraction(unicodedata.numeric(chr(code))).limit_denominator(10)}\0"
    for code in [*range(0xBC, 0xBF), *range(0x2150, 0x215F)]
}
"""A fraction of one character between two NULs, which show that it belongs to the whole number before it."""
SIGNS = str.maketrans(dict.fromkeys(MINUS, "-") | dict.fromkeys(SPACES, " ")) | OTHERS | FULL_WIDTH | FRACTIONS
RAISED = {"\u2070": "0", "\u00b9": "1", "\u00b2": "2", "\u00b3": "3", "\u207b": "-", "\u207a": "+"}
RAISED |= {chr(0x2070 + digit): str(digit) for digit in range(4, 10)} | {"\u207f": "n"}
LOWERED = {chr(0x2080 + digit): str(digit) for digit in range(10)}
INDEX = re.compile(f"[{''.join(LOWERED)}]+")
EXPONENT = re.compile(f"[{''.join(RAISED)}]+")
COMMANDS = {0xD7: r"\times ", 0xB7: r"\cdot ", 0x22C5: r"\cdot ", 0x2219: r"\cdot ", 0xF7: "/", 0x3C0: r"\pi "}
COMMANDS |= {0x221E: r"\infty ", 0x221A: r"\sqrt ", 0x2264: r"\le ", 0x2265: r"\ge ", 0x2260: r"\ne "}
COMMANDS |= {0x222A: r"\cup ", 0x2229: r"\cap ", 0x2208: r"\in ", 0xB1: r"\pm ", 0xB0: ""}
SHORT_FRACTION = re.compile(
    r"\\(?:[dtcs]|nice)?frac\s*(?:\{([^{}]*)\}|(\d|(?<=[\s}])[A-Za-z]))\s*(?:\{([^{}]*)\}|(\d|[A-Za-z](?![A-Za-z])))"
)
REPEATING = re.compile(r"(?<![\d.,])(\d{0,20})\.(\d{0,20})\\(?:overline|bar|overbar)\s*(?:\{\s*(\d{1,20})\s*\}|(\d))")
MIXED = re.compile(r"(?<![\d.,/^_{\\])(\d+)(?:\s+|\s*\0)(\d+)\s*/\s*(\d+)(?![\d/^.]*\d)")
MIXED_LATEX = re.compile(r"(?<![\d.,/^_}])(\d+)\s*\\frac\{(\d+)\}\{(\d+)\}")
POWER_OF_TEN = r"\s*(?:\\times|\\cdot|[\u00d7\u00b7\u22c5]|\*|[xX])\s*10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d{1,3})\s*\}?"
SCIENTIFIC = re.compile(
    rf"(?<![\w.,^])(\d{{1,3}}(?:,\d{{3}})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?:[eE]([+-]?\d{{1,3}})(?![\w.]*\w)|{POWER_OF_TEN})"
)
PERCENT = r"(?:\\?%|(?:per\s?cent(?:age)?(?:\s+points?)?|pct)(?![a-z]))"
PERCENTS = re.compile(rf"(\d[\d,]*(?:\.\d+)?|\.\d+)(\}}?)(\s*\$?\s*){PERCENT}", re.IGNORECASE)
"""A number, a brace that may close its box, and what says that it is a percent."""
WRAPPED = re.compile(
    r"\\(?:(?:text|math)(?:bf|rm|it|tt|sf|normal)?|mbox|hbox|underline|textcolor\s*\{\w+\})\s*\{([^{}]*)\}"
    r"|\\(?:bf|rm|it|tiny|small|large|Large|LARGE|huge|Huge)\b\s*|\\color\s*\{\w+\}"
    r"|\\(?:begin|end)\{(?:aligned|align|gathered|split|equation)\*?\}"
)
MARKDOWN = re.compile(r"(\*\*\*|\*\*|__|[*_`])(.+)\1\Z", re.DOTALL)
GAPS = re.compile(r"(?<!\\)\\(?:[,;:> ]|q?quad\b|(?:thin|med|thick)space\b)|~")


def readable(text: str) -> str:
    """Signs of Unicode, mixed numbers and powers of ten in the form that math-verify reads."""
    text = text.translate(SIGNS)
    text = EXPONENT.sub(lambda match: f"^{{{''.join(RAISED[sign] for sign in match[0])}}}", text)
    text = INDEX.sub(lambda match: f"_{{{''.join(LOWERED[sign] for sign in match[0])}}}", text)
    text = REPEATING.sub(repeated, text.replace(r"\varnothing", r"\emptyset"))
    text = text.replace("{,}", ",").replace(r"\%", "%").replace("%", r"\%")
    text = re.sub(r"(?<!\\)\\!\s*", "", text)
    text = re.sub(r"(?<=\d)(?:\\[,;: ]|\\thinspace\s*|~)(?=\d{3}(?!\d))", " ", text)
    text = re.sub(r"\\math(?:rm|bf|it)\s*\{([ei])\}", r"\1", text)
    text = SHORT_FRACTION.sub(lambda m: f"\\frac{{{m[1] or m[2] or ''}}}{{{m[3] or m[4] or ''}}}", text)
    text = MIXED.sub(improper, text)
    text = MIXED_LATEX.sub(lambda match: improper(match, r"\frac{{{}}}{{{}}}"), text).replace("\0", "")
    return SCIENTIFIC.sub(written_out, text)


def repeated(match: re.Match[str]) -> str:
    """A decimal that repeats as a fraction."""
    whole, fixed, cycle = match[1] or "0", match[2], match[3] or match[4]
    value = Fraction(int(whole + fixed + cycle) - int(whole + fixed), (10 ** len(cycle) - 1) * 10 ** len(fixed))
    return f"\\frac{{{value.numerator}}}{{{value.denominator}}}"


def improper(match: re.Match[str], form: str = "{}/{}") -> str:
    """A mixed number as one fraction."""
    if len(match[0]) > LONGEST:
        return match[0]
    whole, top, bottom = int(match[1]), int(match[2]), int(match[3])
    return form.format(whole * bottom + top, bottom) if top < bottom else match[0]


def written_out(match: re.Match[str]) -> str:
    """A number of scientific notation without its power of ten."""
    power = int(match[2] or match[3])
    if len(match[0]) > LONGEST or abs(power) > LONGEST:
        return match[0]
    return decimal(Fraction(match[1].replace(",", "")) * Fraction(10) ** power)


def decimal(value: Fraction) -> str:
    """A number with finitely many digits, without an exponent."""
    places = next(places for places in range(400) if (value * 10**places).denominator == 1)
    digits = str(abs(value.numerator * 10**places // value.denominator)).rjust(places + 1, "0")
    sign = "-" if value < 0 else ""
    return sign + (f"{digits[:-places]}.{digits[-places:]}" if places else digits)


def stripped(text: str) -> str:
    """Without what only surrounds or decorates: dollar signs, markdown, spaces, a full stop at the end."""
    before = None
    while text != before:
        before = text
        text = GAPS.sub(" ", text).replace(r"\displaystyle", "").strip()
        text = text.removesuffix(".").removesuffix(",").removesuffix(";").rstrip()
        inline = re.fullmatch(r"\$\$?([^$]+)(?<!\\)\$?\$|\\\((.+)\\\)|\\\[(.+)\\\]", text, re.DOTALL)
        if inline:
            text = next(filter(None, inline.groups()))
        united = re.fullmatch(r"\$([^$]+)(?<!\\)\$(\s[^$]*)", text)
        text = united[1] + united[2] if united else text
        text = MARKDOWN.sub(r"\2", text) if MARKDOWN.match(text) else text
        quoted = re.fullmatch(r"(['\"])([^'\"]+)\1", text)
        text = quoted[2] if quoted else text
        if text.startswith("{") and closing(text, 0) == len(text) - 1:
            inner = text[1:-1]
            text = inner if "," not in inner else text
    return text


def unwrapped(text: str) -> str:
    """Without the commands that only set a type, such as \\text and \\mathbf."""
    before = None
    while text != before:
        before, text = text, WRAPPED.sub(lambda match: match[1] or "", text)
    return text


def as_latex(text: str) -> str:
    """Signs that LaTeX writes by commands."""
    for sign, root in (("\u221a", r"\\sqrt"), ("\u221b", r"\\sqrt[3]")):
        text = re.sub(sign + r"\s*(?:(\d+|[a-z])|\(([^()]*)\))", root + r"{\1\2}", text)
    return re.sub(r"(?<![\\A-Za-z])pi(?![A-Za-z])", r"\\pi ", text.translate(COMMANDS))


def without_percents(text: str, in_hundredths: bool) -> str:
    """Every percent as its number, or as that many hundredths."""
    if not in_hundredths:
        return PERCENTS.sub(r"\1\2\3", text)

    def hundredth(match: re.Match[str]) -> str:
        if len(match[1]) > LONGEST:
            return match[0]
        return decimal(Fraction(match[1].replace(",", "")) / 100) + match[2] + match[3]

    return PERCENTS.sub(hundredth, text)


def closing(text: str, opening: int) -> int:
    """Where the brace at `opening` closes; -1 if it does not."""
    depth = 0
    for position in range(opening, len(text)):
        if text[position] in "{}" and text[position - 1 : position] != "\\":
            depth += 1 if text[position] == "{" else -1
            if not depth:
                return position
    return -1
