"""The openai backend: any server with an OpenAI-compatible chat endpoint (`vllm serve`, llama.cpp, hosted APIs)."""

import asyncio
import hashlib
import ipaddress
import os
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any, cast
from urllib.parse import urlsplit

import openai

from persyn.chat import Message, without_control_text
from persyn.generation import Generation, Sampling, Teacher
from persyn.schemas import InputError

DRAIN_SECONDS = 30
"""How long calls in flight may still take once the run is told to stop: they are paid for."""
KINDS: dict[type[openai.APIError], str] = {
    openai.RateLimitError: "rate_limit",
    openai.APITimeoutError: "timeout",
    openai.APIConnectionError: "connection",
    openai.InternalServerError: "server",
    openai.APIStatusError: "refused",
}


class OpenAIBackend:
    """Concurrent calls, each retried by the client library (429, 5xx, timeouts, cut connections; Retry-After obeyed).

    An answer that is no answer (empty, or not in the API's form) is asked again too. See the Backend protocol.
    """

    def __init__(
        self,
        teacher: Teacher,
        *,
        base_url: str,
        api_key_env: str | None = None,
        concurrency: int = 16,
        max_attempts: int = 6,
        timeout: float = 600.0,
    ) -> None:
        """The speed knobs of this backend.

        Args:
            base_url: where the API is, ending in /v1 for most servers.
            api_key_env: name of the environment variable that holds the key. No key is sent where none is named.
            concurrency: calls in flight.
            max_attempts: calls a prompt before it counts as failed.
            timeout: seconds a call may take.

        Raises:
            InputError: an unsafe address, or a key that is not in the environment.
        """
        check_url(base_url)
        if concurrency < 1 or max_attempts < 1:
            raise InputError(f"concurrency is {concurrency}, max_attempts {max_attempts}; both must be 1 or more")
        if api_key_env and not os.environ.get(api_key_env):
            raise InputError(f"the environment variable {api_key_env} is not set; it must hold the key for {base_url}")
        self.teacher, self.concurrency, self.max_attempts = teacher, concurrency, max_attempts
        self.client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=os.environ[api_key_env] if api_key_env else "none",
            max_retries=max_attempts - 1,
            timeout=timeout,
            # A redirect could carry the key to another host: it is an error instead.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False),
        )

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield answers as they come. Told to stop (SIGINT, SIGTERM), it admits no more, yields what is in flight and
        then hands the signal on; so it does when the server says that no call can succeed.
        """
        positions = iter(range(len(conversations)))
        calls: dict[asyncio.Task[Generation], int] = {}
        refused: BaseException | None = None
        with asyncio.Runner() as runner, _Stop(runner.get_loop()) as stop:
            while True:
                while len(calls) < self.concurrency and not stop.signal and not refused:
                    position = next(positions, None)
                    if position is None:
                        break
                    answer = self._answer(conversations[position], keys[position], sampling)
                    calls[runner.get_loop().create_task(answer)] = position
                if not calls or stop.expired:
                    break
                done, _ = runner.run(asyncio.wait(calls, timeout=1.0, return_when=asyncio.FIRST_COMPLETED))
                answered = {calls.pop(call): call for call in done}
                refused = next(filter(None, (call.exception() for call in done)), refused)
                if any(not call.exception() for call in done):
                    yield {position: call.result() for position, call in answered.items() if not call.exception()}
            for call in calls:
                call.cancel()
            runner.run(self.client.close())
        if refused:
            raise refused

    async def _answer(self, conversation: Sequence[Message], key: str, sampling: Sampling) -> Generation:
        """One conversation's answer; a failure becomes an error row that says what kind it was."""
        drawn: dict[str, Any] = dict(sampling.drawn)
        if "seed" in drawn:
            drawn["seed"] = int.from_bytes(hashlib.sha256(f"{sampling.seed}:{key}".encode()).digest()[:4]) >> 1
        messages = [{**message, "content": without_control_text(message["content"])} for message in conversation]
        for _ in range(self.max_attempts):
            try:
                completion = await self.client.chat.completions.create(
                    model=self.teacher.model, messages=cast(Any, messages), max_tokens=sampling.max_tokens, **drawn
                )
                answer = read_completion(completion)
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise InputError(
                    f"{self.client.base_url} answers with status {error.status_code} to the model "
                    f"{self.teacher.model}; check that name, base_url, and the key in the variable api_key_env names"
                ) from None
            except openai.APIStatusError as error:  # its text may repeat what was sent, so it is not kept
                return _failed(error, f"status {error.status_code}")
            except openai.APIConnectionError as error:
                return _failed(error, type(error.__cause__ or error).__name__)
            except (openai.APIError, ValueError, AttributeError, TypeError, LookupError):
                answer = Generation(
                    "", "error", error="malformed: the body is not a chat completion that counts tokens"
                )
            if answer.response or (answer.error and not answer.error.startswith("malformed")):
                break
        return answer


def _failed(error: openai.APIError, reason: str) -> Generation:
    kind = next(kind for known, kind in KINDS.items() if isinstance(error, known))
    return Generation("", "error", error=f"{kind}: {reason}")


def read_completion(completion: Any) -> Generation:
    """An API answer as a Generation.

    Raises:
        AttributeError, TypeError, LookupError: it is not in the API's form, or counts no tokens.
    """
    choice, usage = completion.choices[0], completion.usage
    if choice.finish_reason not in ("stop", "length"):
        return Generation("", "error", error=f"{choice.finish_reason}: the answer is no text")
    return Generation(
        response=(choice.message.content or "").strip(),
        finish_reason=choice.finish_reason,
        num_prompt_tokens=int(usage.prompt_tokens),
        num_response_tokens=int(usage.completion_tokens),
    )


def check_url(base_url: str) -> None:
    """Refuse an address that would send prompts or a key in the clear, or that holds a password."""
    url = urlsplit(base_url)
    try:
        loopback = url.hostname == "localhost" or ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        loopback = False
    if url.username or url.password:
        raise InputError("base_url holds a user name or password; take it out and name api_key_env instead")
    if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and loopback)):
        raise InputError(
            f"base_url is {base_url!r}; it must be https://..., or http:// on this machine (a tunnel, say)"
        )


class _Stop:
    """Turns SIGINT and SIGTERM into a flag while the loop runs calls; afterwards hands the signal on."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop, self.signal, self.since = loop, 0, 0.0
        self.handlers: dict[int, Any] = {}

    @property
    def expired(self) -> bool:
        return bool(self.signal) and time.monotonic() - self.since > DRAIN_SECONDS

    def __enter__(self) -> "_Stop":
        on_main_thread = threading.current_thread() is threading.main_thread()  # the only one that gets signals
        for number in (signal.SIGINT, signal.SIGTERM) if on_main_thread else ():
            self.handlers[number] = signal.getsignal(number)
            self.loop.add_signal_handler(number, self._stop, number)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.handlers.items():
            self.loop.remove_signal_handler(number)
            signal.signal(number, handler)
        if self.signal:
            signal.raise_signal(self.signal)

    def _stop(self, number: int) -> None:
        self.signal, self.since = number, self.since or time.monotonic()
