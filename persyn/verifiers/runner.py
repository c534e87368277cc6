"""Runs the code of responses and their tests, one after another: process 1 of a sandbox that `confinement` has made.

Each has a process of its own. The response and its tests share an interpreter, as they must: the tests call what the
response defines. It is a second interpreter of that process. The mark that says "passed" stays in the first, whose
objects and frames code of the second cannot see; it is written when the tests have returned, which is a return from C,
and which nothing but their end is. Then all processes that were started are killed, and the folder is emptied.
"""

# ruff: noqa: PTH101, PTH106, PTH108

import _ast
import contextlib
import marshal
import os
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypedDict

STARTED = b"R"
BEGINNINGS = ("def ", "class ", "async def ", "import ", "from ", "@")
EQUAL_TO = "persyn_value"
"""Name under which an assert of the tests keeps the value that it compares."""


class Work(TypedDict):
    """What to run."""

    blocks: list[str]
    """Run one after another in one namespace; the error of one ends it, and the next one runs."""
    tests: str | None
    """Must run without an error after them. None: `blocks` is one program, which runs as `python -c` runs it."""
    guard: bytes
    """Code of `guard`, and the signs by which it learns that the tests begin and end."""
    begin: str
    end: str
    mark: bytes
    """Reported after the tests."""
    limits: dict[str, int]
    """Of a process: name in the module resource -> limit."""


def main(control: int) -> NoReturn:
    """Do the work that comes on the socket `control`, and send the exit status of each, until the caller is gone.

    Each comes with two file descriptors: one that gets STARTED and then the mark, and one for the output.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # process 1 ignores it then
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    caller = socket.socket(fileno=control)
    caller.set_inheritable(False)
    caller.sendall(STARTED)
    while True:
        size, files, _, _ = socket.recv_fds(caller, 8, 2)
        if len(size) < 8:
            os._exit(0)
        work = marshal.loads(caller.recv(int.from_bytes(size), socket.MSG_WAITALL))
        child = os.fork()
        if not child:
            caller.close()
            _work(work, *files)
        del work
        for file in files:
            os.close(file)
        status = _status(child)
        _clean()
        caller.sendall(bytes([status]))


def _work(work: Work, report: int, output: int) -> NoReturn:
    """In a process of its own, under limits."""
    os.setsid()
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for file in (1, 2):
        os.dup2(output, file)
    os.close(output)
    for name, limit in work["limits"].items():
        resource.setrlimit(getattr(resource, name), (limit, limit))
    if work["tests"] is None:
        os.write(report, STARTED)
        _run_program(work["blocks"][0])
    _run_tested(work, work["tests"], report)


def _status(child: int) -> int:
    """Exit status of the child; ends all other processes."""
    while True:
        ended, status = os.wait()
        if ended == child:
            break
    with contextlib.suppress(ProcessLookupError):
        os.kill(-1, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while True:
            os.wait()
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


def _clean(folder: str = ".") -> None:
    """Empty the folder; if that fails, this sandbox ends."""
    os.chmod(folder, 0o700)
    for entry in list(os.scandir(folder)):
        if entry.is_dir(follow_symlinks=False):
            _clean(entry.path)
            os.rmdir(entry.path)
        else:
            os.unlink(entry.path)


def _run_program(code: str) -> NoReturn:
    status = 0
    module = type(sys)("__main__")
    sys.modules["__main__"] = module
    sys.argv = ["-c"]
    try:
        exec(compile(code, "<string>", "exec"), module.__dict__)
    except SystemExit as end:
        if end.code is not None:
            status = end.code if isinstance(end.code, int) else 1
    except BaseException:  # noqa: BLE001 - whatever a program raises
        sys.excepthook(*sys.exc_info())
        status = 1
    raise SystemExit(status)  # so that exit functions run, and threads are waited for


def _run_tested(work: Work, tests: str, report: int) -> NoReturn:
    run = _second_interpreter()
    guard = f"__import__('marshal').loads({work['guard']!r})"
    names = f"{{'__name__': 'guard', 'IMPORTS': {_imports(tests)!r}, '__builtins__': dict(vars(builtins))}}"
    if not run(f"import builtins, sys\nsys.argv = ['-c']\nexec({guard}, {names})\ndel builtins, sys"):
        os._exit(125)
    os.write(report, STARTED)
    for block in work["blocks"]:
        for part in parts(block):
            run(part)
    passed = run(f"(lambda sign={work['begin']!r}: 0).__code__") and run(probed(tests))
    if passed and run(f"(lambda sign={work['end']!r}: 0).__code__"):
        os.write(report, work["mark"])
        os._exit(0)
    os._exit(1)


def _second_interpreter() -> Callable[[str], bool]:
    """A function that runs code in `__main__` of a new interpreter, and says whether it ended without an error."""
    try:
        import _interpreters as interpreters  # from Python 3.13

        identity = interpreters.create("legacy")
    except ImportError:
        import _xxsubinterpreters as interpreters

        identity = interpreters.create(isolated=False)

    def run(code: str) -> bool:
        try:
            error = interpreters.run_string(identity, code)
        except BaseException as raised:  # noqa: BLE001 - also at what is no text, such as a NUL
            error = raised
        if error is not None:
            os.write(2, f"{error}\n".encode(errors="replace"))
        return error is None

    return run


def parts(block: str) -> list[str]:
    """The programs in a block: all of it without its main guard, or, if it is no Python, the runs of lines that are.

    A run begins with a definition or an import, and is as long as it can be: it is cut where a response was, and prose
    around it is left out.
    """
    whole = _without_main_guard(block)
    if whole is not None:
        return [whole]
    lines, found, start = block.split("\n"), [], 0
    while start < len(lines):
        end = start
        if lines[start].startswith(BEGINNINGS):
            for end in range(len(lines), start, -1):
                run = _without_main_guard("\n".join(lines[start:end]))
                if run is not None:
                    found.append(run)
                    break
            else:
                end = start
        start = max(end, start + 1)
    return found


def _parsed(code: str) -> Any:
    """The syntax tree, or None if it is no Python."""
    try:
        return compile(code, "<string>", "exec", _ast.PyCF_ONLY_AST)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _without_main_guard(code: str) -> str | None:
    """`code` without its `if __name__ == "__main__":`, which does not run in a module; None if it is no Python."""
    tree = _parsed(code)
    if tree is None:
        return None
    lines = code.split("\n")
    for node in tree.body:
        if isinstance(node, _ast.If) and isinstance(node.test, _ast.Compare) and not node.orelse:
            sides = [node.test.left, *node.test.comparators]
            names = {getattr(side, "id", None) or getattr(side, "value", None) for side in sides}
            if names == {"__name__", "__main__"}:
                lines[node.lineno - 1 : node.end_lineno] = [""] * len(lines[node.lineno - 1 : node.end_lineno])
    return "\n".join(lines)


def _nodes(tree: Any) -> Iterator[Any]:
    todo = [tree]
    while todo:
        node = todo.pop()
        if isinstance(node, list):
            todo += node
        elif isinstance(node, _ast.AST):
            yield node
            todo += [getattr(node, field, None) for field in node._fields]


def _imports(tests: str) -> list[str]:
    """Names of the modules that `tests` imports."""
    names = set()
    for node in _nodes(_parsed(tests)):
        if isinstance(node, _ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, _ast.ImportFrom) and node.module:
            names.add(node.module)
    return sorted(names)


def probed(tests: str) -> str:
    """`tests`, in which a value that an assert finds equal to a literal must differ from another literal.

    So an object that says to be equal to everything does not pass. `assert f(1) == 2` becomes
    `assert (persyn_value := (f(1))) == 2 and not persyn_value == 0`.
    """
    tree, encoded = _parsed(tests), [line.encode() for line in tests.split("\n")]
    edits: list[tuple[int, int, bytes]] = []
    for node in _nodes(tree):
        if not isinstance(node, _ast.Assert):
            continue
        test = node.test
        compared = test.values if isinstance(test, _ast.BoolOp) and isinstance(test.op, _ast.And) else [test]
        for compare in compared:
            edits += _probe(compare)
    places = [(line, column, order) for order, (line, column, _) in enumerate(edits)]
    for line, column, order in sorted(places, reverse=True):
        text = edits[order][2]
        encoded[line] = encoded[line][:column] + text + encoded[line][column:]
    changed = b"\n".join(encoded).decode()
    try:
        compile(changed, "<string>", "exec")
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return tests
    return changed


def _probe(compare: Any) -> list[tuple[int, int, bytes]]:
    """Insertions (line, column, text), in the order in which they come."""
    end: tuple[int, int] = (compare.end_lineno - 1, compare.end_col_offset)
    if not isinstance(compare, _ast.Compare) or len(compare.ops) != 1 or not isinstance(compare.ops[0], _ast.Eq):
        return []
    sides = [compare.left, compare.comparators[0]]
    others = [_other(side) for side in sides]
    if (others[0] is None) == (others[1] is None):
        return []
    value: Any = sides[others[0] is not None]
    other = others[0] or others[1]
    return [
        (value.lineno - 1, value.col_offset, f"({EQUAL_TO} := (".encode()),
        (value.end_lineno - 1, value.end_col_offset, b"))"),
        (*end, f" and not {EQUAL_TO} == {other}".encode()),
    ]


def _other(node: Any) -> str | None:
    """Source of a literal of the type of `node` and unlike it; None if `node` is no literal."""
    if isinstance(node, _ast.UnaryOp) and isinstance(node.op, _ast.USub):
        return _other(node.operand)
    if isinstance(node, _ast.Constant):
        unlike: dict[type, tuple[str, str]] = {  # what is true, what is false
            bool: ("False", "True"),
            int: ("0", "1"),
            float: ("0.0", "1.0"),
            complex: ("0j", "1j"),
            str: ("''", "'a'"),
            bytes: ("b''", "b'a'"),
            type(None): ("0", "0"),
        }
        return unlike[type(node.value)][not node.value] if type(node.value) in unlike else None
    displays: dict[type, tuple[str, tuple[str, str]]] = {
        _ast.List: ("elts", ("[]", "[0]")),
        _ast.Tuple: ("elts", ("()", "(0,)")),
        _ast.Set: ("elts", ("{'a', 0}", "{0}")),
        _ast.Dict: ("values", ("{}", "{0: 0}")),
    }
    if type(node) not in displays:
        return None
    field, unlike_it = displays[type(node)]
    inside = [*getattr(node, field), *getattr(node, "keys", [])]
    return unlike_it[not inside] if all(each is not None and _other(each) for each in inside) else None


if __name__ == "runner":
    main(marshal.load(sys.stdin.buffer))
