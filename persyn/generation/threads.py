"""Threads: teachers behind servers are asked side by side, each in a thread of its own."""

import contextvars
import resource
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

from persyn.generation.event_loop import TOLD, Told

MOST_FILES = 65_536


def side_by_side(jobs: Mapping[str, Callable[[], None]]) -> dict[str, BaseException | None]:
    """Run every job to its end in a thread of its name; one that fails stops no other. SIGINT and SIGTERM stop all as
    Calls.run says, and are passed on once the last has ended.

    Returns:
        The jobs' errors; None for one that succeeded.
    """
    told, futures = Told(), dict[str, Future[None]]()
    if not jobs:
        return {}
    _allow_files()
    with _heard(told), ThreadPoolExecutor(len(jobs)) as pool:
        for name, job in jobs.items():
            futures[name] = pool.submit(contextvars.copy_context().run, _named, name, told, job)
        wait(futures.values())
    if told.signal:
        signal.raise_signal(told.signal)
    return {name: future.exception() for name, future in futures.items()}


def _named(name: str, told: Told, job: Callable[[], None]) -> None:
    threading.current_thread().name = name
    TOLD.set(told)
    job()


@contextmanager
def _heard(told: Told) -> Iterator[None]:
    """Turn SIGINT and SIGTERM into the flag `told`."""
    numbers = signal.SIGINT, signal.SIGTERM
    before = {number: signal.signal(number, lambda number, _: told.stop(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _allow_files() -> None:
    """Raise this process's limit of open files as far as it may be: each call in flight is a connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_FILES if hard == resource.RLIM_INFINITY else min(hard, MOST_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
