"""Unit tests: whether the code of a response passes its prompt's tests, in a sandbox.

What counts as the code of a response:

1. Its fenced blocks (``` or ~~~, also in a list or a quotation, with attributes, or without an end) whose language is
   Python (python, python3, py, ipython, in any case) or not given; a block of Markdown counts as the blocks in it.
   Blocks of another language are no code. A response without a fence is one block, or what stands in its <code> or is
   indented as Markdown indents code. Prompts of an interpreter (>>>) are taken off. What stands before </think> is no
   code.
2. Of a block that is no Python, the runs of lines that are: each begins with a definition or an import and is as long
   as it can be. So the prose around code that has no fence, or the end of a response that was cut, is left out.
3. All blocks run in order in one namespace, so imports and helper functions may have blocks of their own, and of two
   versions of a function the last counts. An error at the top level of a block, such as an example that is wrong or
   asks for input, ends that block alone: what it has defined until then stays. A main guard does not run, as in a
   module that is imported.
4. Then the tests run in the same namespace. They alone decide.

`confinement` is the sandbox, `runner` what runs in it, and `guard` keeps a response from replacing what the tests use;
docs/security.md says what they hold and what they do not.
"""

import atexit
import contextlib
import functools
import html
import marshal
import os
import re
import secrets
import select
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

from persyn.errors import InputError
from persyn.verifiers import guard
from persyn.verifiers.confinement import Job
from persyn.verifiers.runner import BEGINNINGS, STARTED, Work

SECONDS = 10
STARTING = 60
"""Seconds until the code must have begun."""
MEMORY = 1 << 30
"""Bytes of address space of a process."""
TOGETHER = 2 << 30
"""Bytes that all processes of a program may hold in memory; looked at four times a second."""
PROCESSES = 64
"""Processes and threads of a program."""
FILE = 1 << 20
"""Largest size of a file in bytes."""
FOLDER = 16 << 20
"""Size of the folder in bytes."""
FENCE = re.compile(
    r"^((?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d+[.)])[ \t]+)?|[^\n`]*[^\n`\w](?=```py))(`{3,}|~{3,})[ \t]*([^\n]*?)[ \t]*$",
    re.MULTILINE | re.IGNORECASE,
)
"""What stands before it (a quotation, the item of a list, or a few words, if the language is Python), itself, and its
language and attributes."""
LANGUAGE = re.compile(r"[{.\s]*([^\s,:{}]*)")
PYTHON = re.compile(r"(?:i?python[\d.]*|py[\d.]*|pycon|python-?repl|jupyter|sage|code|none)?", re.IGNORECASE)
MARKDOWN = re.compile(r"markdown|md", re.IGNORECASE)
PROMPT = re.compile(r"^(?:>>>|\.\.\.)(?: |$)")
CODE_TAG = re.compile(r"<code\b[^>]*>(.*?)(?:</code>|\Z)", re.DOTALL | re.IGNORECASE)
CODE_MARK = re.compile(r"^[ \t]*\[/?[A-Z]+\][ \t]*$", re.MULTILINE)
"""A line such as [PYTHON] or [DONE]."""
INDENTED = re.compile(r"(?:^|(?<=\n)[ \t]*\n)((?:(?: {4}|\t)[^\n]*(?:\n|\Z)|[ \t]*\n)+)")
HERE = Path(__file__).parent
NO_SANDBOX = (
    "the method unit_tests needs Linux 5.14 or later with unprivileged user namespaces in which it may mount, to run "
    "code in a sandbox; they are not available here ({})"
)
START = "import marshal, sys; sys.path.insert(0, marshal.load(sys.stdin.buffer)); import confinement"


def passes_tests(prompt: str, response: str, reference: str) -> float:
    """1.0 if the tests in `reference` (such as asserts) run without an error after the code of `response`, else 0.0.

    Raises:
        InputError: this system has no sandbox.
    """
    return passes(code_blocks(response), reference)


def code_blocks(response: str) -> list[str]:
    """The blocks of code in a response, by rule 1 of this module; a block's common indentation is taken off."""
    text = response.rpartition("</think>")[2].replace("\r\n", "\n").lstrip("\ufeff")
    fenced = list(_fenced(text))
    blocks = [block for language, block in fenced if PYTHON.fullmatch(language)]
    if not fenced and (tagged := [html.unescape(code) for code in CODE_TAG.findall(text) if "\n" in code]):
        blocks = tagged
    elif not fenced:
        text = CODE_MARK.sub("", text)
        indented = (
            [] if re.search(r"^(?:>>>|def|class|async|import|from|@)", text, re.MULTILINE) else INDENTED.findall(text)
        )
        blocks = indented or [text.strip().strip("`") if "\n" not in text.strip() else text]
    return [_without_prompts(textwrap.dedent(block)) for block in blocks if block.strip()]


def _without_prompts(block: str) -> str:
    """What was entered after the prompts of an interpreter, if the block begins with one or has nothing else."""
    lines = block.strip("\n").split("\n")
    begin = next((number for number, line in enumerate(lines) if line.startswith(">>>")), None)
    if begin is None or any(line.startswith(BEGINNINGS) for line in lines):
        return block
    return "\n".join(line[4:] for line in lines if PROMPT.match(line))


def _fenced(response: str) -> Iterator[tuple[str, str]]:
    """Language and text of each fenced block."""
    position = 0
    while opening := FENCE.search(response, position):
        before, fence, info = opening.groups()
        position = opening.end()
        if "`" in info and fence[0] == "`":
            continue  # a span of code in a line
        depth = len(before.expandtabs(4)) + 3 if not before.strip() else 80
        end = re.compile(rf"^(?:[ \t]*>)*[ \t]{{0,{depth}}}{fence[0]}{{{len(fence)},}}[ \t]*$", re.MULTILINE)
        closing = end.search(response, position)
        closing = closing or re.compile(rf"{fence[0]}{{{len(fence)},}}[ \t]*$", re.MULTILINE).search(response, position)
        text = response[position + 1 : closing.start() if closing else len(response)]
        position = closing.end() if closing else len(response)
        language = "".join(LANGUAGE.findall(info)[:1])
        language = "" if "=" in language else language
        if ">" in before:
            text = re.sub(r"^[ \t]*(?:>[ \t]?)+", "", text, flags=re.MULTILINE)
        elif re.match(rf"[ \t]{{{len(before)}}}", text.lstrip("\n")):
            text = re.sub(rf"^[ \t]{{,{len(before)}}}", "", text, flags=re.MULTILINE)
        if MARKDOWN.fullmatch(language):
            yield from _fenced(text)
        else:
            yield language, text


def passes(blocks: str | Sequence[str], tests: str) -> float:
    """1.0 if `tests` run without an error after `blocks`, by rules 2 to 4 of this module, else 0.0.

    Raises:
        InputError: this system has no sandbox.
    """
    mark = secrets.token_bytes(16)
    report = _run([blocks] if isinstance(blocks, str) else list(blocks), tests, mark)[2]
    return float(report == STARTED + mark)


def run_python(code: str) -> tuple[int, str]:
    """Run one program in the sandbox; returns its exit status (124: out of time) and the end of its output.

    Raises:
        InputError: this system has no sandbox.
    """
    return _run([code], None, b"")[:2]


def _run(blocks: list[str], tests: str | None, mark: bytes) -> tuple[int, str, bytes]:
    """Exit status, end of the output and what was reported."""
    limits = {
        "RLIMIT_CPU": SECONDS,
        "RLIMIT_AS": MEMORY,
        "RLIMIT_FSIZE": FILE,
        "RLIMIT_NPROC": PROCESSES,
        "RLIMIT_NOFILE": 256,
        "RLIMIT_CORE": 0,
    }
    work: Work = {
        "blocks": blocks,
        "tests": tests,
        "guard": _code("guard"),
        "begin": guard.BEGIN,
        "end": guard.END,
        "mark": mark,
        "limits": limits,
    }
    for new in (False, True):  # the program before may have broken the first
        with SANDBOXES.borrow(new) as sandbox:
            status, text, reported = sandbox.run(marshal.dumps(cast(Any, work)))
        if reported.startswith(STARTED):
            return status, text, reported
    raise InputError(NO_SANDBOX.format(text or f"no start within {STARTING} s"))


class Sandbox:
    """A process that runs one program at a time, in a sandbox that outlives it.

    Raises:
        InputError: this system has none.
    """

    def __init__(self) -> None:
        self.control, other = socket.socketpair()
        alive, self.alive = os.pipe()
        with tempfile.TemporaryFile() as output:
            self.process = subprocess.Popen(
                [os.path.realpath(sys.executable), "-I", "-S", "-c", START],
                cwd="/",
                env={"PATH": os.defpath},
                start_new_session=True,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[other.fileno(), alive],
            )
            job: Job = {
                "program": _code("runner") + marshal.dumps(other.fileno()),
                "control": other.fileno(),
                "alive": alive,
                "together": TOGETHER,
                "folder": FOLDER,
            }
            other.close()
            os.close(alive)
            assert self.process.stdin
            with contextlib.suppress(BrokenPipeError), self.process.stdin as sink:
                sink.write(marshal.dumps(str(HERE)) + marshal.dumps(cast(Any, job)))
            self.control.settimeout(STARTING)
            with contextlib.suppress(OSError):
                if self.control.recv(1) == STARTED:
                    return
            self.end()
            output.seek(0)
            raise InputError(NO_SANDBOX.format(" ".join(output.read().decode(errors="replace").split())))

    def run(self, work: bytes) -> tuple[int, str, bytes]:
        """Exit status, end of the output and what was reported; ends the sandbox if time was up."""
        reading, report = os.pipe()
        with os.fdopen(reading, "rb", buffering=0) as reports, tempfile.TemporaryFile() as output:
            try:
                self.control.settimeout(STARTING)
                socket.send_fds(self.control, [len(work).to_bytes(8)], [report, output.fileno()])
                self.control.sendall(work)
            except OSError:
                self.end()
                return 137, "", b""
            finally:
                os.close(report)
            reported, over = _listen(reports)
            self.control.settimeout(max(0.01, over - time.monotonic()))
            try:
                [status] = self.control.recv(1) or [137]  # its end: killed, such as for the memory that it held
            except OSError:
                status = 124
            if status in (124, 137):
                self.end()
            output.seek(max(0, output.seek(0, os.SEEK_END) - 2000))
            return status, output.read().decode(errors="replace"), reported

    def end(self) -> None:
        """Kill it and all that runs in it."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.close()

    def close(self) -> None:
        """Let go of it, which ends it."""
        self.control.close()
        with contextlib.suppress(OSError):
            os.close(self.alive)


class Sandboxes:
    """Those of this process that wait for work; a process that was forked from it makes its own."""

    def __init__(self) -> None:
        self.idle: list[Sandbox] = []
        os.register_at_fork(after_in_child=self.forget)
        atexit.register(self.end)

    @contextlib.contextmanager
    def borrow(self, new: bool) -> Iterator[Sandbox]:
        """One for a program: no two share it at a time."""
        try:
            sandbox = Sandbox() if new else self.idle.pop()
        except IndexError:
            sandbox = Sandbox()
        try:
            yield sandbox
        except BaseException:
            sandbox.end()
            raise
        if sandbox.control.fileno() >= 0:
            self.idle.append(sandbox)

    def forget(self) -> None:
        """Leave them to the process that made them."""
        for sandbox in self.idle:
            sandbox.close()
        self.idle.clear()

    def end(self) -> None:
        """End all that wait."""
        while self.idle:
            self.idle.pop().end()


SANDBOXES = Sandboxes()


def _listen(reports: IO[bytes]) -> tuple[bytes, float]:
    """What is reported until its end, and the time at which the program must have ended."""
    reported, over = b"", time.monotonic() + STARTING
    while time.monotonic() < over and select.select([reports], [], [], max(0, over - time.monotonic()))[0]:
        part = reports.read(1024)
        if not part:
            break
        if not reported:
            over = time.monotonic() + SECONDS
        reported = (reported + part)[:1024]  # the program may write what it likes
    return reported, over


@functools.cache
def _code(module: str) -> bytes:
    return marshal.dumps(compile((HERE / f"{module}.py").read_text(), module, "exec"))
