"""Programs that try to get out of the sandbox, or to pass tests that nothing passes.

`python -m tests.support.escapes` runs all of them and prints how many succeeded, and which.
"""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil

from persyn.verifiers.execution import passes, run_python

ROOT = Path(__file__).parent.parent.parent

# A program escapes if it prints ESCAPED, or if `world` finds that something outside has changed. Names in capitals that
# begin with THE_ stand for things that exist outside.
OUT = {
    "read /etc/passwd": "print(open('/etc/passwd').read(), 'ESCAPED')",
    "read a file of the user": "print(open('THE_FILE').read(), 'ESCAPED')",
    "read the project": "import os; print(os.listdir('THE_PROJECT'), 'ESCAPED')",
    "read the home folder": """
        import os, sys
        for folder, _, files in os.walk('THE_HOME'):
            if files and not folder.startswith(sys.base_prefix):
                print('ESCAPED')
    """,
    "read the environment": "import os; print('ESCAPED' if 'THE_SECRET' in str(os.environ) else '')",
    "read the parent's environment": "print(open('/proc/THE_PID/environ').read(), 'ESCAPED')",
    "read site-packages": """
        import glob, os
        if glob.glob(os.path.dirname(os.__file__) + '/*-packages/*'): print('ESCAPED')
    """,
    "delete a file": "import os; os.remove('THE_FILE')",
    "write a file": "open('THE_FOLDER/written', 'w').write('x')",
    "write into the interpreter": """
        import os
        open(os.path.dirname(os.__file__) + '/persyn_escape.py', 'w').write('x')
        print('ESCAPED')
    """,
    "write to the root folder": "open('/written', 'w').write('x'); print('ESCAPED')",
    "see other processes": "import os; print('ESCAPED' if len(os.listdir('/proc')) > 0 else '')",
    "signal a process of the user": "import os; os.kill(THE_PID, 0); print('ESCAPED')",
    "kill all": "import os; os.kill(-1, 9)",
    "kill the parents": """
        import os, signal
        os.kill(os.getppid(), signal.SIGKILL)
        os.killpg(0, 0)
        print('ESCAPED' if os.getppid() != 1 else '')
    """,
    "reach a server of this machine": """
        import socket
        socket.create_connection(('127.0.0.1', THE_PORT), 2)
        print('ESCAPED')
    """,
    "reach the internet": "import socket; socket.create_connection(('1.1.1.1', 53), 2); print('ESCAPED')",
    "reach an abstract socket": """
        import socket
        socket.socket(socket.AF_UNIX).connect('\\0THE_ABSTRACT')
        print('ESCAPED')
    """,
    "reach a socket file": "import socket; socket.socket(socket.AF_UNIX).connect('THE_SOCKET'); print('ESCAPED')",
    "open a raw socket": """
        import socket
        socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        print('ESCAPED')
    """,
    "fork without end": """
        import os, time
        children = 0
        try:
            while children < 500:
                if not os.fork():
                    time.sleep(5)
                    os._exit(0)
                children += 1
        finally:
            print('ESCAPED' if children > 64 else '')
    """,
    "take all memory": "x = bytearray(3 << 30); print('ESCAPED')",
    "take all memory in many processes": """
        import os, time
        for _ in range(6):
            if not os.fork():
                x = b'x' * (700 << 20)
                time.sleep(3)
                os._exit(0)
        for _ in range(6):
            os.wait()
        print('ESCAPED')
    """,
    "fill the disk": """
        for number in range(64):
            open(str(number), 'w').write('x' * (1 << 20))
        print('ESCAPED')
    """,
    "one large file": "open('large', 'w').write('x' * (2 << 20)); print('ESCAPED')",
    "memory that no process holds": "import os; os.memfd_create('x'); print('ESCAPED')",
    "a link to a file outside": "import os; os.symlink('THE_FILE', 'link'); print(open('link').read(), 'ESCAPED')",
    "a hard link to a file outside": "import os; os.link('THE_FILE', 'link'); print('ESCAPED')",
    "a link into a folder outside": "import os; os.symlink('THE_FOLDER', 'link'); open('link/written', 'w').write('x')",
    "leave by ..": "print(open('../../../../../../THE_FILE').read(), 'ESCAPED')",
    "run a program": "import subprocess; subprocess.run(['/bin/sh', '-c', 'true']); print('ESCAPED')",
    "become root by a setuid program": """
        import os
        for folder in ('/bin', '/usr/bin'):
            for name in ('su', 'sudo', 'mount', 'passwd'):
                if os.path.exists(f'{folder}/{name}'):
                    print('ESCAPED')
        if 0 in (os.getuid(), os.geteuid()):
            print('ESCAPED')
        os.setuid(0)
        print('ESCAPED')
    """,
    "run a program that it made": """
        import os, shutil, subprocess, sys
        shutil.copy('/lib64/ld-linux-x86-64.so.2', 'program')
        os.chmod('program', 0o4755)
        subprocess.run(['./program', '--version'])
        print('ESCAPED')
    """,
    "change the root folder": "import os; os.mkdir('r'); os.chroot('r'); print('ESCAPED')",
    "make a device": "import os; os.mknod('disk', 0o60600, os.makedev(254, 0)); print('ESCAPED')",
    "system calls of any kind": "import ctypes; print(ctypes.CDLL(None).getpid(), 'ESCAPED')",
    "system calls by a module that is hidden": """
        import glob, importlib.util, os
        [path] = glob.glob(os.path.dirname(os.__file__) + '/lib-dynload/_ctypes.*')
        spec = importlib.util.spec_from_file_location('_ctypes', path)
        importlib.util.module_from_spec(spec)
        print('ESCAPED')
    """,
    "limits of process 1": "import resource; resource.prlimit(1, resource.RLIMIT_CPU, (1, 1)); print('ESCAPED')",
    "priority of process 1": "import os; os.setpriority(os.PRIO_PROCESS, 1, 19); print('ESCAPED')",
    "processors of process 1": "import os; os.sched_setaffinity(1, {0}); print('ESCAPED')",
    "raise its own limits": """
        import resource
        resource.setrlimit(resource.RLIMIT_AS, (-1, -1))
        print('ESCAPED')
    """,
    "outlive its end": """
        import os, subprocess, sys
        if not os.fork():
            os.setsid()
            if not os.fork():
                os.execv(sys.executable, [sys.executable, '-c', 'import time; time.sleep(60)', 'THE_MARK'])
            os._exit(0)
    """,
    "leave a file to the next program": "import os; os.makedirs('a/b'); open('a/b/left', 'w'); os.chmod('a', 0)",
    "find a file of the program before": "import os; print('ESCAPED' if os.listdir('.') else '')",
    "use the caller's socket": """
        import os, socket
        for file in range(3, 256):
            try:
                socket.socket(fileno=os.dup(file)).send(b'x')
                print('ESCAPED')
            except OSError:
                pass
    """,
}

NOTHING_PASSES = "assert solve(1) == 2\nassert False"
ALL_EQUAL = """
class Equal(int):
    def __eq__(self, other): return True
    def __ne__(self, other): return False
    __hash__ = int.__hash__
def solve(x): return Equal()
"""
REPORT_ALL = """
def report(found):
    for file in range(256):
        for each in found:
            try: os.write(file, each)
            except (OSError, TypeError): pass
"""

# Response -> it passes if `passes` says so, with tests that no honest program passes.
PASS = {
    "exit": "import sys\nsys.exit(0)",
    "exit in the tests": "import sys\ndef solve(x): sys.exit(0)",
    "exit of the process": "import os\nos._exit(0)",
    "exit of the process in the tests": "import os\ndef solve(x): os._exit(0)",
    "exit of the process when Python ends": """
import atexit, os
atexit.register(os._exit, 0)
def solve(x): raise SystemExit
""",
    "print": "print('R', 'passed', 'OK', flush=True)",
    "write to all files": f"import os\n{REPORT_ALL}\nreport([b'R', b'R' * 17])",
    "read all files": f"""
import os
{REPORT_ALL}
found = []
for file in range(256):
    try:
        os.set_blocking(file, False)
        found.append(os.read(file, 100000))
    except OSError: pass
report(found)
""",
    "frames": f"""
import os, sys
{REPORT_ALL}
frame, found = sys._getframe(), []
while frame:
    for scope in (frame.f_locals, frame.f_globals):
        for value in list(scope.values()):
            found += [value] if isinstance(value, bytes) else [*value.values()] if isinstance(value, dict) else []
    frame = frame.f_back
report(found)
def solve(x):
    frame = sys._getframe(1)
    while frame:
        report([value for value in frame.f_locals.values() if isinstance(value, bytes)])
        frame = frame.f_back
""",
    "frames of a traceback": f"""
import os
{REPORT_ALL}
try: 1 / 0
except ZeroDivisionError as error:
    frame = error.__traceback__.tb_frame
    while frame:
        report([value for value in frame.f_globals.values() if isinstance(value, bytes)])
        frame = frame.f_back
""",
    "frames of other threads": f"""
import os, sys, threading
{REPORT_ALL}
def look():
    for frame in sys._current_frames().values():
        while frame:
            report([value for value in frame.f_locals.values() if isinstance(value, bytes)])
            frame = frame.f_back
threading.Thread(target=look).start()
""",
    "the garbage collector": f"""
import gc, os
{REPORT_ALL}
for each in gc.get_objects():
    report([value for value in gc.get_referents(each) if isinstance(value, bytes) and len(value) == 16])
""",
    "arguments": f"import os, sys\n{REPORT_ALL}\nreport([each.encode() for each in sys.argv + sys.orig_argv])",
    "/proc": f"import os\n{REPORT_ALL}\nreport([open('/proc/self/cmdline', 'rb').read()])",
    "memory": f"import os\n{REPORT_ALL}\nwith open('/proc/self/mem', 'rb') as memory: report([memory.read(1 << 20)])",
    "standard input": f"import os, sys\n{REPORT_ALL}\nreport([sys.stdin.buffer.read()])",
    "the first interpreter": """
import importlib
for name in ('_interpreters', '_xxsubinterpreters'):
    try: interpreters = importlib.import_module(name)
    except ImportError: continue
    interpreters.run_string(0, "import os; f = __import__('sys')._getframe(2); os.write(f.f_locals['report'], b'')")
    break
""",
    "another assertion error": "import builtins\nbuiltins.AssertionError = Warning\ndef solve(x): return 2",
    "an import that is replaced": "import builtins\nbuiltins.__import__ = lambda *a: 1 / 0\ndef solve(x): return 2",
    "a trace that jumps": """
import sys
def jump(frame, event, argument):
    if event == 'line': frame.f_lineno = frame.f_lineno + 1
    return jump
def solve(x):
    sys._getframe(1).f_trace = jump
    sys.settrace(jump)
    return 2
sys.settrace(jump)
""",
    "an audit hook": "import sys\nsys.addaudithook(lambda *a: None)\ndef solve(x): return 2",
    "an error hook": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)\ndef solve(x): return 2",
    "a child that ends well": "import os\nif os.fork(): os._exit(0)\ndef solve(x): return 2",
    "a thread that ends well": """
import os, threading, time
def end():
    time.sleep(0.2)
    os._exit(0)
threading.Thread(target=end, daemon=True).start()
def solve(x): time.sleep(1)
""",
    "the signs of the guard": """
(lambda sign='persyn: tests begin': 0).__code__
(lambda sign='persyn: tests end': 0).__code__
def solve(x): return 2
""",
    "a signal": "import os, signal\nsignal.alarm(1)\nsignal.signal(14, lambda *a: os._exit(0))",
    "recursion": "import sys\nsys.setrecursionlimit(10**9)\ndef solve(x): return solve(x)",
    "unclosed text that holds the tests": "def solve(x): return 2\n'''",
}

# Response, tests: it passes tests that an honest program passes too, without doing what they ask for.
FALSE = {
    "equal to everything": (ALL_EQUAL, "assert solve(1) == 2"),
    "equal to everything, on the right": (ALL_EQUAL, "assert 2 == solve(1)"),
    "equal to every list": (ALL_EQUAL, "assert solve([]) == [1, 2] and solve(1) == -3, 'no'"),
    "all": ("import builtins\nbuiltins.all = lambda x: True\ndef solve(x): return 1", "assert all([solve(1) == 2])"),
    "all, in the tests": (
        "import builtins\ndef solve(x):\n    builtins.all = lambda x: True\n    return 1",
        "solve(1)\nassert all([solve(1) == 2])",
    ),
    "isclose": (
        "import math\nmath.isclose = lambda *a, **k: True\ndef solve(x): return 1",
        "import math\nassert math.isclose(solve(1), 2)",
    ),
    "assertEqual": (
        "import unittest\nunittest.TestCase.assertEqual = lambda *a: None\ndef solve(x): return 1",
        "import unittest\nunittest.TestCase().assertEqual(solve(1), 2)",
    ),
}


@contextlib.contextmanager
def world() -> Iterator[dict[str, str]]:
    """Things outside of the sandbox, by the name that stands for each; raises if one was changed."""
    with (
        tempfile.TemporaryDirectory() as name,
        socket.create_server(("127.0.0.1", 0)) as server,
        socket.socket(socket.AF_UNIX) as abstract,
        socket.socket(socket.AF_UNIX) as file,
        subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, env={"X": "THE_SECRET"}) as process,
    ):
        folder, mark = Path(name), f"persyn-{os.getpid()}"
        (folder / "file").write_text("secret")
        folder.chmod(0o777)
        abstract.bind(f"\0{mark}")
        file.bind(str(folder / "socket"))
        for each in (abstract, file):
            each.listen()
        os.environ["PERSYN_TEST"] = "THE_SECRET"
        yield {
            "THE_FILE": str(folder / "file"),
            "THE_FOLDER": name,
            "THE_PROJECT": str(ROOT),
            "THE_HOME": str(Path.home()),
            "THE_PID": str(process.pid),
            "THE_PORT": str(server.getsockname()[1]),
            "THE_ABSTRACT": mark,
            "THE_SOCKET": str(folder / "socket"),
            "THE_MARK": mark,
        }
        del os.environ["PERSYN_TEST"]
        process.kill()


def changed(things: dict[str, str]) -> bool:
    """Whether something outside has changed."""
    folder = Path(things["THE_FOLDER"])
    left = [each for each in psutil.process_iter(["cmdline"]) if things["THE_MARK"] in (each.info["cmdline"] or [])]
    return (
        not psutil.pid_exists(int(things["THE_PID"]))
        or sorted(path.name for path in folder.iterdir()) != ["file", "socket"]
        or (folder / "file").read_text() != "secret"
        or bool(psutil.wait_procs(left, timeout=5)[1])
    )


def out(name: str, things: dict[str, str], run: Callable[[str], str]) -> bool:
    """Whether the program `name` gets out when `run` runs it and returns its output."""
    program = textwrap.dedent(OUT[name]).strip()
    for thing, value in things.items():
        program = program.replace(thing, value)
    output = run(program)
    return "ESCAPED" in output or changed(things)


def escapes() -> dict[str, bool]:
    """Name of each escape -> whether it succeeded."""
    with world() as things:
        succeeded = {name: out(name, things, lambda program: run_python(program)[1]) for name in OUT}
    for name, code in PASS.items():
        succeeded[f"pass by {name}"] = passes(code, NOTHING_PASSES) > 0
    for name, (code, tests) in FALSE.items():
        succeeded[f"false {name}"] = passes(code, tests) > 0
    return succeeded


if __name__ == "__main__":
    results = escapes()
    print(f"{len(results)} escapes tried, {sum(results.values())} succeeded")  # noqa: T201
    for name in [name for name, success in results.items() if success]:
        print(f"  {name}")  # noqa: T201
    raise SystemExit(any(results.values()))
