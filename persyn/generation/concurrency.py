"""Concurrency: as many requests as a server can bear, and none while it is down.

The limit grows with every response and is halved when the server reports overload (additive increase, multiplicative
decrease, as in TCP; Chiu and Jain 1989). After FAILURES failures in a row the circuit breaker opens (Nygard, Release
It!): one request at a time is tried, after ever longer pauses, until one succeeds.
"""

import asyncio
import logging
import time
from typing import Any

import httpx2

from persyn.errors import InputError

START = 8
"""The first limit. It doubles with every round of responses until the server first reports overload."""
TOO_MUCH = {429, 503, 529}
FAILED = {500, 502, 503, 504, 529}
FAILURES = 8
LONGEST_PAUSE = 30.0
"""Seconds between two attempts at a server that is down."""
logger = logging.getLogger(__name__)


class Gate(httpx2.AsyncHTTPTransport):
    """The transport of an httpx client: every attempt of every call goes through it."""

    def __init__(self, most: int, max_outage: float, **transport: Any) -> None:
        """Let at most `most` requests through at once; give up on a server that fails for `max_outage` seconds."""
        super().__init__(**transport)
        self.most, self.max_outage = most, max_outage
        self._limit, self._growing, self._last_cut = float(min(most, START)), True, 0.0
        self._shut_until = 0.0
        self._failures, self._down_since, self._pause, self._turn = 0, 0.0, 1.0, asyncio.Lock()
        self.trouble: InputError | None = None
        """Why no more requests are sent to the server."""

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

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request as soon as the limit allows it."""
        await asyncio.sleep(self._shut_until - time.monotonic())
        while self._failures >= FAILURES:
            async with self._turn:
                if self._failures >= FAILURES:
                    await asyncio.sleep(self._shut_until - time.monotonic())
                    return await self._send(request)
        return await self._send(request)

    async def _send(self, request: httpx2.Request) -> httpx2.Response:
        sent = time.monotonic()
        try:
            response = await super().handle_async_request(request)
        except httpx2.TransportError as error:
            self._failed(sent, type(error).__name__)
            if isinstance(error, httpx2.TimeoutException):
                self._cut(sent)
            raise
        if response.status_code in TOO_MUCH:
            self._cut(sent)
            self._shut(_seconds(response.headers.get("retry-after")), f"status {response.status_code}")
        if response.status_code in FAILED:
            self._failed(sent, f"status {response.status_code}")
        else:
            if self._failures >= FAILURES:
                logger.warning("%s answers again", request.url.host)
            self._failures, self._pause = 0, 1.0
        if response.status_code < 400:
            self._limit = min(self.most, self._limit + (1 if self._growing else 1 / self._limit))
        return response

    def _cut(self, sent: float) -> None:
        """Halve the limit, unless the request was sent before the last cut: it says nothing about the new limit."""
        if sent > self._last_cut:
            self._limit, self._growing, self._last_cut = max(1.0, self._limit / 2), False, time.monotonic()

    def _failed(self, sent: float, reason: str) -> None:
        self._failures += 1
        self._down_since = sent if self._failures == 1 else self._down_since
        if self._failures < FAILURES:
            return
        if self._failures == FAILURES:
            logger.warning(
                "the server fails (%s) %d times in a row: waiting up to %.0f s for it",
                reason,
                FAILURES,
                self.max_outage,
            )
        if self._failures == FAILURES or sent >= self._shut_until:  # ignores the others in flight
            self._shut(self._pause, reason)
            self._pause = min(LONGEST_PAUSE, 2 * self._pause)

    def _shut(self, seconds: float, reason: str) -> None:
        """Send nothing for this long; give up on the server if it is down for longer than max_outage."""
        now = time.monotonic()
        self._shut_until = max(self._shut_until, now + seconds)
        down = now - self._down_since if self._failures >= FAILURES else 0.0
        if max(down, seconds) > self.max_outage:
            self.trouble = InputError(
                f"the server has failed for {down:.0f} s ({reason}) and would have to rest for {seconds:.0f} s, which "
                f"is more than max_outage {self.max_outage:.0f} s. All responses are kept; run again once it is back"
            )


def _seconds(retry_after: str | None) -> float:
    """The Retry-After header in seconds; 0 if it is missing or a date (the client library obeys dates)."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0
