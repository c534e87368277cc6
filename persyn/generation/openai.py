"""The openai backend: any server with an OpenAI-compatible chat endpoint (`vllm serve`, llama.cpp, hosted APIs)."""

import ipaddress
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, cast
from urllib.parse import urlsplit

from pydantic import Field

from persyn.chat import Message, without_control_text
from persyn.errors import InputError
from persyn.generation import BackendSpeed, Generation, Sampling, Teacher
from persyn.generation.event_loop import Calls

if TYPE_CHECKING:
    import openai


class OpenAISpeed(BackendSpeed):
    """Knobs of the backend openai: where the server is, and how many calls it gets."""

    base_url: str = ""
    """Where the API is, ending in /v1 for most servers. A served teacher needs it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. No key is sent where none is named."""
    concurrency: Annotated[int, Field(ge=1)] = 256
    """The most calls in flight; it begins with fewer."""
    max_attempts: Annotated[int, Field(ge=1)] = 6
    """Calls a prompt before it counts as failed."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a call may take."""
    max_outage: Annotated[float, Field(ge=0)] = 300.0
    """Seconds to wait for a server that is down, or asks to be left alone."""


class OpenAIBackend:
    """Concurrent calls, each retried by the client library (429, 5xx, timeouts, cut connections; Retry-After obeyed).

    How many are in flight adapts to what the server bears, and a server that is down is waited for: see gate.py. An
    answer that is no answer (empty, or not in the API's form) is asked again too. See the Backend protocol.
    """

    Speed = OpenAISpeed

    def __init__(self, teacher: Teacher, speed: OpenAISpeed) -> None:
        """Open a client of the server at `speed.base_url`.

        Raises:
            InputError: no address, an unsafe one, or a key that is not in the environment.
        """
        import openai

        from persyn.generation.concurrency import Gate

        key = speed.api_key_env
        check_url(speed.base_url)
        if key and not os.environ.get(key):
            raise InputError(f"the environment variable {key} is not set; it must hold the key for {speed.base_url}")
        self.teacher, self.max_attempts = teacher, speed.max_attempts
        self.gate = Gate(speed.concurrency, speed.max_outage, limits=openai.DEFAULT_CONNECTION_LIMITS)
        self.calls = Calls()
        self.client = openai.AsyncOpenAI(
            base_url=speed.base_url,
            api_key=os.environ[key] if key else "none",
            max_retries=speed.max_attempts - 1,
            timeout=speed.timeout,
            # A redirect could carry the key to another host: it is an error instead.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, transport=self.gate),
        )

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield answers as they come. Told to stop, or where the server refuses every call, it keeps what is in flight:
        see Calls.run.
        """
        return self.calls.run(
            len(conversations),
            lambda position: self._answer(conversations[position], keys[position], sampling),
            lambda: self.gate.limit,
            lambda: self.gate.trouble,
        )

    def close(self) -> None:
        """Close the connections."""
        self.calls.close(self.client.close())

    async def _answer(self, conversation: Sequence[Message], key: str, sampling: Sampling) -> Generation:
        """One conversation's response; a failure becomes an error row that says what kind it was."""
        import openai

        drawn = sampling.drawn_for(key)
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


def _failed(error: "openai.APIError", reason: str) -> Generation:
    import openai

    kinds: dict[type[openai.APIError], str] = {
        openai.RateLimitError: "rate_limit",
        openai.APITimeoutError: "timeout",
        openai.APIConnectionError: "connection",
        openai.InternalServerError: "server",
        openai.APIStatusError: "refused",
    }
    kind = next(kind for known, kind in kinds.items() if isinstance(error, known))
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
    if not base_url:
        raise InputError("a served teacher has no address; give it as speed.openai.base_url, or below speed.teachers")
    if url.username or url.password:
        raise InputError("base_url holds a user name or password; take it out and name api_key_env instead")
    if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and loopback)):
        raise InputError(
            f"base_url is {base_url!r}; it must be https://..., or http:// on this machine (a tunnel, say)"
        )
