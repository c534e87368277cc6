"""The sandbox: a small program of its own, which confines itself and then becomes the interpreter that runs `runner`.

`persyn.verifiers.execution` starts it with a bare interpreter and hands it a `Job` on its standard input. It leaves all
that the user has (new namespaces for users, mounts, processes, the network and IPC), makes a root folder of the
interpreter, the system's shared libraries and an empty folder, and drops every privilege. It becomes process 1 of the
sandbox; when that ends, or the caller does, the kernel ends all that was started there.

It imports the standard library alone.
"""

# ruff: noqa: PTH102, PTH103, PTH112, PTH114, PTH115, PTH120, PTH123, PTH208, PTH211

import ctypes
import marshal
import os
import select
import struct
import sys
from typing import Any, NoReturn, TypedDict

NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NETWORK = (
    0x00020000,
    0x04000000,
    0x08000000,
    0x10000000,
    0x20000000,
    0x40000000,
)
NAMESPACES = NEW_MOUNTS | NEW_UTS | NEW_IPC | NEW_USER | NEW_PIDS | NEW_NETWORK
READ_ONLY, NO_SETUID, NO_DEVICES, NO_PROGRAMS = 1, 2, 4, 8
BIND, RECURSIVE, PRIVATE, DETACH = 0x1000, 0x4000, 0x40000, 2
NOBODY = 65534
SHARED_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/etc/ld.so.cache", "/usr/share/zoneinfo")
DEVICES = ("null", "zero", "full", "random", "urandom")
HIDDEN = ("_ctypes", "_test")
"""Extension modules that could read or change the memory of the process."""

# Numbers of system calls, x86_64 and aarch64: what nothing but an attack would use here, though most of it is refused
# without privileges too. shmget and its like hold memory that counts to no process.
CALLS = {
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "pidfd_getfd": (438, 438),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "unshare": (272, 97),
    "setns": (308, 268),
    "open_tree": (428, 428),
    "move_mount": (429, 429),
    "fsopen": (430, 430),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265),
    "bpf": (321, 280),
    "perf_event_open": (298, 241),
    "userfaultfd": (323, 282),
    "io_uring_setup": (425, 425),
    "keyctl": (250, 219),
    "add_key": (248, 217),
    "request_key": (249, 218),
    "memfd_create": (319, 279),
    "shmget": (29, 194),
    "semget": (64, 190),
    "msgget": (68, 186),
    "mq_open": (240, 180),
}
OF_ANOTHER = {  # may not name another process: the next program would inherit what is done to process 1
    "prlimit64": (0, (302, 261)),
    "sched_setaffinity": (0, (203, 122)),
    "sched_setscheduler": (0, (144, 119)),
    "sched_setparam": (0, (142, 118)),
    "sched_setattr": (0, (314, 274)),
    "setpriority": (1, (141, 140)),
    "ioprio_set": (1, (251, 30)),
}
"""System call -> which argument is the process, and its numbers."""
CLONE, CLONE3, CAPSET = (56, 220), (435, 435), (126, 91)
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Machine -> its place in the pairs above, and its name in the kernel's filters."""

START = "import marshal, sys; exec(marshal.load(sys.stdin.buffer), {'__name__': 'runner'})"

libc = ctypes.CDLL(None, use_errno=True)


class Job(TypedDict):
    """What a sandbox gets."""

    program: bytes
    """What the interpreter reads on its standard input once it is confined."""
    control: int
    """The file descriptor of the socket that `runner` gets its work from, and nothing else of ours."""
    alive: int
    """A file descriptor that ends when the caller does."""
    together: int
    """Bytes that all processes may hold in memory."""
    folder: int
    """Size of the folder in bytes."""


def main() -> NoReturn:
    """Confine a child, watch it, and end with it (status 125: it could not be confined, and why is printed)."""
    try:
        job: Job = marshal.load(sys.stdin.buffer)
        others = os.open("/proc", os.O_DIRECTORY)
        _read(f"self/task/{os.getpid()}/children", others)  # some kernels have none: the memory could not be watched
        user = _leave_namespaces()
        child = os.fork()
        if not child:
            os.close(others)
            os.close(job["alive"])
            _become_runner(job, user)
        os.close(job["control"])
        ends = [os.pidfd_open(child), job["alive"]]
        while not select.select(ends, [], [], 0.25)[0]:
            if _held(others, child) > job["together"]:
                break
        os.kill(child, 9)
        _, status = os.waitpid(child, 0)
        os._exit(os.waitstatus_to_exitcode(status) & 0xFF)
    except OSError as error:
        sys.stdout.write(f"{error.filename or ''} {error.strerror}".strip())
        sys.stdout.flush()
        os._exit(125)


def _become_runner(job: Job, user: int) -> None:
    """Process 1 of the sandbox."""
    program = os.memfd_create("program")
    os.write(program, job["program"])
    os.lseek(program, 0, 0)
    os.dup2(program, 0)
    _make_root(job["folder"], user)
    _drop_privileges(user)
    _call("prctl", 1, 9)  # SIGKILL when the parent ends
    os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", START])


def _held(others: int, first: int) -> int:
    """Bytes of memory of a process and all its descendants; a shared page counts for each."""
    pages, todo = 0, [str(first)]
    while todo:
        process = todo.pop()
        try:
            tasks = os.open(f"{process}/task", os.O_DIRECTORY, dir_fd=others)
            try:
                for task in os.listdir(tasks):
                    todo += _read(f"{task}/children", tasks)
            finally:
                os.close(tasks)
            pages += int(_read(f"{process}/statm", others)[1])
        except OSError:  # it has ended
            continue
    return pages * os.sysconf("SC_PAGE_SIZE")


def _read(path: str, folder: int) -> list[str]:
    with open(os.open(path, os.O_RDONLY, dir_fd=folder)) as file:
        return file.read().split()


def _call(name: str, *arguments: Any) -> None:
    """Call a function of libc; an integer is passed as 64 bits."""
    passed = [ctypes.c_ulong(each) if isinstance(each, int) else each for each in arguments]
    if getattr(libc, name)(*passed) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{name}:")


def _leave_namespaces() -> int:
    """Into new namespaces; returns the user to become. Root gets `nobody` too, others keep the one id that they may."""
    user, group = os.geteuid(), os.getegid()
    me, mapper = os.getpid(), 0
    if not user:  # only a process outside may name a second id
        go_read, go_write = os.pipe()
        mapper = os.fork()
        if not mapper:
            os.close(go_write)
            os.read(go_read, 1)
            try:
                for kind in ("uid", "gid"):
                    _write(f"/proc/{me}/{kind}_map", f"0 0 1\n{NOBODY} {NOBODY} 1")
            except OSError:
                os._exit(1)
            os._exit(0)
    _call("unshare", NAMESPACES)
    if mapper:
        os.close(go_read)
        os.close(go_write)
        if os.waitpid(mapper, 0)[1] == 0:
            return NOBODY
    _write("/proc/self/setgroups", "deny")
    _write("/proc/self/uid_map", f"{user} {user} 1")
    _write("/proc/self/gid_map", f"{group} {group} 1")
    return user


def _write(path: str, text: str) -> None:
    with open(path, "w") as file:
        file.write(text)


def _make_root(folder: int, user: int) -> None:
    """A root folder: what the interpreter needs, read-only, and /tmp, which is empty and may hold `folder` bytes.

    It has no /proc, and no /dev but the devices that hold nothing.
    """
    root = "/sys"  # covered by the new root; nothing of the interpreter is under it
    _mount(None, "/", None, RECURSIVE | PRIVATE)
    _mount("tmpfs", root, "tmpfs", 0, "mode=755,size=1m")
    for path in _interpreter():
        _show(path, root)
    library = os.path.dirname(os.__file__)
    packages = [f"{library}/site-packages", f"{library}/dist-packages", f"{os.path.dirname(library)}/python3"]
    for path in filter(os.path.isdir, map(os.path.realpath, packages)):
        _mount("tmpfs", root + path, "tmpfs", 0, "size=4k,mode=755")
    extensions = f"{library}/lib-dynload"
    for name in os.listdir(extensions) if os.path.isdir(extensions) else []:
        if name.startswith(HIDDEN):
            _mount("/dev/null", f"{root}{extensions}/{name}", None, BIND)
    os.makedirs(f"{root}/dev")
    os.mkdir(f"{root}/tmp")
    os.symlink("/tmp", f"{root}/dev/shm")
    for device in DEVICES:
        _write(f"{root}/dev/{device}", "")
    attributes = struct.pack("QQQQ", READ_ONLY | NO_SETUID | NO_DEVICES, 0, 0, 0)
    _call("syscall", 442, -100, root.encode(), 0x8000, attributes, len(attributes))  # mount_setattr, recursively
    for device in DEVICES:
        _mount(f"/dev/{device}", f"{root}/dev/{device}", None, BIND)
    limits = f"mode=700,uid={user},size={folder},nr_inodes=1024"
    _mount("tmpfs", f"{root}/tmp", "tmpfs", NO_SETUID | NO_DEVICES | NO_PROGRAMS, limits)
    os.chdir(root)
    _call("syscall", CALLS["pivot_root"][_machine()[0]], b".", b".")
    _call("umount2", b".", DETACH)
    os.chdir("/tmp")


def _interpreter() -> list[str]:
    """What the interpreter reads: itself, its library, and the shared libraries of it and of the system."""
    prefixes = [f"{sys.base_prefix}/{name}" for name in ("lib", "lib64")]
    needed = [sys.executable, os.path.realpath(sys.executable), os.path.dirname(os.__file__), *prefixes]
    found: list[str] = []
    for path in sorted({*SHARED_LIBRARIES, *needed}, key=len):
        inside = any(path == above or path.startswith(f"{above}/") for above in found)
        if os.path.lexists(path) and not inside:
            found.append(path)
    return found


def _show(path: str, root: str) -> None:
    """`path` under the new root, at the same place; a link stays a link."""
    os.makedirs(os.path.dirname(root + path), exist_ok=True)
    if os.path.islink(path):
        os.symlink(os.readlink(path), root + path)
        return
    if os.path.isdir(path):
        os.makedirs(root + path, exist_ok=True)
    else:
        _write(root + path, "")
    _mount(path, root + path, None, BIND | RECURSIVE)


def _mount(source: str | None, target: str, kind: str | None, flags: int, options: str | None = None) -> None:
    texts = [None if text is None else text.encode() for text in (source, target, kind, options)]
    try:
        _call("mount", *texts[:3], flags, texts[3])
    except OSError as error:
        raise OSError(error.errno, error.strerror, f"mount {target}:") from None


def _drop_privileges(user: int) -> None:
    """No other user, no capability, none to be had by running a program, and a filter on system calls."""
    for capability in range(64):
        libc.prctl(24, capability, 0, 0, 0)  # fails above the last one that the kernel knows
    _call("prctl", 28, 0x2F)  # being root gives nothing
    if user != os.geteuid():
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    header, nothing = struct.pack("Ii", 0x20080522, 0), bytes(24)
    _call("syscall", CAPSET[_machine()[0]], header, nothing)
    _call("prctl", 38, 1, 0, 0, 0)  # no new privileges
    program = _filter()
    buffer = ctypes.create_string_buffer(program, len(program))
    _call("prctl", 22, 2, struct.pack("HxxxxxxQ", len(program) // 8, ctypes.addressof(buffer)), 0, 0)


def _machine() -> tuple[int, int]:
    machine = os.uname().machine
    if machine not in MACHINES:
        raise OSError(0, f"the machine is {machine}; it must be one of {', '.join(MACHINES)}")
    return MACHINES[machine]


def _filter() -> bytes:
    """The filter on system calls, a program for the kernel: instructions of 8 bytes (code, jumps, value).

    It kills calls of another machine's convention; CALLS, OF_ANOTHER and new namespaces are not permitted; clone3,
    whose arguments a filter cannot see, does not exist, so that libraries take clone.
    """
    place, machine = _machine()
    load, equal, at_least, any_bit, answer = 0x20, 0x15, 0x35, 0x45, 0x06
    kill, allow, refuse, absent = 0x80000000, 0x7FFF0000, 0x00050001, 0x00050026

    def put(code: int, value: int, yes: int = 0, no: int = 0) -> bytes:
        return struct.pack("HBBI", code, yes, no, value)

    program = [put(load, 4), put(equal, machine, 1, 0), put(answer, kill), put(load, 0)]
    program += [put(at_least, 0x40000000, 0, 1), put(answer, kill)]
    for numbers in CALLS.values():
        program += [put(equal, numbers[place], 0, 1), put(answer, refuse)]
    for argument, numbers in OF_ANOTHER.values():
        program += [put(equal, numbers[place], 0, 4), put(load, 16 + 8 * argument), put(equal, 0, 1, 0)]
        program += [put(answer, refuse), put(answer, allow)]
    program += [put(equal, CLONE3[place], 0, 1), put(answer, absent)]
    program += [put(equal, CLONE[place], 0, 3), put(load, 16), put(any_bit, NAMESPACES | 0x02000000, 0, 1)]
    program += [put(answer, refuse), put(answer, allow)]
    return b"".join(program)


if __name__ == "confinement":
    main()
