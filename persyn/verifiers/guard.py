"""Keeps a response from replacing what its tests use.

`confinement` runs this source first in the interpreter that then runs the response and its tests, with builtins of its
own. It hooks into that interpreter's audit events, where code of the response cannot get at it: a hook is never
removed, and the events by which its objects or frames could be found are refused. Two events, which need no name that
the response could have replaced, call it: the tests begin, and they have ended. At the first it puts back the functions
of `builtins` and of the modules and classes that the tests import; at the second it fails if one is replaced again.
"""

import builtins
import sys
from types import FunctionType
from typing import Any

BEGIN, END = "persyn: tests begin", "persyn: tests end"
REFUSED = {
    "gc.get_objects",
    "gc.get_referrers",
    "gc.get_referents",
    "sys._current_frames",
    "sys._current_exceptions",
    "sys.addaudithook",
}
TRACES = {"sys.settrace", "sys.setprofile", "sys.monitoring.register_callback"}
"""A tracer can jump over a line of the tests."""
HEAP_TYPE = 1 << 9
"""Flag of classes whose attributes can be set."""


def install(imports: list[str]) -> None:
    """Import those of the modules that the standard library has, remember their functions, and hook in."""
    kept = [(owner, dict(vars(owner))) for owner in _owners(imports)]
    graveyard: list[object] = []  # what was replaced: its end must not run code of the response inside the hook
    began: list[bool] = []

    def replaced() -> list[tuple[Any, str, object]]:
        found = []
        for owner, values in kept:
            now = vars(owner)
            for name, value in values.items():
                if callable(value) and now.get(name) is not value and not name.endswith("hook"):
                    found.append((owner, name, value))
                    graveyard.append(now.get(name))
        return found

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event in REFUSED or event.startswith("ctypes."):
            raise RuntimeError(f"{event} is not allowed here")
        if event in TRACES and began and sys._getframe(1).f_code.co_filename != _file_of("doctest"):
            raise RuntimeError(f"{event} is not allowed in tests")
        if event != "object.__getattr__":
            return
        when = _sign(arguments)
        if when == BEGIN:
            if not began:
                sys.settrace(None)
                sys.setprofile(None)
                began.append(True)
            for owner, name, value in replaced():
                setattr(owner, name, value)
        elif when == END and (not began or replaced()):
            raise RuntimeError("functions that the tests use were replaced")

    sys.addaudithook(hook)


def _sign(arguments: tuple[Any, ...]) -> str | None:
    """The default value of a function whose code is looked at: `(lambda sign=BEGIN: 0).__code__`."""
    if len(arguments) != 2 or type(arguments[1]) is not str or arguments[1] != "__code__":
        return None
    defaults = arguments[0].__defaults__ if type(arguments[0]) is FunctionType else None
    if type(defaults) is not tuple or len(defaults) != 1 or type(defaults[0]) is not str:
        return None
    return defaults[0]


def _file_of(module: str) -> str | None:
    return getattr(sys.modules.get(module), "__file__", None)


def _owners(imports: list[str]) -> list[Any]:
    """`builtins`, the modules and their classes."""
    owners: list[Any] = [builtins]
    for name in imports:
        if name.partition(".")[0] in sys.stdlib_module_names:
            try:
                __import__(name)
            except Exception:  # noqa: BLE001 - the tests will say so
                continue
            owners.append(sys.modules[name])
    classes = [value for owner in owners for value in vars(owner).values() if isinstance(value, type)]
    return [*owners, *(each for each in classes if each.__flags__ & HEAP_TYPE)]


if __name__ == "guard":
    install(IMPORTS)  # type: ignore[name-defined]  # noqa: F821 - set by `confinement`
