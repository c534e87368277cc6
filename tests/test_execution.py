import time
from pathlib import Path

import psutil
import pytest

from persyn.errors import InputError
from persyn.quality import QualitySettings, score_quality
from persyn.verifiers import execution as unit_tests
from persyn.verifiers.execution import passes_tests, run_python
from tests.support.tables import prompts_table, responses_table

TESTS = "assert add(1, 2) == 3\nassert add(-1, 1) == 0"
GOOD = "def add(a, b):\n    return a + b"


@pytest.mark.parametrize(
    ("response", "passes"),
    [
        (GOOD, 1.0),
        (f"Here it is:\n```python\n{GOOD}\n```\nIt adds.", 1.0),
        (f"First try:\n```\ndef add(a, b): return a\n```\nBetter:\n```py\n{GOOD}\n```", 1.0),
        (f"```python\n{GOOD}", 1.0),
        (f"```python\n{GOOD}\n```\nFor example:\n```python\nprint(add(input(), 2))\n```", 1.0),
        ("def add(a, b):\n    return a - b", 0.0),
        ("I would use a plus sign.", 0.0),
        ("", 0.0),
        ("import sys\nsys.exit(0)", 0.0),
        ("import os\nos._exit(0)", 0.0),
        ("print('persyn: all tests passed')\nraise SystemExit(0)", 0.0),
        ("a\x00b", 0.0),
    ],
)
def test_the_code_of_a_response_is_what_passes(response: str, passes: float) -> None:
    assert passes_tests("p", response, TESTS) == passes


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


def test_quality_of_the_code_domain_and_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = prompts_table(["Write add.", "Write add, please."], "code", [TESTS, TESTS])
    settings = QualitySettings(methods={"code": "unit_tests"})
    table = score_quality(prompts, responses_table(prompts, "t", [GOOD, "no"]), tmp_path, settings)
    scores = dict(table.select("prompt_id", "quality").rows())
    assert [scores[identity] for identity in prompts["prompt_id"]] == [1.0, 0.0]
    monkeypatch.setattr(unit_tests, "_run", lambda code: (125, "unshare: not permitted"))
    unit_tests._check_confinement.cache_clear()
    with pytest.raises(InputError, match=r"unprivileged user namespaces.*not permitted"):
        passes_tests("p", GOOD, TESTS)
    unit_tests._check_confinement.cache_clear()
