import contextlib
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from persyn.errors import InputError
from persyn.quality import QualitySettings, score_quality
from persyn.verifiers import execution as unit_tests
from persyn.verifiers.execution import Sandboxes, passes_tests, run_python
from persyn.verifiers.runner import probed
from tests.support.escapes import OUT, escapes, out, world
from tests.support.tables import prompts_table, responses_table
from tests.support.tiny import ROOT

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
GOOD = "def add(a, b):\n    return a + b"


ADD = f"```python\n{GOOD}\n```\n"
BAD = "def add(a, b):\n    return a - b"
CALLS = "def add(a, b):\n    return plus(a, b)"
PLUS = "def plus(a, b):\n    return a + b"


@pytest.mark.parametrize(
    "response",
    [
        GOOD,
        f"Here it is:\n```python\n{GOOD}\n```\nIt adds.",
        f"```\n{GOOD}\n```",
        f"```Python\n{GOOD}\n```",
        f"```python3\n{GOOD}\n```",
        f"```py\n{GOOD}\n```",
        f"```Python 3\n{GOOD}\n```",
        f"```PYTHON3.11 \n{GOOD}\n```",
        f"``` python\r\n{GOOD}\r\n```\r\n",
        f"~~~python\n{GOOD}\n~~~",
        f"````python\n{GOOD}\n````",
        f'```python title="add.py"\n{GOOD}\n```',
        f'```title="add.py"\n{GOOD}\n```',
        f"```python:add.py\n{GOOD}\n```",
        f"```python{{1,3}}\n{GOOD}\n```",
        f"```{{.python .numberLines}}\n{GOOD}\n```",
        "1. So:\n\n   ```python\n   def add(a, b):\n       return a + b\n   ```\n\n2. Done.",
        "- ```python\n  def add(a, b):\n      return a + b\n  ```",
        f"```python\n{GOOD}",
        f"```python\n{GOOD}\n\nprint(add(1, 2",
        f"```python\n{GOOD}\n\nThis function adds.",
        f"Here is the code:\n\n{GOOD}\n\nIt adds two numbers, from a to b.",
        f"First try:\n```\n{BAD}\n```\nBetter:\n```py\n{GOOD}\n```",
        f"```python\n{BAD}\n\n{GOOD}\n```",
        f"First:\n```python\ndef add(a, b) return a\n```\nBetter:\n{ADD}",
        f"```python\nimport operator\n```\n```python\n{GOOD.replace('a + b', 'operator.add(a, b)')}\n```",
        f"```python\n{PLUS}\n```\nThen:\n```python\n{CALLS}\n```",
        f"```python\n{CALLS}\n```\nwith\n```python\n{PLUS}\n```",
        f"{ADD}For example:\n```python\nprint(add(input(), 2))\n```",
        f"{ADD}For example:\n```python\nassert add(1, 1) == 3\n```",
        f"{ADD}Tests:\n```python\ndef test_add():\n    assert add(1, 1) == 2\n\ntest_add()\n```",
        f"{ADD}Tests:\n```python\nimport unittest\nimport pytest\n```",
        f"{ADD}To use it:\n```python\nif __name__ == '__main__':\n    while True: print(add(1, 2))\n```",
        f"```python\n{GOOD}\n\nif __name__ == '__main__':\n    print(add(int(input()), 2))\n```",
        f"```python\n{GOOD}\n\nprint(add(int(input()), 2))\n```",
        f"{ADD}Exit:\n```python\nimport sys\nsys.exit(0)\n```",
        f"{ADD}Run it:\n```bash\npython add.py\n```\n```text\ndef add(a, b): return 0\n```\n```output\n3\n```",
        f"{ADD}In a shell:\n```\n$ python add.py\n```",
        f"{ADD}In Python:\n```python\n>>> add(1, 2)\n3\n```",
        f"{ADD}In other words:\n```javascript\nadd = (a, b) => 0\n```",
        "class Adder:\n    @staticmethod\n    def add(a, b): return a + b\n\nadd = Adder().add",
        f"```python\nfrom __future__ import annotations\n{GOOD}\n```",
        f"```ipython3\n{GOOD}\n```",
        f"```code\n{GOOD}\n```",
        f"```python\n{GOOD}```",
        f"Code: ```python\n{GOOD}\n```",
        f"1. So:\n    ```python\n{GOOD}\n    ```\n",
        "> ```python\n> def add(a, b):\n>     return a + b\n> ```\n",
        f"````markdown\n{ADD}````",
        f'<pre><code class="language-python">{GOOD}</code></pre>',
        f"<pre><code>{GOOD} if a &lt; b else a + b\n</code></pre>",
        f"[BEGIN]\n{GOOD}\n[DONE]",
        "Code:\n\n    def add(a, b):\n        return a + b\n\nDone",
        ">>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3",
        "```python\n>>> def add(a, b):\n...     return a + b\n...\n>>> add(1, 2)\n3\n```",
        f"<think>```python\n{BAD}\n```</think>{ADD}",
        f"<think>try ```python\n{BAD}\n</think>\n{ADD}",
        '```python\ndef add(a, b):\n    """Adds:\n    ```\n    add(1, 2)\n    ```\n    """\n    return a + b\n```',
        f"\ufeff{ADD}",
        "`def add(a, b): return a + b`",
    ],
)
def test_the_code_of_a_response_passes(response: str) -> None:
    assert passes_tests("p", response, TESTS) == 1


@pytest.mark.parametrize(
    "response",
    [
        BAD,
        f"{ADD}On second thought:\n```python\n{BAD}\n```",
        f"```bash\n{GOOD}\n```",
        f"```text\n{GOOD}\n```",
        f"It is ```{GOOD}```.",
        "I would use a plus sign.",
        "import a plus sign from b",
        "",
        "```python\n```",
        "import sys\nsys.exit(0)",
        "import os\nos._exit(0)",
        "def add(a, b): raise SystemExit(0)",
        "a\x00b",
        "\ud800",
        "(" * 100_000,
        "-" * 100_000 + "1",
    ],
    ids=lambda response: repr(response)[:20],
)
def test_no_code_or_wrong_code_does_not_pass(response: str) -> None:
    assert passes_tests("p", response, TESTS) == 0


@pytest.mark.parametrize(
    ("code", "tests"),
    [
        ("def f(): return 'é'", "assert 'é' == f() and f() == 'é', 'ü'; assert f() == 'é'"),
        ("def f(x): return x", "for x in [0, -1, 2.5, '', 'a', b'', None, True, False]: assert f(x) == x"),
        ("def f(x): return x", "assert f(0) == 0\nassert f(-1) == -1\nassert f(None) == None\nassert f(True) == True"),
        (
            "def f(x): return x",
            "assert f([]) == [] and f([1]) == [1] and f(()) == () and f({}) == {} and f({1}) == {1}",
        ),
        (
            "def f(x): return x",
            "assert f(\n    [1,\n     2]\n) == [\n    1, 2\n]\nassert {'a': [-2]} == f({'a': [-2]})",
        ),
        ("class P:\n  def __init__(s, x): s.x = x\n  def __eq__(s, o): return s.x == o.x", "assert P(1) == P(1)"),
        ("class P(int):\n    def __eq__(self, o): return int(self) == o\n", "assert P(1) == 1"),
        ("def f(): return 1", "assert [f() == 1 for _ in range(2)] == [True, True]\nassert (lambda: f() == 1)()"),
        ("def f(): return 1", "class T:\n    assert f() == 1\n\ndef check(c):\n    assert c() == 1\n\ncheck(f)"),
        (
            "def f(): return input()",
            "import unittest.mock as m\nwith m.patch('builtins.input', lambda: 'x'): assert f() == 'x'",
        ),
        (
            "def f(): return 1",
            "import unittest\nclass T(unittest.TestCase):\n    def test(self): self.assertEqual(f(), 1)\n"
            "assert unittest.TextTestRunner().run(T('test')).wasSuccessful()",
        ),
        ("def f(): return 3", "def g():\n    '>>> f()\\n3'\nimport doctest\nassert doctest.testmod() == (0, 1)"),
        (
            "import threading\ndef f():\n    t = threading.Thread(target=int); t.start(); t.join(); return 1",
            "assert f() == 1",
        ),
        ("import asyncio\nasync def f(): return 1", "import asyncio\nassert asyncio.run(f()) == 1"),
        (
            "import subprocess, sys\ndef f(): return subprocess.check_output([sys.executable, '-c', 'print(1)'])",
            "assert f() == b'1\\n'",
        ),
        (
            "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: 'int'",
            "assert P(1) == P(1) and P(1).x == 1",
        ),
        (
            "def f():\n    with open('x', 'w') as file: file.write('1')\n    return open('x').read()",
            "assert f() == '1'",
        ),
        ("def sum(x): return 0", "assert sum([1]) == 0"),
        ("def f(): return Node", "class Node: pass\nassert f() == Node"),
    ],
)
def test_what_is_right_passes_though_the_tests_are_guarded(code: str, tests: str) -> None:
    assert passes_tests("p", code, tests) == 1


def test_an_assert_also_compares_with_another_value() -> None:
    assert probed("assert f(1) == 2, 'no'") == "assert (persyn_value := (f(1))) == 2 and not persyn_value == 0, 'no'"
    assert probed("assert f(1) == g(2)\nassert f(1) != 2") == "assert f(1) == g(2)\nassert f(1) != 2"
    assert probed("assert (") == "assert ("


def test_nothing_escapes() -> None:
    results = escapes()
    assert len(results) > len(OUT) > 40
    assert [name for name, succeeded in results.items() if succeeded] == []


@pytest.mark.parametrize(
    "name",
    [
        "read /etc/passwd",
        "read a file of the user",
        "read the project",
        "read the environment",
        "delete a file",
        "write a file",
        "see other processes",
        "signal a process of the user",
        "reach a server of this machine",
        "reach an abstract socket",
        "reach a socket file",
        "fill the disk",
        "memory that no process holds",
        "a link to a file outside",
        "run a program",
        "system calls of any kind",
    ],
)
def test_an_escape_succeeds_without_the_sandbox(name: str, tmp_path: Path) -> None:
    def run(program: str) -> str:
        command = [sys.executable, "-I", "-S", "-c", program]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path).stdout

    with world() as things:
        assert out(name, things, run)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("import socket; socket.create_connection(('127.0.0.1', 80), 1)", "unreachable"),
        ("x = 'a' * (2 << 30)", "MemoryError"),
        ("open('big', 'w').write('x' * (2 << 20))", "too large"),
        ("import os; print('home' in str(os.environ).lower() or os.listdir('.'))", "[]"),
    ],
)
def test_code_gets_no_network_memory_disk_or_environment(code: str, says: str) -> None:
    assert says in run_python(code)[1]


def test_processes_that_together_hold_too_much_are_killed() -> None:
    status, _ = run_python(textwrap.dedent(OUT["take all memory in many processes"]))
    assert status in (137, 124), "on a busy machine the time may be up first"
    assert run_python("pass") == (0, "")


def test_endless_output_ends() -> None:
    status, output = run_python("while True: print('x' * 1000)")
    assert status != 0
    assert len(output) <= 2000


def test_time_is_up_for_the_process_and_what_it_started(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_tests, "SECONDS", 1)
    mark = "persyn-left-behind"
    child = f"[sys.executable, '-c', 'import time; time.sleep(60)', '{mark}']"
    code = f"import subprocess, sys, time\nsubprocess.Popen({child})"
    started = time.monotonic()
    assert run_python(code + "\ntime.sleep(60)")[0] == 124
    assert run_python(code)[0] == 0
    assert time.monotonic() - started < 20
    children = [process for process in psutil.process_iter(["cmdline"]) if mark in (process.info["cmdline"] or [])]
    assert not psutil.wait_procs(children, timeout=10)[1]  # killed, though the kernel may still be at it


def test_quality_of_the_code_domain(tmp_path: Path) -> None:
    prompts = prompts_table(["Write add.", "Write add, please."], "code", [TESTS, TESTS])
    settings = QualitySettings(methods={"code": "unit_tests"})
    table = score_quality(prompts, responses_table(prompts, "t", [GOOD, "no"]), tmp_path, settings)
    scores = dict(table.select("prompt_id", "quality").rows())
    assert [scores[identity] for identity in prompts["prompt_id"]] == [1.0, 0.0]


def test_where_there_is_no_sandbox_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unit_tests, "SANDBOXES", Sandboxes())
    monkeypatch.setattr(unit_tests, "START", "print('unshare: not permitted')")
    with pytest.raises(InputError, match=r"unprivileged user namespaces.*\(unshare: not permitted\)$"):
        passes_tests("p", GOOD, TESTS)


def test_a_sandbox_that_was_killed_is_replaced() -> None:
    assert passes_tests("p", GOOD, TESTS) == 1
    for sandbox in unit_tests.SANDBOXES.idle:
        sandbox.process.kill()
        sandbox.process.wait()
    assert passes_tests("p", GOOD, TESTS) == 1


def test_sandboxes_end_with_the_process_that_made_them() -> None:
    code = (
        "import os; from persyn.verifiers import execution as e; assert e.passes('x = 1', 'assert x == 1')\n"
        "print(e.SANDBOXES.idle[0].process.pid, flush=True); os._exit(0)"
    )
    pid = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT).stdout)
    with contextlib.suppress(psutil.NoSuchProcess):
        psutil.Process(pid).wait(timeout=10)
