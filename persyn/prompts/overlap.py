"""Overlap: which evaluation item a text repeats, whatever its case, blanks, punctuation and what stands around it.

A text is compared as its words: case-folded, in NFKC, without punctuation. An operator beside a number is a word, since
`5 + 6` and `5 - 6` are two questions. In scripts without blanks every character is a word, worth half of one (Chinese,
Japanese) or a quarter (Thai, Lao, Tibetan, Burmese, Khmer).
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

SHORTEST = 5
"""Words. An item with fewer, such as `Yes or no?`, is met only by a text that says nothing else."""
WHOLE = 4
"""What a word counts here, so that its parts are whole numbers."""
HALVES = "\u3005\u3007\u3040-\u312f\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
QUARTERS = "\u0e00-\u109f\u1780-\u17ff"
HALF = re.compile(f"[{HALVES}]")
UNSPACED = re.compile(f"([{HALVES}{QUARTERS}])")
UNSEEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\ud800-\udfff]")
SAME = str.maketrans({"\u2212": "-", "\u2013": "-", "\u00d7": "*", "\u22c5": "*", "\u00b7": "*", "\u00f7": "/"})
OPERATOR = r"[-+*/^=<>](?=[ ({$]*\d)|(?<=\d)(?:[+*/^=<>]|-(?![^\W\d_]))|(?<=\d )[-+*/^=<>]"


def words_of(text: str) -> tuple[str, ...]:
    """The words by which a text is compared. One without any, such as an emoji, is one word."""
    if plain := text.isascii():
        text = text.lower()
    else:
        folded = unicodedata.normalize("NFKC", UNSEEN.sub("", text)).casefold()
        text = UNSPACED.sub(r" \1 ", unicodedata.normalize("NFKC", folded).translate(SAME))
    text = " ".join(text.split())
    return tuple(_pattern(not plain).findall(text)) or (text,)


@cache
def _pattern(has_marks: bool) -> re.Pattern[str]:
    """A word or an operator. Python counts combining marks to no word, so that Hindi would fall apart."""
    points = map(chr, range(0x300, 0x20000) if has_marks else ())
    marks = "".join(point for point in points if unicodedata.category(point).startswith("M"))
    end = f"[^\\W_]|[{marks}]" if marks else r"[^\W_]"
    return re.compile(rf"(?:{end})(?:[\w{marks}]*(?:{end}))?|{OPERATOR}")


def runs(words: Sequence[str], size: int) -> Iterator[tuple[str, ...]]:
    """Every shortest run of words that is worth `size` of them: what two texts share wherever they share it."""
    if "".join(words).isascii():
        yield from zip(*(words[start:] for start in range(size)), strict=False)
        return
    worths = [_worth(word) for word in words]
    end = total = 0
    for start, worth in enumerate(worths):
        while total < size * WHOLE and end < len(words):
            total += worths[end]
            end += 1
        if total < size * WHOLE:
            return
        yield tuple(words[start:end])
        total -= worth


def _worth(word: str) -> int:
    if len(word) > 1 or not UNSPACED.match(word):
        return WHOLE
    return WHOLE // 2 if HALF.match(word) else WHOLE // 4


class Items:
    """Evaluation items, each known by its number, to be found in texts."""

    def __init__(self, size: int) -> None:
        """
        Args:
            size: words that a text must share in a row with an item that has as many. A shorter one must be repeated
                whole: as a part of the text if it has SHORTEST words, else as all that the text says.
        """
        self.size = size
        self._whole: dict[tuple[str, ...], int] = {}
        self._runs: dict[tuple[str, ...], int] = {}
        self._lengths: dict[tuple[str, ...], set[int]] = {}
        self._shortest = 0

    def add(self, number: int, text: str, is_question: bool) -> None:
        """
        Args:
            is_question: whether it asks by itself. Of other turns, such as `Continue.`, only long runs count.
        """
        words = words_of(text)
        if is_question:
            self._whole.setdefault(words, number)
        found = list(runs(words, self.size))
        if not found and is_question and next(runs(words, SHORTEST), None):
            found = [words]
        for run in found:
            self._runs.setdefault(run, number)
        self._lengths.clear()

    def find(self, text: str) -> tuple[int, str] | None:
        """The item that the text repeats, the first by its place in the text, and the words that both share."""
        words = words_of(text)
        if words in self._whole:
            return self._whole[words], " ".join(words)
        if self._runs and not self._lengths:
            self._shortest = min(map(len, self._runs))
            for run in self._runs:
                self._lengths.setdefault(run[: self._shortest], set()).add(len(run))
        starts = zip(*(words[start:] for start in range(self._shortest)), strict=False)
        for place, start in enumerate(starts):
            for length in sorted(self._lengths.get(start, ())):
                if (run := words[place : place + length]) in self._runs:
                    return self._runs[run], " ".join(run)
        return None
