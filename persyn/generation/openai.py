"""The openai backend: any server with an OpenAI-compatible chat endpoint (`vllm serve`, llama.cpp, hosted APIs)."""

import ipaddress
import logging
import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Self, cast
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from persyn.chat import without_control_text
from persyn.errors import InputError
from persyn.generation import BackendSpeed, Generation, Sampling, Teacher
from persyn.generation.batches import Batches, BatchSpeed, Server
from persyn.generation.event_loop import Calls
from persyn.messages import Message
from persyn.settings import Misfit
from persyn.thinking import split_thought

if TYPE_CHECKING:
    import openai


logger = logging.getLogger(__name__)


class OpenAISpeed(BackendSpeed):
    """Knobs of the backend openai: where the server is, and how it is called."""

    base_url: str = ""
    """Address of the API; for most servers it ends in /v1. A served teacher needs it."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. Without it, no key is sent."""
    concurrency: Annotated[int, Field(ge=1)] = 256
    """Calls in flight at most; a run begins with fewer."""
    max_attempts: Annotated[int, Field(ge=1)] = 6
    """Calls for one prompt before it counts as failed."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a call may take."""
    max_outage: Annotated[float, Field(ge=0)] = 300.0
    """Seconds to wait for a server that is down or asks clients to wait."""
    batch: BatchSpeed | None = None
    """Ask in batches: about half the price, within a day (`{}` takes the defaults). null: one call for each prompt."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.batch and self.ray:
            raise Misfit(
                "batch", "is given beside ray, whose actors would each make batches of their own; leave one out"
            )
        return self


class OpenAIBackend:
    """Concurrent calls, each retried by the client library (429, 5xx, timeouts, cut connections; Retry-After obeyed).

    The number in flight adapts to the server, and a server that is down is waited for: see concurrency.py. An empty
    response, or one that is not in the API's form, is requested again too. See the Backend protocol.
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
        reading = self._body, read_completion, speed.max_outage, lambda: self.gate.trouble
        server = Server(self.client, self.calls, teacher.model, *reading)
        self._told = False
        self.batches = Batches(server, speed.batch)
        """The way to ask in batches, and to collect those of earlier runs."""

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield responses as they come. When stopped, or when the server refuses every call, calls in flight are kept:
        see Calls.run.
        """
        asked = [self._guarded(conversation) for conversation in conversations]
        altered = sum(sent != list(given) for sent, given in zip(asked, conversations, strict=True))
        if altered:
            self._tell_altered(f"{altered} of {len(asked)}")
        return self.calls.run(
            len(asked),
            lambda position: self._respond(asked[position], keys[position], sampling),
            lambda: self.gate.limit,
            lambda: self.gate.trouble,
        )

    def close(self) -> None:
        """Close the connections."""
        self.calls.close(self.client.close())

    def _body(self, conversation: Sequence[Message], key: str, sampling: Sampling) -> dict[str, Any]:
        """The body of a request in a batch."""
        sent = self._guarded(conversation)
        if sent != list(conversation) and not self._told:
            self._told = True
            self._tell_altered("some")
        return request_body(self.teacher, sent, key, sampling)

    def _tell_altered(self, which: str) -> None:
        logger.warning(
            "%s: %s conversations spell control text of chat templates; it is sent with an invisible character inside, "
            "because the server's tokenizer is not known here",
            *(self.teacher.model, which),
        )

    def _guarded(self, conversation: Sequence[Message]) -> list[Message]:
        """The conversation without control text, except in what the teacher's own entry says."""
        own = {
            self.teacher.system,
            *(text for shown in self.teacher.examples for text in (shown.prompt, shown.response)),
        }
        return [
            message if message["content"] in own else {**message, "content": without_control_text(message["content"])}
            for message in conversation
        ]

    async def _respond(self, conversation: Sequence[Message], key: str, sampling: Sampling) -> Generation:
        """The response to one conversation; a failure becomes an error that names its kind."""
        import openai

        body = request_body(self.teacher, conversation, key, sampling)
        model, messages = body.pop("model"), body.pop("messages")
        for _ in range(self.max_attempts):
            try:
                completion = await self.client.chat.completions.create(
                    model=model, messages=cast(Any, messages), extra_body=body
                )
                generation = read_completion(completion)
            except (openai.AuthenticationError, openai.NotFoundError) as error:
                raise InputError(
                    f"{self.client.base_url} responds with status {error.status_code} to the model "
                    f"{self.teacher.model}; check that name, base_url, and the key in the variable named by api_key_env"
                ) from None
            except openai.APIStatusError as error:  # its text may repeat the prompt, so it is not kept
                return _failed(error, f"status {error.status_code}")
            except openai.APIConnectionError as error:
                return _failed(error, type(error.__cause__ or error).__name__)
            except (openai.APIError, ValueError, AttributeError, TypeError, LookupError):
                generation = Generation(
                    "", "error", error="malformed: the body is not a chat completion that counts tokens"
                )
            said = generation.response or generation.reasoning
            if said or (generation.error and not generation.error.startswith("malformed")):
                break
        return generation


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


def request_body(
    teacher: Teacher, conversation: Sequence[Message], key: str, sampling: Sampling | None = None
) -> dict[str, Any]:
    """The body of the request for one response, the same whether it is sent alone or in a batch.

    Args:
        conversation: as it is sent, without control text.
        key: the request's, of which its seed is made.
        sampling: the teacher's own if None.
    """
    sampling = sampling or teacher.sampling
    template = {"chat_template_kwargs": teacher.template} if teacher.template else {}
    body = {"model": teacher.model, "messages": list(conversation), "max_tokens": sampling.max_tokens}
    return {**body, **sampling.drawn_for(key), **sampling.extra, **template}


def read_completion(completion: Any) -> Generation:
    """A completion of the API as a Generation.

    A server that knows its model's thoughts sends them apart; of any other, the content is split. A thought without
    content never closed.

    Raises:
        AttributeError, TypeError, LookupError: it is not in the API's form, or counts no tokens.
    """
    choice, usage = completion.choices[0], completion.usage
    if choice.finish_reason not in ("stop", "length"):
        return Generation("", "error", error=f"{choice.finish_reason}: the answer is no text")
    content, reasoning = choice.message.content or "", read_reasoning(choice.message)
    thought = split_thought(content, opened=None if reasoning is None else False)
    if thought.reasoning and thought.reasoning not in (reasoning or ""):  # some servers send it both ways
        reasoning = "\n\n".join(filter(None, (reasoning, thought.reasoning)))
    closed = thought.closed and bool(thought.answer or reasoning is None)
    return Generation(
        response=thought.answer,
        finish_reason=choice.finish_reason if closed else "length",
        num_prompt_tokens=int(usage.prompt_tokens),
        num_response_tokens=int(usage.completion_tokens),
        reasoning=reasoning,
    )


def read_reasoning(message: Any) -> str | None:
    """The thought that a server sends apart from the content, in whichever field it does; None if there is none."""
    for name in ("reasoning_content", "reasoning"):
        text = getattr(message, name, None)
        if isinstance(text, str) and text.strip():
            return text.strip()
    details = getattr(message, "reasoning_details", None)
    parts = [part for part in details if isinstance(part, dict)] if isinstance(details, list) else []
    texts = [text for part in parts if isinstance(text := part.get("text") or part.get("summary"), str)]
    return "\n\n".join(text.strip() for text in texts if text.strip()) or None


def check_url(base_url: str) -> None:
    """Refuse an address that would send prompts or a key unencrypted, or that holds a password."""
    url = urlsplit(base_url)
    try:
        loopback = url.hostname == "localhost" or ipaddress.ip_address(url.hostname or "").is_loopback
    except ValueError:
        loopback = False
    if not base_url:
        raise InputError("a served teacher has no address; set speed.openai.base_url, or base_url below speed.teachers")
    if url.username or url.password:
        raise InputError("base_url holds a user name or password; remove it and set api_key_env instead")
    if not url.hostname or not (url.scheme == "https" or (url.scheme == "http" and loopback)):
        raise InputError(
            f"base_url is {base_url!r}; it must be https://..., or http:// on this machine (a tunnel, say)"
        )
