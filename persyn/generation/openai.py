"""The openai backend: any server with an OpenAI-compatible chat endpoint (`vllm serve`, llama.cpp, hosted APIs)."""

import ipaddress
import logging
import os
import time
from collections.abc import Iterator, Sequence
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import Field

from persyn.chat import without_control_text
from persyn.errors import InputError
from persyn.generation import BackendSpeed, Generation, Sampling, Teacher
from persyn.generation.attempts import Attempt, Lost, broken, hinted_seconds, pause, read_answer
from persyn.generation.completions import read_completion
from persyn.generation.event_loop import Calls
from persyn.generation.servers import CONNECTION, EMPTY, FEW_REFUSALS, LIMITS, MALFORMED, TIMEOUT, Action
from persyn.messages import Message

__all__ = ["OpenAIBackend", "OpenAISpeed", "check_url", "read_completion"]
ALONE = 2.0
"""Seconds after which other calls no longer wait for the first."""
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


class OpenAIBackend:
    """Concurrent calls. What each answer means, and whether it is asked again, stands in servers.py.

    The number in flight adapts to the server, and a server that is down is waited for: see concurrency.py. See the
    Backend protocol.
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
        self.limit_name, self.refused_names = LIMITS[0], set[str]()
        self.succeeded, self.shown, self.refusals, self.since = False, False, 0, 0.0
        self.client = openai.AsyncOpenAI(
            base_url=speed.base_url,
            api_key=os.environ[key] if key else "none",
            max_retries=0,  # `_respond` tries again, by the table of servers.py
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
            self._allowed,
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
        """The response to one conversation; a failure becomes a record that names its kind. What earlier calls for it
        cost is in it.

        Raises:
            InputError: no call can succeed, and none was paid for here.
        """
        lost, number = Lost(conversation), 0
        try:
            while True:
                attempt = await self._attempt(conversation, key, sampling)
                lost.add(attempt.usage)
                action = self._judge(attempt)
                if action == "rename":
                    continue
                number += self.gate.answered or (attempt.verdict is not None and attempt.verdict.case is TIMEOUT)
                if action != "again" or number >= self.max_attempts:
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

        body = request_body(self.teacher, conversation, key, sampling)
        body = {self.limit_name if name == LIMITS[0] else name: value for name, value in body.items()}
        secrets = [self.client.api_key] if self.client.api_key != "none" else []
        self.since = self.since or time.monotonic()
        try:
            answer = await self.client.post(
                "/chat/completions", body=body, cast_to=httpx2.Response, options={"security": {"bearer_auth": True}}
            )
        except openai.APIStatusError as error:
            answer = error.response
        except openai.APIConnectionError as error:
            return broken(error.__cause__ or error, began="began" in error.request.extensions)
        return read_answer(answer.status_code, answer.content, body, sampling.max_tokens, secrets)

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
            few = 1 if case.name == "error with status 200" else FEW_REFUSALS
            if not self.succeeded and self.refusals >= few:
                action = "stop"
        elif action in ("skip", "again") and case is not CONNECTION:
            self.succeeded = self.succeeded or action == "skip" or case is EMPTY
            self.shown = True
        if action in ("stop", "rename"):
            self.gate.close(self._stopping(attempt))
            assert self.gate.trouble is not None
            raise self.gate.trouble
        return action

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
        """Seconds until the next call for the same prompt. What asks all clients to wait shuts the gate."""
        assert attempt.verdict is not None
        case, said = attempt.verdict.case, attempt.verdict.said
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
        return InputError(
            f"{self.client.base_url} responds with status {attempt.status} to the model {self.teacher.model}{several}; "
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
    return {**body, **sampling.drawn_for(key), **sampling.extra, **template}


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
