"""The openai backend: any server with an OpenAI-compatible chat endpoint (`vllm serve`, llama.cpp, hosted APIs)."""

import logging
import os
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from persyn.chat import without_control_text
from persyn.errors import InputError
from persyn.generation import NAMED, BackendSpeed, Generation, Sampling, Teacher
from persyn.generation.addresses import Networks, Variables, check_url, headers_from
from persyn.generation.attempts import Attempt, Lost, broken, hinted_seconds, pause, read_answer
from persyn.generation.batches import Batches, BatchSpeed, Server
from persyn.generation.completions import read_completion
from persyn.generation.event_loop import Calls
from persyn.generation.servers import CONNECTION, EMPTY, FEW_REFUSALS, LIMITS, MALFORMED, TIMEOUT, Action
from persyn.messages import Message
from persyn.settings import Misfit

__all__ = ["OpenAIBackend", "OpenAISpeed", "check_url", "read_completion"]
ALONE = 2.0
"""Seconds after which other calls no longer wait for the first."""
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
    """Calls for one prompt before it counts as failed; one that meets a rate limit, or a server that still loads its
    model, waits up to `max_outage`."""
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
        if self.batch and len(self.base_urls) > 1:
            raise Misfit(
                "batch", "is given beside several addresses of base_url; a batch lives at one of them: name that one"
            )
        return self

    @property
    def base_urls(self) -> list[str]:
        """The addresses, of which there may be several."""
        return [self.base_url] if isinstance(self.base_url, str) else self.base_url


class OpenAIBackend:
    """Concurrent calls. What each answer means, and whether it is asked again, stands in servers.py.

    The number in flight adapts to the server, and a server that is down is waited for: see concurrency.py. See the
    Backend protocol.
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
        self.teacher, self.max_attempts, self.max_outage = teacher, speed.max_attempts, speed.max_outage
        make_gate = partial(Gate, speed.concurrency, speed.max_outage, teacher.model)
        self.gate, self.several = make_gate(urls[0]) if len(urls) == 1 else LoadBalancer(make_gate, urls), len(urls) > 1
        self.where = urls[0] if len(urls) == 1 else f"one of {', '.join(urls)}"
        self.calls = Calls()
        self.limit_name, self.refused_names = LIMITS[0], set[str]()
        self.succeeded, self.shown, self.refusals, self.since = False, False, 0, 0.0
        self.repeated = Counter[str]()
        """Kind of failure -> calls that were made again after it."""
        headers = headers_from(speed.headers_env)
        named = key or any(header.lower() == "authorization" for header in headers)
        hooks: Any = {} if named else {"request": [_without_key]}  # the client wants a key all the same
        self.secrets = [*headers.values(), *([os.environ[key]] if key else [])]
        self.client = openai.AsyncOpenAI(
            base_url=urls[0],
            api_key=os.environ[key] if key else "none",
            default_headers=headers,
            max_retries=0,  # `_respond` tries again, by the table of servers.py
            timeout=speed.timeout,
            # A redirect could carry the key to another host: it is an error instead.
            http_client=openai.DefaultAsyncHttpxClient(follow_redirects=False, transport=self.gate, event_hooks=hooks),
        )
        waiting = speed.max_outage, lambda: self.gate.trouble
        server = Server(self.client, self.calls, teacher.model, self._body, self._rename, self.secrets, *waiting)
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
            self._allowed,
            lambda: self.gate.trouble,
        )

    def close(self) -> None:
        """Close the connections, and tell how many calls failed on the way."""
        if self.repeated:
            logger.info(
                "%s: %d calls brought no response and were made again (%s)",
                *(self.teacher.model, self.repeated.total()),
                ", ".join(f"{kind} x {count}" for kind, count in self.repeated.most_common()),
            )
        self.calls.close(self.client.close())

    def _body(self, conversation: Sequence[Message], key: str, sampling: Sampling) -> dict[str, Any]:
        """The body of a request in a batch."""
        sent = self._guarded(conversation)
        if sent != list(conversation) and not self._told:
            self._told = True
            self._tell_altered("some")
        return self._named(request_body(self.teacher, sent, key, sampling))

    def _named(self, body: dict[str, Any]) -> dict[str, Any]:
        """The body with the token limit under the name that the server takes."""
        return {self.limit_name if name == LIMITS[0] else name: value for name, value in body.items()}

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
        """The response to one conversation; a failure becomes a record that names its kind. What earlier calls for it
        cost is in it.

        Raises:
            InputError: no call can succeed, and none was paid for here.
        """
        lost, number, began = Lost(conversation), 0, time.monotonic()
        try:
            while True:
                attempt = await self._attempt(conversation, key, sampling)
                lost.add(attempt.usage)
                action = self._judge(attempt)
                if action == "rename":
                    continue
                number += self.gate.answered or (attempt.verdict is not None and attempt.verdict.case is TIMEOUT)
                patient = self._is_patient(attempt) and time.monotonic() - began < self.max_outage
                if action != "again" or (number >= self.max_attempts and not patient):
                    return lost.added_to(attempt.generation)
                lost.add((attempt.generation.num_prompt_tokens, attempt.generation.num_response_tokens))
                await self.gate.rest(self._pause(attempt, number))
        except InputError:
            if not lost.usages:
                raise
            return lost.added_to(Generation("", "error", error="stopped: the run ended before there was a response"))

    async def _attempt(self, conversation: Sequence[Message], key: str, sampling: Sampling) -> Attempt:
        """One call."""
        import httpx2
        import openai

        body = self._named(request_body(self.teacher, conversation, key, sampling))
        self.since = self.since or time.monotonic()
        try:
            answer = await self.client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response, options={"security": {"bearer_auth": True}}
            )
        except openai.APIStatusError as error:
            answer = error.response
        except openai.APIConnectionError as error:
            heard = b"".join(error.request.extensions.get("heard", ()))
            whole = read_answer(200, heard, body, sampling.max_tokens, self.secrets)
            if whole.verdict is None:  # all of it came before the connection broke
                return whole
            return broken(error.__cause__ or error, began="began" in error.request.extensions)
        content = answer.content
        if answer.has_redirect_location:
            content = redirect_words(answer.request.url, answer.headers["location"])
        attempt = read_answer(answer.status_code, content, body, sampling.max_tokens, self.secrets)
        return replace(attempt, address=base_of(answer.request.url)) if self.several and attempt.verdict else attempt

    def _judge(self, attempt: Attempt) -> Action | None:
        """What follows from an attempt for this call and all others; None: it is a response.

        Raises:
            InputError: no call can succeed.
        """
        if attempt.verdict is None:
            self.succeeded = True
            return None
        case, action = attempt.verdict.case, attempt.verdict.case.action
        if action == "rename" and self._rename(attempt.verdict.parameter):
            return action
        if case is MALFORMED or action == "refuse":
            self.refusals += 1
            if not self.succeeded and self.refusals >= FEW_REFUSALS:
                action = "stop"
        elif action in ("skip", "again") and case is not CONNECTION:
            self.succeeded = self.succeeded or action == "skip" or case is EMPTY
            self.shown = True
        if action in ("stop", "rename"):
            self.gate.close(self._stopping(attempt))
            assert self.gate.trouble is not None
            raise self.gate.trouble
        return action

    def _is_patient(self, attempt: Attempt) -> bool:
        """Whether a call is refused only for now, so that its prompt waits as long as it would for a server that is
        down: by a rate limit, or by a server that still loads its model.
        """
        kind = attempt.verdict.case.kind if attempt.verdict else ""
        return kind == "rate_limit" or (attempt.status == 503 and not self.succeeded)

    def _rename(self, used: str) -> bool:
        """Take the other name for the token limit; False if both are refused."""
        if used == self.limit_name:
            self.refused_names.add(used)
            left = [name for name in LIMITS if name not in self.refused_names]
            if not left:
                return False
            self.limit_name = left[0]
            logger.info("%s: the server refuses %s; it gets %s instead", self.teacher.model, used, self.limit_name)
        return True

    def _pause(self, attempt: Attempt, number: int) -> float:
        """Seconds until the next call for the same prompt, which is counted. What asks all clients to wait shuts the
        gate.
        """
        assert attempt.verdict is not None
        case, said = attempt.verdict.case, attempt.verdict.said
        self.repeated[case.kind] += 1
        if case.kind in ("rate_limit", "server"):
            self.gate.words = said.told()
        if case.kind == "rate_limit" and (seconds := hinted_seconds(said.words)):
            self.gate.shut(seconds, f"status {attempt.status}")
        if case in (EMPTY, MALFORMED):
            return 0.0
        return pause(max(1, number)) if self.gate.answered else 1.0

    def _stopping(self, attempt: Attempt) -> InputError:
        """Why the run ends, in the server's words."""
        verdict = attempt.verdict
        assert verdict is not None
        about = f"the parameter {verdict.parameter} is refused: " if verdict.case.needs and verdict.parameter else ""
        cure = verdict.case.cure
        if verdict.case.action == "rename":
            cure = f"it takes a limit on tokens neither as {' nor as '.join(LIMITS)}"
        several = f" {self.refusals} times and to nothing else" if self.refusals > 1 else ""
        told = verdict.said.told()
        where = attempt.address or self.where
        if self.refusals > 1 and self.several:  # not all are of this address
            where = f"{self.where} (the last: {where})"
        return InputError(
            f"{where} responds with status {attempt.status} to the model {self.teacher.model}{several}; "
            f"{about}{cure}. {f'It says: {told}. ' if told else ''}All responses are kept"
        )

    def _allowed(self) -> int:
        """Calls in flight: one until the server has shown that it takes the request, or has taken its time. So what no
        call can survive is said once, not by all that would be in flight.
        """
        waited = time.monotonic() - self.since if self.since else 0.0
        patient = waited > ALONE and not self.refusals and not self.gate.unreached
        return self.gate.limit if self.succeeded or self.shown or patient else 1


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


def base_of(url: Any) -> str:
    """The address of a server, as base_url has it, of the url that a call went to; without user and query, which may
    hold secrets.
    """
    return str(url.copy_with(userinfo=b"", query=None, fragment=None)).removesuffix("/chat/completions")


def redirect_words(url: Any, location: str) -> bytes:
    """Where a redirect leads, as the words of its body: its own is a page for browsers, or empty."""
    import httpx2

    try:
        return f"redirects to {base_of(url.join(location))}".encode()
    except httpx2.InvalidURL:
        return b"redirects to what is no address"


async def _without_key(request: Any) -> None:
    """Send no key where none was named."""
    request.headers.pop("authorization", None)
