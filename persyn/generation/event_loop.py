"""Event loop: many calls in flight at once, for engines that take one request per call."""

import asyncio
import signal
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextvars import ContextVar
from typing import Any

from persyn.errors import Stopped
from persyn.generation import Generation

DRAIN_SECONDS = 30
"""Seconds that calls in flight may still take once the run is told to stop: they are paid for."""


class Told:
    """Whether loops were told to stop."""

    def __init__(self) -> None:
        self.signal, self.since = 0, 0.0

    def stop(self, number: int) -> None:
        """Tell them, by this signal."""
        self.signal, self.since = number, self.since or time.monotonic()


TOLD: ContextVar[Told] = ContextVar("TOLD")
"""What a loop in a thread, which gets no signal, listens to instead: threads.py sets it."""


class Calls:
    """An event loop and the calls that run on it."""

    def __init__(self) -> None:
        self.runner = asyncio.Runner()

    def run(
        self,
        count: int,
        call: Callable[[int], Coroutine[Any, Any, Generation]],
        limit: Callable[[], int],
        trouble: Callable[[], Exception | None] = lambda: None,
    ) -> Iterator[dict[int, Generation]]:
        """Yield the result of `call` for every position below `count`, as results come.

        On SIGINT or SIGTERM it starts no new call, yields those in flight and then passes the signal on. An exception
        from a call means that none can succeed: it also starts no new call, and raises it in the end.

        Args:
            limit: how many calls may be in flight now.
            trouble: an error after which no new call can succeed: none is started, those in flight are waited for and
                kept, and it is raised.
        """
        positions = iter(range(count))
        calls: dict[asyncio.Task[Generation], int] = {}
        refused: BaseException | None = None
        with _Stop(self.runner.get_loop()) as stop:
            try:
                while True:
                    while len(calls) < limit() and not (stop.signal or refused or trouble()):
                        position = next(positions, None)
                        if position is None:
                            break
                        calls[self.runner.get_loop().create_task(call(position))] = position
                    if not calls or stop.expired:
                        break
                    done, _ = self.runner.run(_wait(calls))
                    ended = {calls.pop(task): task for task in done}
                    refused = next(filter(None, (task.exception() for task in done)), refused)
                    if any(not task.exception() for task in done):
                        yield {position: task.result() for position, task in ended.items() if not task.exception()}
            finally:
                for task in calls:
                    task.cancel()
                self.runner.run(_settle(calls))
        refused = refused or trouble()
        if refused:
            raise refused

    def listen(self) -> "_Stop":
        """A context in which SIGINT and SIGTERM only raise a flag; they are passed on at its end."""
        return _Stop(self.runner.get_loop())

    def close(self, *closing: Coroutine[Any, Any, Any]) -> None:
        """Run the coroutines that close the engine's connections, then close the loop."""
        for coroutine in closing:
            self.runner.run(coroutine)
        self.runner.close()


async def _wait(calls: dict[asyncio.Task[Generation], int]) -> tuple[set[asyncio.Task[Generation]], Any]:
    return await asyncio.wait(calls, timeout=1.0, return_when=asyncio.FIRST_COMPLETED)


async def _settle(calls: dict[asyncio.Task[Generation], int]) -> None:
    await asyncio.gather(*calls, return_exceptions=True)


class _Stop:
    """Turns SIGINT and SIGTERM into a flag while the loop runs calls; passes the signal on afterwards. In a thread, the
    flag is that of TOLD, and Stopped is raised instead.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.told = loop, TOLD.get(Told())
        self.handlers: dict[int, Any] = {}
        self.on_main_thread = threading.current_thread() is threading.main_thread()  # the only one that gets signals

    @property
    def signal(self) -> int:
        return self.told.signal

    @property
    def expired(self) -> bool:
        return bool(self.signal) and time.monotonic() - self.told.since > DRAIN_SECONDS

    def __enter__(self) -> "_Stop":
        for number in (signal.SIGINT, signal.SIGTERM) if self.on_main_thread else ():
            self.handlers[number] = signal.getsignal(number)
            self.loop.add_signal_handler(number, self.told.stop, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            self.loop.remove_signal_handler(number)
            signal.signal(number, handler)
        if self.signal and not self.on_main_thread:
            raise Stopped(self.signal)
        if self.signal:
            signal.raise_signal(self.signal)
