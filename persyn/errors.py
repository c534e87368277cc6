"""Errors: a user's mistakes, each told in one line without terminal control characters."""

import ctypes
import difflib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType

PR_SET_PDEATHSIG = 1


class InputError(ValueError):
    """A user's input cannot work. Each argument is one mistake: what was got, what is needed and what to do."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class Stopped(KeyboardInterrupt):
    """The process was told to stop by the signal in `args`."""


@contextmanager
def ending_in_one_line() -> Iterator[None]:
    """Run a stage or a command. A user's mistakes end it, each in one line (PERSYN_TRACEBACK=1 shows where they were
    found); SIGINT and SIGTERM end it with status 130 and 143.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _stop)
    try:
        with stopping_in_one_line():
            yield
    except InputError as error:
        if os.environ.get("PERSYN_TRACEBACK"):
            raise
        sys.exit("\n".join(f"error: {printable(str(mistake))}" for mistake in error.args))
    except OSError as error:  # a folder that cannot be written, a full disk, a name that is too long
        if os.environ.get("PERSYN_TRACEBACK"):
            raise
        sys.exit(f"error: {printable(str(error))}; what was stored before is kept")


@contextmanager
def stopping_in_one_line() -> Iterator[None]:
    """End with the status of the signal that told the process to stop, if one did."""
    try:
        yield
    except Stopped as stopped:
        number = stopped.args[0]
        name = signal.Signals(number).name
        print(f"stopped by {name}; finished work is kept; run the same command to continue", file=sys.stderr)  # noqa: T201
        sys.exit(128 + number)


def end_with_parent(parent: int) -> None:
    """Have the kernel kill this process when its parent ends (Linux only), if `parent` is its parent."""
    if sys.platform == "linux" and parent == os.getppid():
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if parent != os.getppid():  # it ended meanwhile
            os.kill(os.getpid(), signal.SIGKILL)


def _stop(number: int, frame: FrameType | None) -> None:
    raise Stopped(number)


def nearest(key: object, known: Iterable[object]) -> str:
    """The end of an error message: the most similar known name, or all known names."""
    names = [str(name) for name in known]
    return did_you_mean(key, names) or f"; known: {', '.join(names) or 'nothing'}"


def did_you_mean(key: object, known: Iterable[object]) -> str:
    """The end of an error message that has already listed the known names: the most similar one, or nothing."""
    near = difflib.get_close_matches(str(key), [str(name) for name in known], n=1)
    return f"; did you mean {near[0]}?" if near else ""


def printable(text: str, keep: str = "") -> str:
    """`text` on one line, every control character escaped, so that data cannot control the terminal.

    Args:
        keep: control characters that stay, such as a newline.
    """
    return "".join(
        character if character.isprintable() or character in keep else ascii(character)[1:-1] for character in text
    )
