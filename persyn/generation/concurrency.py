"""Concurrency: as many requests as a server can bear, and none while it is down.

The limit grows with every response and is halved when the server reports overload (additive increase, multiplicative
decrease, as in TCP; Chiu and Jain 1989). After FAILURES failures in a row the circuit breaker opens (Nygard, Release
It!): one request at a time is tried, after ever longer pauses, until one succeeds.
"""

import asyncio
import contextlib
import email.utils
import logging
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx2

from persyn.errors import InputError

START = 8
"""The first limit. It doubles with every round of responses until the server first reports overload."""
TOO_MUCH = {429, 503, 529}
FAILED = {500, 502, 503, 504, 529}
FAILURES = 8
LARGEST_BODY = 64 * 2**20
"""Bytes of an answer; one that goes on beyond is given up."""
LONGEST_PAUSE = 30.0
"""Seconds between two attempts at a server that is down."""
FIRST_CONNECT = 4.0
"""Seconds for a connection to a host that has not answered yet."""
FIRST_PATIENCE = 10.0
"""Seconds for which such a host is tried."""
logger = logging.getLogger(__name__)


class Gate(httpx2.AsyncBaseTransport):
    """The transport of an httpx client: every attempt of every call goes through it.

    Each connection is a transport of its own. One transport for all of them would look at each idle connection whenever
    a call begins or ends; with many in flight that takes longer than the calls themselves.
    """

    def __init__(self, most: int, max_outage: float, model: str, url: str) -> None:
        """Let at most `most` requests through at once; give up on a server that fails for `max_outage` seconds.

        Args:
            model: what is asked there, for messages; so is `url`.
        """
        self.most, self.max_outage = most, max_outage
        self._server = f"{model} at {url.partition('?')[0]}"
        self._connect = partial(httpx2.AsyncHTTPTransport, verify=httpx2.create_ssl_context())
        self._connections: set[httpx2.AsyncHTTPTransport] = set()
        self._idle: list[httpx2.AsyncHTTPTransport] = []
        """Those that no request uses; the one used last comes first."""
        self._limit, self._growing, self._last_cut = float(min(most, START)), True, 0.0
        self._shut_until = 0.0
        self._failures, self._down_since, self._pause, self._turn = 0, 0.0, 1.0, asyncio.Lock()
        self._crowded_since: float | None = None
        self.unreached: float | None = None
        """When a host that has not answered yet first failed."""
        self.answered = False
        """Whether the server has answered at all, with whatever status."""
        self.trouble: InputError | None = None
        """Why no more requests are sent to the server."""
        self.words = ""
        """What the server said when it last refused to work now."""
        self._closed = asyncio.Event()

    @property
    def limit(self) -> int:
        """Requests that may be in flight now."""
        return max(1, int(self._limit))

    @property
    def failures(self) -> int:
        """Failures in a row."""
        return self._failures

    @property
    def is_shut(self) -> bool:
        """Whether the server is waited for."""
        return self._failures >= FAILURES or time.monotonic() < self._shut_until

    @property
    def is_ready(self) -> bool:
        """Whether a request would be sent at once, if only to try the server."""
        return time.monotonic() >= self._shut_until and (self._failures < FAILURES or not self._turn.locked())

    def close(self, why: InputError) -> None:
        """Send no more: requests that wait here fail with `why`; those that were sent are not touched."""
        self.trouble = self.trouble or why
        self._closed.set()

    async def rest(self, seconds: float) -> None:
        """Wait, but no longer than until the gate closes.

        Raises:
            InputError: the gate is closed.
        """
        if seconds > 0 and not self.trouble:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), seconds)
        if self.trouble:
            raise self.trouble

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request as soon as the limit allows it.

        Raises:
            InputError: the gate is closed.
        """
        await self.rest(self._shut_until - time.monotonic())
        while self._failures >= FAILURES:
            async with self._turn:
                if self._failures >= FAILURES:
                    await self.rest(self._shut_until - time.monotonic())
                    return await self._send(request)
        return await self._send(request)

    async def aclose(self) -> None:
        """Close the connections."""
        self._idle.clear()
        while self._connections:
            await self._connections.pop().aclose()

    async def _release(self, connection: httpx2.AsyncHTTPTransport) -> None:
        """Keep a connection for later requests, unless there are more than may be used now."""
        if len(self._connections) <= self.limit:
            self._idle.append(connection)
        else:
            self._connections.discard(connection)
            await connection.aclose()

    async def _exchange(self, request: httpx2.Request, sent: float) -> httpx2.Response:
        """Send a request by a connection that is free, or by a new one."""
        connection = self._idle.pop() if self._idle else self._connect()
        self._connections.add(connection)
        try:
            response = await connection.handle_async_request(request)
        except BaseException:
            await self._release(connection)
            raise
        limit = request.extensions.get("timeout", {}).get("read")
        end = sent + limit if limit else math.inf
        response.stream = _Body(response.stream, end, request, partial(self._release, connection))
        return response

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        sent = time.monotonic()
        if not self.answered:
            limits = request.extensions.get("timeout", {})
            patient = min(limits.get("connect") or FIRST_CONNECT, FIRST_CONNECT)
            request.extensions = {**request.extensions, "timeout": {**limits, "connect": patient}}
        try:
            response = await self._exchange(request, sent)
        except httpx2.TransportError as error:
            self._never_reached(sent, error, request)
            self._failed(sent, type(error).__name__)
            if isinstance(error, httpx2.TimeoutException):
                self._cut(sent)
            raise
        self.answered = True
        request.extensions = {**request.extensions, "began": True}
        if response.status_code in TOO_MUCH:
            self._cut(sent)
            self._crowded(sent)
            self.shut(read_retry_after(response.headers), f"status {response.status_code}")
        if response.status_code in FAILED:
            self._failed(sent, f"status {response.status_code}")
        else:
            if self._failures >= FAILURES:
                logger.warning("the server of %s answers again", self._server)
            self._failures, self._pause = 0, 1.0
        if response.status_code < 400:
            self._crowded_since = None
            self._limit = min(self.most, self._limit + (1 if self._growing else 1 / self._limit))
        return response

    def _cut(self, sent: float) -> None:
        """Halve the limit, unless the request was sent before the last cut: it says nothing about the new limit."""
        if sent > self._last_cut:
            self._limit, self._growing, self._last_cut = max(1.0, self._limit / 2), False, time.monotonic()

    def _never_reached(self, sent: float, error: Exception, request: httpx2.Request) -> None:
        """Give up on a host that has not answered anything since the first try."""
        if self.answered or isinstance(error, httpx2.ReadTimeout | httpx2.WriteTimeout | httpx2.PoolTimeout):
            return
        self.unreached = sent if self.unreached is None else self.unreached
        if time.monotonic() - self.unreached + 1 > min(FIRST_PATIENCE, self.max_outage):
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            self.close(
                InputError(
                    f"the server of {self._server} never answered ({reason}); check base_url (host and port), and that "
                    f"the server runs"
                )
            )

    def _crowded(self, sent: float) -> None:
        """Give up on a server that has nothing but `too many requests` to say."""
        self._crowded_since = sent if self._crowded_since is None else self._crowded_since
        waited = time.monotonic() - self._crowded_since
        if waited > max(1.0, self.max_outage):
            self.close(
                InputError(
                    f"the server of {self._server} has answered nothing but `too many requests` for {waited:.0f} s, "
                    f"which is more than max_outage {self.max_outage:.0f} s. All responses are kept; lower concurrency "
                    f"or run again later{self._said()}"
                )
            )

    def _said(self) -> str:
        return f". It says: {self.words}" if self.words else ""

    def _failed(self, sent: float, reason: str) -> None:
        if self.unreached and not self.answered:  # it is given up much sooner
            return
        self._failures += 1
        self._down_since = sent if self._failures == 1 else self._down_since
        if self._failures < FAILURES:
            return
        if self._failures == FAILURES:
            logger.warning(
                "the server of %s fails (%s) %d times in a row: waiting up to %.0f s for it",
                *(self._server, reason, FAILURES, self.max_outage),
            )
        if self._failures == FAILURES or sent >= self._shut_until:  # ignores the others in flight
            self.shut(self._pause, reason)
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def shut(self, seconds: float, reason: str) -> None:
        """Send nothing for this long; give up on the server if it is down for longer than max_outage."""
        now = time.monotonic()
        self._shut_until = max(self._shut_until, now + seconds)
        down = now - self._down_since if self._failures >= FAILURES else 0.0
        if max(down, seconds) > self.max_outage:
            self.close(
                InputError(
                    f"the server of {self._server} has failed for {down:.0f} s ({reason}) and would have to rest for "
                    f"{seconds:.0f} s, which is more than max_outage {self.max_outage:.0f} s. All responses are kept; "
                    f"run again once it is back{self._said()}"
                )
            )


class _Body(httpx2.AsyncByteStream):
    """An answer's body, which may take no longer than the call, however slowly it drips, and have no end."""

    def __init__(self, inner: Any, end: float, request: httpx2.Request, release: Callable[[], Awaitable[None]]) -> None:
        self.inner, self.end, self.request, self.release = inner, end, request, release
        self.closed = False
        self.heard: list[bytes] = []
        request.extensions = {**request.extensions, "heard": self.heard}

    async def __aiter__(self) -> AsyncIterator[bytes]:
        size = 0
        async for piece in self.inner:
            size += len(piece)
            if time.monotonic() > self.end:
                raise httpx2.ReadTimeout("the answer took too long", request=self.request)
            if size > LARGEST_BODY:
                raise httpx2.RemoteProtocolError("the answer has no end", request=self.request)
            self.heard.append(piece)
            yield piece

    async def aclose(self) -> None:
        if not self.closed:
            self.closed = True
            try:
                await self.inner.aclose()
            finally:
                await self.release()


def read_retry_after(headers: Mapping[str, str]) -> float:
    """Seconds from now that a Retry-After header asks for, in seconds or as a date; 0 without one."""
    for name, unit in (("retry-after-ms", 1000.0), ("retry-after", 1.0)):
        text = (headers.get(name) or "").strip()
        with contextlib.suppress(ValueError):
            seconds = float(text) / unit
            return max(0.0, seconds) if math.isfinite(seconds) else 0.0
    try:
        moment = email.utils.parsedate_to_datetime(text)
    except (TypeError, ValueError, OverflowError):
        return 0.0
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
