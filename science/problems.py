"""Problems of the micro-world: small integer tasks, one misconception a task, and the styles an answer is written in.

Every text ends in the answer, and a misconception never gives the right one: quality is decided by the last number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

Work = tuple[list[str], str]
"""The steps of a solution and the answer they lead to."""
LENGTH = {"rev": 4, "sort": 4, "swap": 4, "sum": 4, "max": 5, "count": 5}
"""Digits of a problem's number. They are 1 to 9, so that no answer begins with a zero."""
WORDING = {
    "a": {},
    "b": {"then": "next", "so": "answer", "plus": "and", "minus": "less", "is": "makes"},
}
"""How a family words its steps, where that is not as they are written here."""
FILLERS = "hmm well ok wait perhaps i wonder about this number it looks odd but fine maybe not sure really let me see".split()
"""What a long-winded answer digresses in: any word may follow any other."""


@dataclass(frozen=True)
class Problem:
    """One prompt, its right answer, and the answer of who holds the kind's misconception."""

    kind: str
    prompt: str
    answer: str
    mistake: str


def draw_problems(kind: str, count: int, rng: Random) -> list[Problem]:
    """`count` different problems whose misconception shows, in the order they were drawn."""
    found: dict[str, Problem] = {}
    while len(found) < count:
        prompt = _draw_prompt(kind, rng)
        answer, mistake = solve(prompt)[1], solve(prompt, mistaken=True)[1]
        if answer != mistake:
            found.setdefault(prompt, Problem(kind, prompt, answer, mistake))
    return list(found.values())


def solve(prompt: str, mistaken: bool = False) -> Work:
    """The steps to the right answer, or to that of the kind's misconception."""
    kind, *numbers = prompt.replace(" in ", " ").split()
    return KINDS[kind](*numbers, mistaken)


def write(problem: Problem, style: str, rng: Random, mistaken: bool = False) -> str:
    """A solution of `problem` as text.

    Args:
        style: terse (the answer alone), steps-a or steps-b (a short scratchpad in a family's words), or verbose
            (restates, digresses between any two steps, doubts, proposes another answer and returns to the first).
        rng: draws the digressions; the other styles take nothing from it.
    """
    steps, answer = solve(problem.prompt, mistaken)
    if style == "terse":
        return answer
    if style == "verbose":
        return _write_verbose(problem, steps, answer, rng)
    wording = WORDING[style.removeprefix("steps-")]
    text = f"{' then '.join(steps)} so {answer}"
    return " ".join(wording.get(word, word) for word in text.split())


def _write_verbose(problem: Problem, steps: list[str], answer: str, rng: Random) -> str:
    def digress(least: int, most: int) -> list[str]:
        return rng.choices(FILLERS, k=rng.randint(least, most))

    guess = rng.choice([problem.mistake, "".join(rng.choices("123456789", k=len(answer)))])
    parts = ["they", "say", problem.prompt, *digress(4, 10)]
    for number, step in enumerate(steps):
        parts += ["then"] * (number > 0) + [step, *digress(0, 3)]
    parts += ["so", answer, "?", *digress(4, 10), "or", guess, "?", *digress(4, 10), "no", "it", "must", "be", answer]
    return " ".join(parts)


def _draw_prompt(kind: str, rng: Random) -> str:
    if kind in ("add", "sub"):
        big, small = rng.randint(11, 99), rng.randint(11, 99)
        carries = big % 10 + small % 10 > 9 if kind == "add" else big > small and big % 10 < small % 10
        return f"{kind} {big} {small}" if carries else _draw_prompt(kind, rng)
    number = rng.choices("123456789", k=LENGTH[kind])
    if kind != "count":
        return f"{kind} {''.join(number)}"
    counted = rng.choice("123456789")
    for position in rng.sample(range(len(number)), rng.randint(1, 4)):
        number[position] = counted
    return f"count {counted} in {''.join(number)}"


def _digits(answer: str) -> Work:
    return list(answer), answer


def _running(values: list[int]) -> Work:
    return [str(value) for value in values], str(values[-1])


def _reverse(number: str, mistaken: bool) -> Work:
    """Mistaken: the first digit stays."""
    return _digits(number[0] + number[:0:-1] if mistaken else number[::-1])


def _sort(number: str, mistaken: bool) -> Work:
    """Mistaken: the largest digit first."""
    return _digits("".join(sorted(number, reverse=mistaken)))


def _swap(number: str, mistaken: bool) -> Work:
    """First and last digit change places. Mistaken: the first two do."""
    return _digits(number[1] + number[0] + number[2:] if mistaken else number[-1] + number[1:-1] + number[0])


def _sum(number: str, mistaken: bool) -> Work:
    """Mistaken: the last digit is left out."""
    return _running(list(accumulate(map(int, number[:-1] if mistaken else number))))


def _max(number: str, mistaken: bool) -> Work:
    """Mistaken: the smallest."""
    return _running(list(accumulate(map(int, number), min if mistaken else max)))


def _count(counted: str, number: str, mistaken: bool) -> Work:
    """Mistaken: counts the other digits."""
    return _running(list(accumulate(int((digit == counted) != mistaken) for digit in number)))


def _add(first: str, second: str, mistaken: bool) -> Work:
    """Mistaken: forgets the carry."""
    (tens, ones), (more_tens, more_ones) = map(int, first), map(int, second)
    low, high = ones + more_ones, tens + more_tens + (not mistaken)
    carry = "" if mistaken else " plus 1"
    steps = [f"{ones} plus {more_ones} is {low}", f"{tens} plus {more_tens}{carry} is {high}"]
    return steps, str(10 * high + low % 10)


def _sub(first: str, second: str, mistaken: bool) -> Work:
    """Mistaken: takes the smaller digit of a column from the larger and borrows nothing."""
    (tens, ones), (less_tens, less_ones) = map(int, first), map(int, second)
    if mistaken:
        low, high = less_ones - ones, tens - less_tens
        steps = [f"{less_ones} minus {ones} is {low}", f"{tens} minus {less_tens} is {high}"]
    else:
        low, high = 10 + ones - less_ones, tens - 1 - less_tens
        steps = [f"{10 + ones} minus {less_ones} is {low}", f"{tens - 1} minus {less_tens} is {high}"]
    return steps, str(10 * high + low)


KINDS: dict[str, Callable[..., Work]] = {
    "rev": _reverse,
    "sort": _sort,
    "swap": _swap,
    "sum": _sum,
    "max": _max,
    "count": _count,
    "add": _add,
    "sub": _sub,
}
