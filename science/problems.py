"""Problems of the micro-world: small integer tasks, one misconception a task, and the styles an answer is written in.

Every text ends in the answer, and a misconception never gives the right one: quality is decided by the last number.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import accumulate
from random import Random

Work = tuple[list[str], str]
"""The steps of a solution and the answer they lead to."""
WORDING = {
    "a": {},
    "b": {"then": "also", "so": "answer"},
}
"""How a family words its steps, where that is not as they are written here."""
DIGITS = "123456789"
STYLES = ("terse", "steps-a", "steps-b", "verbose")
TALK = "hmm well ok wait perhaps i wonder about this number it looks odd but fine maybe not sure really let me see"
FILLERS = TALK.split()
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
    kind, number = prompt.split()
    return KINDS[kind](number, mistaken)


def write(problem: Problem, style: str, rng: Random, mistaken: bool = False) -> str:
    """A solution of `problem` as text.

    Args:
        style: terse (the answer alone), steps-a or steps-b (a short scratchpad in a family's words), or verbose
            (restates and digresses at length before family a's scratchpad).
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
    digression = rng.choices(FILLERS, k=rng.randint(16, 32))
    return " ".join(["they", "say", problem.prompt, *digression, " then ".join(steps), "so", answer])


def _draw_prompt(kind: str, rng: Random) -> str:
    """Digits are 1 to 9, so that no answer begins with a zero."""
    return f"{kind} {''.join(rng.choices(DIGITS, k=3))}"


def _digits(answer: str) -> Work:
    return list(answer), answer


def _reverse(number: str, mistaken: bool) -> Work:
    """Mistaken: the first digit stays."""
    return _digits(number[0] + number[:0:-1] if mistaken else number[::-1])


def _sort(number: str, mistaken: bool) -> Work:
    """Mistaken: the largest digit first."""
    return _digits("".join(sorted(number, reverse=mistaken)))


def _swap(number: str, mistaken: bool) -> Work:
    """The first two digits change places. Mistaken: the last two do."""
    return _digits(number[0] + number[:0:-1] if mistaken else number[1] + number[0] + number[2:])


def _rotate(number: str, mistaken: bool) -> Work:
    """The first digit goes to the end. Mistaken: the last one to the front."""
    return _digits(number[-1] + number[:-1] if mistaken else number[1:] + number[0])


def _next(number: str, mistaken: bool) -> Work:
    """Every digit becomes the next one, 9 becomes 1. Mistaken: the one before, 1 becomes 9."""
    return _digits("".join(str((int(digit) + (7 if mistaken else 0)) % 9 + 1) for digit in number))


def _parity(number: str, mistaken: bool) -> Work:
    """An odd digit becomes 1, an even one 2. Mistaken: the other way round."""
    return _digits("".join("21"[int(digit) % 2 != mistaken] for digit in number))


def _max(number: str, mistaken: bool) -> Work:
    """The largest digit, by a running maximum. Mistaken: the smallest."""
    running = [str(value) for value in accumulate(map(int, number), min if mistaken else max)]
    return running, running[-1]


KINDS: dict[str, Callable[..., Work]] = {
    "rev": _reverse,
    "sort": _sort,
    "swap": _swap,
    "rot": _rotate,
    "next": _next,
    "parity": _parity,
    "max": _max,
}
