"""Near duplicates: texts that share most of their runs of three words. MinHash proposes pairs, which are then compared
in full: its chance may miss a pair, but makes none up. Seeded, so that every machine finds the same.
"""

from functools import lru_cache

from rensa import RMinHash, RMinHashLSH

from persyn.prompts.overlap import runs, words_of

HASHES, SEED = 128, 0
FOUND = 0.99
"""How surely a pair at the threshold is proposed; more similar ones are more surely."""


@lru_cache(maxsize=4096)
def shingles(text: str, size: int) -> frozenset[str]:
    """The runs of three words of a text. One with fewer than `size` words is one run: in a short question one word
    makes another question (`What is the capital of France?`).
    """
    words = words_of(text)
    found = runs(words, 3) if next(runs(words, size), None) else [words]
    return frozenset(map(" ".join, found)) or frozenset([" ".join(words)])


class Similar:
    """Texts, numbered from 0 in the order they are added, among which similar ones are found."""

    def __init__(self, threshold: float, size: int) -> None:
        """
        Args:
            threshold: the share of the runs of two texts that both must have (Jaccard's index).
            size: as in shingles.
        """
        self.threshold, self.size, self.texts = threshold, size, list[str]()
        self._index = RMinHashLSH(threshold=threshold, num_perm=HASHES, num_bands=_bands(threshold))

    def add(self, text: str) -> None:
        self._index.insert(len(self.texts), self._sketch(text))
        self.texts.append(text)

    def find(self, text: str) -> tuple[int, float] | None:
        """The most similar text, the first of several, and its similarity; None if all are below the threshold."""
        proposed = set(self._index.query(self._sketch(text))) if self.texts else set()
        found = max(((self._similarity(text, self.texts[number]), -number) for number in proposed), default=(0.0, 0))
        return (-found[1], found[0]) if found[0] >= self.threshold else None

    def _similarity(self, one: str, other: str) -> float:
        first, second = shingles(one, self.size), shingles(other, self.size)
        return len(first & second) / len(first | second)

    def _sketch(self, text: str) -> RMinHash:
        sketch = RMinHash(num_perm=HASHES, seed=SEED)
        sketch.update(sorted(shingles(text, self.size)))
        return sketch


def _bands(threshold: float) -> int:
    """The fewest bands that still propose a pair at the threshold: they propose the fewest others."""
    fit = (bands for bands in (4, 8, 16, 32, 64) if 1 - (1 - threshold ** (HASHES // bands)) ** bands >= FOUND)
    return next(fit, HASHES)
