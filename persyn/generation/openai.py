"""The openai backend: any server with an OpenAI-compatible chat endpoint (`vllm serve`, llama.cpp, hosted APIs)."""

import logging
import os
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, cast

from pydantic import Field

from persyn.chat import without_control_text
from persyn.errors import InputError
from persyn.generation import NAMED, BackendSpeed, Generation, Sampling, Teacher
from persyn.generation.addresses import Networks, Variables, check_url, headers_from
from persyn.generation.event_loop import Calls
from persyn.messages import Message
from persyn.thinking import split_thought

if TYPE_CHECKING:
    import openai


logger = logging.getLogger(__name__)


class OpenAISpeed(BackendSpeed):
    """Knobs of the backend openai: where the server is, and how it is called."""

    base_url: str | Annotated[list[str], Field(min_length=1)] = ""
    """Address of the API; for most servers it ends in /v1. A served teacher needs it. A list: several servers of the
    same model, which share the calls; while one is down, the others go on."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key. Without it, no key is sent."""
    headers_env: Variables = Field(default_factory=dict)
    """More headers of each call: name of the header -> name of the environment variable that holds its value."""
    allow_http: Networks = Field(default_factory=list)
    """Networks of your own (such as `10.0.0.0/8`) and names of hosts in them that may be reached by http, over which
    prompts, responses and keys can be read. Others must be https, or on this machine."""
    concurrency: Annotated[int, Field(ge=1)] = 256
    """Calls in flight at most, at each address; a run begins with fewer."""
    max_attempts: Annotated[int, Field(ge=1)] = 6
    """Calls for one prompt before it counts as failed."""
    timeout: Annotated[float, Field(gt=0)] = 600.0
    """Seconds a call may take."""
    max_outage: Annotated[float, Field(ge=0)] = 300.0
    """Seconds to wait for a server that is down or asks clients to wait."""

    @property
    def base_urls(self) -> list[str]:
        """The addresses, of which there may be several."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url


class OpenAIBackend:
    """Concurrent calls, each retried by the client library (429, 5xx, timeouts, cut connections; Retry-After obeyed).

    The number in flight adapts to the server, and a server that is down is waited for: see concurrency.py. An empty
    response, or one that is not in the API's form, is requested again too. See the Backend protocol.
    """

    Speed = OpenAISpeed
    takes = frozenset({*NAMED, "null", "extra_body", "host"})

    def __init__(self, teacher: Teacher, speed: OpenAISpeed) -> None:
        """Open a client of the server, or servers, at `speed.base_url`.

        Raises:
            InputError: no address, an unsafe one, or a key or header that is not in the environment.
        """
        import openai

        from persyn.generation.concurrency import Gate
        from persyn.generation.load_balancer import LoadBalancer

        key, urls = speed.api_key_env, speed.base_urls
        for url in urls:
            check_url(url, speed.allow_http)
        if key and not os.environ.get(key):
            raise InputError(f"the environment variable {key} is not set; it must hold the key for {', '.join(urls)}")
        self.teacher, self.max_attempts = teacher, speed.max_attempts
        limits = openai.DEFAULT_CONNECTION_LIMITS
        make_gate = partial(Gate, speed.concurrency, speed.max_outage, limits=limits)
        self.gate = make_gate() if len(urls) == 1 else LoadBalancer(make_gate, urls)
        self.calls = Calls()
        self.client = openai.AsyncOpenAI(
            base_url=urls[0],
            api_key=os.environ[key] if key else "none",
            default_headers=headers_from(speed.headers_env),
            max_retries=speed.max_attempts - 1,
            timeout=speed.timeout,
            # A redirect could carry the key to another host: it is an error instead.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, transport=self.gate),
        )

    def generate(
        self, conversations: Sequence[Sequence[Message]], keys: Sequence[str], sampling: Sampling
    ) -> Iterator[dict[int, Generation]]:
        """Yield responses as they come. When stopped, or when the server refuses every call, calls in flight are kept:
        see Calls.run.
        """
        asked = [self._guarded(conversation) for conversation in conversations]
        altered = sum(sent != list(given) for sent, given in zip(asked, conversations, strict=True))
        if altered:
            logger.warning(
                "%s: %d of %d conversations spell control text of chat templates; it is sent with an invisible "
                "character inside, because the server's tokenizer is not known here",
                *(self.teacher.model, altered, len(asked)),
            )
        return self.calls.run(
            len(asked),
            lambda position: self._respond(asked[position], keys[position], sampling),
            lambda: self.gate.limit,
            lambda: self.gate.trouble,
        )

    def close(self) -> None:
        """Close the connections."""
        self.calls.close(self.client.close())

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
    return {**body, **sampling.drawn_for(key), **sampling.more, **teacher.extra_body, **template}


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
