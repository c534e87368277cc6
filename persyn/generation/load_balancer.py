"""Load balancer: several servers of one model as one. Each has a gate of its own (concurrency.py)."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Sequence

import httpx2

from persyn.errors import InputError
from persyn.generation.concurrency import FAILED, LONGEST_PAUSE, TOO_MUCH, Gate

LONGEST_REST = 8.0
"""Seconds for which a server rests that reports overload again and again."""
POLL = 0.1
"""Seconds until a request that no server can take now looks again."""
logger = logging.getLogger(__name__)


class LoadBalancer(httpx2.AsyncBaseTransport):
    """The transport of an httpx client, which sends each attempt to the server with the least load for its limit.

    A server that is down gets one request at a time, to see whether it is back; the others get the rest. One that says
    that it is overloaded rests, ever longer while it says so. A request that no server has taken (no connection, or
    overloaded) goes to another one at once. Of a server whose gate gives up, a new gate tries again later.
    """

    def __init__(self, make_gate: Callable[[str], Gate], urls: Sequence[str]) -> None:
        """`urls` are the base addresses of the servers; the client knows only the first."""
        self.urls = [httpx2.URL(url.rstrip("/")) for url in urls]
        self.gates, self._make_gate, self._retired = [make_gate(url) for url in urls], make_gate, list[Gate]()
        self._in_flight, self._overloads = Counter[int](), Counter[int]()
        self._rest_until = [0.0] * len(self.gates)
        self._lost: dict[int, InputError] = {}
        """The servers whose gates gave up, and that have not answered since."""
        self._told: set[int] = set()
        self._closed: InputError | None = None

    @property
    def answered(self) -> bool:
        """Whether any server has answered at all."""
        return any(gate.answered for gate in [*self.gates, *self._retired])

    @property
    def words(self) -> str:
        """What a server said when it last refused to work now."""
        return self.gates[0].words

    @words.setter
    def words(self, words: str) -> None:
        for gate in self.gates:
            gate.words = words

    @property
    def unreached(self) -> float | None:
        """When a host first failed, while none has answered yet."""
        return None if self.answered else next((gate.unreached for gate in self.gates if gate.unreached), None)

    @property
    def limit(self) -> int:
        """Requests that may be in flight now, at all servers together."""
        return sum(1 if gate.is_shut else gate.limit for gate in self.gates)

    @property
    def trouble(self) -> InputError | None:
        """Why no more requests are sent to any server."""
        if self._closed or len(self._lost) < len(self.gates):
            return self._closed
        return InputError(f"all {len(self.gates)} addresses are down; of the last: {list(self._lost.values())[-1]}")

    def close(self, why: InputError) -> None:
        """Send no more to any server: requests that wait fail with `why`; those that were sent are not touched."""
        self._closed = self._closed or why
        for gate in self.gates:
            gate.close(why)

    def shut(self, seconds: float, reason: str) -> None:
        """Nothing: a server that is overloaded rests by itself, and the others go on."""

    async def rest(self, seconds: float) -> None:
        """Wait, but no longer than until all servers are down.

        Raises:
            InputError: they are.
        """
        end = time.monotonic() + seconds
        while not self.trouble and (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, POLL))
        if self.trouble:
            raise self.trouble

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request as soon as a server can take it.

        Raises:
            InputError: all servers are down.
        """
        path = request.url.path.removeprefix(self.urls[0].path)
        tried: set[int] = set()
        while True:
            number = self._choose(tried)
            if number is None:
                await self.rest(POLL)
                continue
            tried.add(number)
            try:
                response = await self._send(number, path, request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout):
                self._tell(number)
                if self._choose(tried) is None:
                    raise
                continue
            except InputError:  # the gate closed while the request waited there
                if self.trouble:
                    raise self.trouble from None
                tried.discard(number)
                continue
            if response.status_code not in TOO_MUCH or self._choose(tried) is None:
                return response
            await response.aclose()

    async def aclose(self) -> None:
        """Close the connections."""
        for gate in [*self.gates, *self._retired]:
            await gate.aclose()

    def _choose(self, tried: set[int]) -> int | None:
        """The server that takes the next request. A failure counts like a request in flight: it repels others."""
        free = [
            number
            for number, gate in enumerate(self.gates)
            if number not in tried
            and gate.is_ready
            and self._in_flight[number] < gate.limit
            and time.monotonic() >= self._rest_until[number]
        ]
        return min(
            free, key=lambda n: (self._in_flight[n] + self.gates[n].failures) / self.gates[n].limit, default=None
        )

    async def _send(self, number: int, path: str, request: httpx2.Request) -> httpx2.Response:
        base, gate = self.urls[number], self.gates[number]
        request.url = request.url.copy_with(
            scheme=base.scheme, host=base.host, port=base.port, path=base.path.rstrip("/") + path
        )
        request.headers["host"] = base.netloc.decode("ascii")
        self._in_flight[number] += 1
        try:
            response = await gate.handle_async_request(request)
        finally:
            self._in_flight[number] -= 1
            self._note(number, gate)
        self._overloads[number] = self._overloads[number] + 1 if response.status_code in TOO_MUCH else 0
        if self._overloads[number]:
            rest = min(LONGEST_REST, 0.5 * 2 ** min(self._overloads[number], 10))
            self._rest_until[number] = time.monotonic() + rest
        elif response.status_code not in FAILED:
            self._lost.pop(number, None)
            self._told.discard(number)
        return response

    def _tell(self, number: int) -> None:
        """Log once, until it answers again, that a server is not there while another is."""
        others = set(range(len(self.gates))) - {number} - self._told
        if number not in self._told and not all(self.gates[other].is_shut for other in others):
            self._told.add(number)
            logger.warning("%s is down or overloaded; the other addresses get its requests", self.urls[number])

    def _note(self, number: int, gate: Gate) -> None:
        """Tell of a server that is down; put a new gate in the place of one that gave up."""
        if gate.is_shut:
            self._tell(number)
        if gate.trouble and gate is self.gates[number]:
            self._lost[number] = gate.trouble
            if not self.trouble:
                self._retired.append(gate)
                self.gates[number] = self._make_gate(str(self.urls[number]))
                self._rest_until[number] = time.monotonic() + LONGEST_PAUSE
