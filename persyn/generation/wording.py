"""Wording: a server's words, fit to be shown: short, on one line, without keys and without the prompt."""

import re
from collections.abc import Sequence
from urllib.parse import unquote

from persyn.errors import printable

LONGEST = 300
"""Characters of a server's words that are shown."""
RUN = 3
"""So many words in a row that the prompt has too are not shown: they may be the prompt's."""
LONG_RUN = 8
"""So many are the prompt's beyond doubt."""
HIDDEN = "[...]"
KEYS = re.compile(
    r"(?i:bearer\s+\S+)"
    r"|\beyJ[\w-]{8,}(?:\.[\w-]+)*"  # a signed token
    r"|\b(?:sk|pk|rk|gsk|xai|hf|pplx|nvapi|fw|tgp|r8|key|csk|AIza|or|ak)[-_]?[\w*.…-]*[\d*_…-][\w*.…-]{5,}"
    r"|\b[A-Za-z0-9_-]*\*{3,}[A-Za-z0-9_*-]*"  # a key that the server has masked itself
    r"|\b(?=[A-Za-z_-]*\d)(?=[\d_-]*[A-Za-z])[A-Za-z0-9_-]{32,}\b"
)
"""What looks like a key, whole or masked."""
UNSPACED = "\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
"""Letters of languages that are written without spaces, or nearly so: each counts as a word."""
WORD = re.compile(rf"[{UNSPACED}]|[^\W{UNSPACED}]+(?:[-'_.][^\W{UNSPACED}]+)*")
OURS = re.compile(r"(?:max|min|top|n|num|logit|stop|presence|frequency|repetition|reasoning|chat|response|context)_\w+")
"""Names of settings: a prompt may hold them too."""


def shorten(words: str, longest: int = LONGEST) -> str:
    """The words on one line of at most `longest` characters."""
    words = printable(" ".join(words.split()))
    return words if len(words) <= longest else f"{words[: longest - 3].rstrip()}..."


def visible_words(words: str, prompt: Sequence[str] = (), secrets: Sequence[str] = (), run: int = RUN) -> str:
    """The words of a server without keys and without what it repeats of the prompt.

    Hidden are: each of the prompt's texts as a whole, `run` and more words in a row that a text has too, and, if `run`
    is short, single words of a text that are no plain words (they hold a digit or a sign, or are very long).
    """
    words = unquote(words) if "%20" in words else words
    for secret in secrets:
        if len(secret) > 3:
            words = re.sub(re.escape(secret), HIDDEN, words, flags=re.IGNORECASE)
    words = KEYS.sub(HIDDEN, words)
    for text in sorted(filter(None, (text.strip() for text in prompt)), key=len, reverse=True):
        asked = [word.lower() for word in WORD.findall(text)]
        if len(asked) >= RUN or run == RUN:
            for form in {text, " ".join(text.split()), text.encode("unicode_escape").decode()}:
                words = re.sub(rf"(?<!\w){re.escape(form)}(?!\w)", HIDDEN, words)
        words = _without_shared(words, asked, run)
    return re.sub(rf"(?:{re.escape(HIDDEN)}[\s\"'.,;:]*)+{re.escape(HIDDEN)}", HIDDEN, words)


def _without_shared(words: str, asked: Sequence[str], run: int) -> str:
    """The words without runs of words, and odd words, that are among those asked."""
    found = list(WORD.finditer(words[:4000]))
    spoken = [match[0].lower() for match in found]
    runs = {tuple(asked[start : start + run]) for start in range(len(asked) - run + 1)}
    odd = {word for word in asked if len(word) >= 6 and (re.search(r"[\d_-]", word) or len(word) > 12)}
    odd = {word for word in odd if not OURS.fullmatch(word)} if run == RUN else set()
    hidden = {position for position, word in enumerate(spoken) if word in odd}
    for start in range(len(spoken) - run + 1):
        if tuple(spoken[start : start + run]) in runs:
            hidden.update(range(start, start + run))
    for position in sorted(hidden, reverse=True):
        match = found[position]
        words = f"{words[: match.start()]}{HIDDEN}{words[match.end() :]}"
    return words
