"""Errors: what a user gave wrong, said in one line that steers no terminal."""

import difflib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import is_dataclass
from typing import Any


class InputError(ValueError):
    """What a user gave cannot work. The message says what was got, what is needed and what to do."""


def check_keys(section: str, fields: Mapping[str, Any], accepts: Callable[..., Any]) -> None:
    """Check that `fields` are the fields of a dataclass, or the keyword-only arguments of a function or class.

    Raises:
        InputError: a key is unknown or missing; the nearest right spelling is named.
    """
    takes = {
        name: parameter
        for name, parameter in inspect.signature(accepts).parameters.items()
        if is_dataclass(accepts) or parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    for key in fields:
        if key not in takes:
            raise InputError(f"{section}.{key} is not a parameter{nearest(key, takes)}")
    for name, parameter in takes.items():
        if parameter.default is inspect.Parameter.empty and name not in fields:
            raise InputError(f"{section}.{name} is missing; {section} takes {', '.join(takes)}")


def nearest(key: object, known: Iterable[object]) -> str:
    """The end of an error message: what `key` was probably meant to be, or what there is."""
    names = [str(name) for name in known]
    near = difflib.get_close_matches(str(key), names, n=1)
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(names) or 'nothing'}"


def printable(text: str, keep: str = "") -> str:
    """`text` on one line, every control character shown as an escape: data cannot steer the terminal.

    Args:
        keep: control characters that stay, such as a newline.
    """
    return "".join(
        character if character.isprintable() or character in keep else ascii(character)[1:-1] for character in text
    )
