"""Unit tests: whether the code of a response passes its prompt's tests, in a confined process.

The process has limits on time, memory and file size, an empty folder, no environment and no network (its own network
namespace; if the system does not allow one, nothing is run).
"""

import contextlib
import ctypes
import functools
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import uuid

from persyn.errors import InputError

SECONDS = 10
MEMORY = 1 << 30
"""Bytes of address space."""
FILE = 1 << 20
"""Largest size of a file in bytes."""
CODE = re.compile(r"```(?:python|py)?[ \t]*\n(.*?)(?:```|\Z)", re.DOTALL)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000


def passes_tests(prompt: str, response: str, reference: str) -> float:
    """1.0 if the code of `response`, then its tests in `reference` (such as asserts), run without error, else 0.0."""
    return passes(code_of(response), reference)


def code_of(response: str, name: str = r"\w+") -> str:
    """The last ``` block that defines a function or class, so that an example of its use is skipped.

    If none does, the last block; if there is no block, the whole response. `name` is a pattern.
    """
    blocks = CODE.findall(response)
    defines = re.compile(rf"^\s*(?:async\s+def|def|class)\s+(?:{name})\b", re.MULTILINE)
    return [response, *blocks, *filter(defines.search, blocks)][-1]


def passes(code: str, tests: str) -> float:
    """1.0 if `code` and then `tests` run without an error, else 0.0."""
    passed = uuid.uuid4().hex  # an early exit does not print it
    status, output = run_python(f"{code}\n\n{tests}\n\nprint({passed!r})")
    return float(status == 0 and output.rstrip().endswith(passed))


def run_python(code: str) -> tuple[int, str]:
    """Run `code` in a confined process; returns its exit status (124: out of time) and the end of its output.

    Raises:
        InputError: this system does not let a process drop its network.
    """
    _check_confinement()
    return _run(code)


@functools.cache
def _check_confinement() -> None:
    status, output = _run("pass")
    if status:
        raise InputError(
            "the method unit_tests needs Linux with unprivileged user namespaces, to run code without a network; "
            f"they are not available here ({output})"
        )


def _run(code: str) -> tuple[int, str]:
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as output:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", code],
                cwd=folder,
                env={"PATH": os.defpath},
                preexec_fn=_confine,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        except (subprocess.SubprocessError, OSError, ValueError) as error:  # ValueError: a NUL in the code
            return 125, str(error)
        try:
            status = process.wait(timeout=SECONDS)
        except subprocess.TimeoutExpired:
            status = 124
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # and all processes that it has started
        process.wait()
        output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
        return status, output.read().decode(errors="replace")


def _confine() -> None:
    """Runs in the child before the program: a network namespace without an interface, and limits."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUSER | CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "unshare")
    for what, limit in (
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_AS, MEMORY),
        (resource.RLIMIT_FSIZE, FILE),
        (resource.RLIMIT_NPROC, 64),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(what, (limit, limit))
