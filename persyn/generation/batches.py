"""Batches: a served teacher's requests through the OpenAI Batch API: within a day or so, at about half the price.

A batch is a file of requests that the server works off when it has time. It is paid for, and goes on, whatever becomes
of this process; so each is noted beside the store before it is made (batch_notes.py), and the next run collects it.
Between "the server made the batch" and "we noted its name" a process can die: the next one then looks for it in the
server's list, by its input file, which no other batch has.
"""

import asyncio
import json
import logging
import time
from collections import Counter
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from persyn.errors import InputError
from persyn.generation import Generation, Sampling
from persyn.generation.attempts import Attempt, Lost, read_answer
from persyn.generation.batch_notes import FOLDER, Note, new_note, open_notes
from persyn.generation.event_loop import Calls
from persyn.generation.servers import LIMITS
from persyn.generation.wording import shorten, visible_words
from persyn.messages import Message
from persyn.settings import Settings

ENDPOINT = "/v1/chat/completions"
ENDED = ("completed", "failed", "expired", "cancelled")
UNDONE = ("batch_expired", "batch_cancelled")
"""Codes of lines that the server did not get to."""
QUEUE_FULL = "token_limit_exceeded"
TRIES = 3
"""Of a line that failed at the server, of a download that is cut, and of making a batch."""
FIRST_WORD = 10.0
"""Seconds in which a server must have answered once; after that, `max_outage` counts."""
MOST_ROWS = 1000
"""Results that are put into the store at a time."""
logger = logging.getLogger(__name__)


Window = Annotated[
    str, Field(pattern=r"^[1-9][0-9]*[hd]$", json_schema_extra={"x-needed": "hours or days, such as 24h or 7d"})
]


class BatchSpeed(Settings):
    """Batches of the OpenAI Batch API, instead of one call for each prompt: cheaper, and done within the window."""

    max_requests: Annotated[int, Field(ge=1, le=50_000)] = 50_000
    """Requests of a batch at most. More are split. Lower it where the server queues fewer tokens for your account."""
    max_megabytes: Annotated[float, Field(gt=0)] = 200.0
    """Size of a batch's file at most."""
    poll_seconds: Annotated[float, Field(gt=0)] = 60.0
    """Seconds between two looks at a batch."""
    completion_window: Window = "24h"
    """Time that the server may take. OpenAI knows only 24h."""


@dataclass(frozen=True)
class Server:
    """A model behind a server, as the openai backend knows it."""

    client: Any
    """An openai.AsyncOpenAI."""
    calls: Calls
    """The loop that the client runs on."""
    model: str
    body: Callable[[Sequence[Message], str, Sampling], dict[str, Any]]
    """(conversation, key, sampling) -> the body of the request."""
    rename: Callable[[str], bool]
    """Takes another name for the token limit than the refused one; False if there is none."""
    secrets: Sequence[str]
    """What no message may show."""
    max_outage: float
    """Seconds to wait for a server that is down."""
    trouble: Callable[[], Exception | None]
    """Why no call makes sense any more."""


@dataclass(frozen=True)
class Job:
    """What the side of the store wants."""

    folder: Path
    """The teacher's part of the store."""
    conversations: Mapping[str, Sequence[Message]]
    """By the key of the request."""
    sampling: Sampling
    unanswered: Callable[[], list[str]]
    """The keys for which the store has no response now."""
    wave: Callable[[list[str]], list[str]]
    """Those of the keys, from the first on, that the budget allows now."""
    unlimited: bool
    """Whether there is no budget."""


@dataclass(frozen=True)
class Collected:
    """Results of one batch."""

    batch: str
    max_tokens: int
    """Of its requests."""
    generations: Mapping[str, Generation]
    """By the key of the request, which may be one that is not asked for any more."""


@dataclass
class _Run:
    """The state of one run of `generate`."""

    job: Job
    out: list[Note]
    """Batches at the server, held by this process."""
    given_up: set[str] = field(default_factory=set)
    """Keys that failed, and are not asked again in this run."""
    held: bool = False
    """Whether requests wait for the end of batches that are out."""
    tries: Counter[str] = field(default_factory=Counter)


class _Told(Exception):
    """SIGINT or SIGTERM came."""


class Batches:
    """The batches of one teacher at one server."""

    def __init__(self, server: Server, speed: BatchSpeed | None) -> None:
        """Make no call yet. Without `speed`, no batch is made, and only those that have ended are collected."""
        self.server, self.model, self.base_url = server, server.model, str(server.client.base_url)
        self.client = server.client.with_options(max_retries=0)  # a retry could make a second batch
        self.speed, self.makes, self.answered = speed or BatchSpeed(), speed is not None, False

    def generate(self, job: Job) -> Iterator[Collected]:
        """Submit what is neither answered nor at the server, wait, and yield all results, each batch's as it ends.

        Results of earlier runs' batches are yielded too; a batch with no request of this job is not waited for. The
        consumer must store what is yielded before it asks for more: the batch counts as collected then.

        Raises:
            InputError: the server refuses the batches, or is down for too long. Other batches stay at the server.
        """
        run = _Run(job, [])
        with self.server.calls.listen() as self.stop, self._bar() as bar:
            try:
                self._resume(run)
                self._submit(run)
                while True:
                    ended = self._look(run, bar)
                    for note, batch in ended:
                        yield from self._collect(run, note, batch)
                    self._raise_failures(run, ended)
                    if any(batch.status != "failed" for _, batch in ended) or (ended and not run.out):
                        self._submit(run)
                    if not (run.held and run.out) and not self._waits_for(run):
                        break
                    self._sleep(self.speed.poll_seconds)
            except _Told:
                pass
            finally:
                self._tell_rest(run)
                for note in run.out:
                    note.release()

    def _waits_for(self, run: _Run) -> bool:
        """Whether a batch at the server has requests of this job.

        Raises:
            InputError: it has, and batches are turned off: the same would be asked, and paid for, a second time.
        """
        wanted = [note for note in run.out if not run.job.conversations.keys().isdisjoint(note.keys)]
        if wanted and not self.makes:
            raise InputError(
                f"{sum(len(note.keys) for note in wanted)} requests of {self.model} are in batches at {self.base_url}: "
                f"set speed.openai.batch to wait for them; or, to pay for them again, delete {wanted[0].path}"
            )
        return bool(wanted)

    def _tell_rest(self, run: _Run) -> None:
        if run.out:
            logger.warning(
                "%s: %d batches of %d requests stay at %s, which goes on with them; run again to collect them",
                *(self.model, len(run.out), sum(len(note.keys) for note in run.out), self.base_url),
            )

    def _bar(self) -> "tqdm[Any]":
        return tqdm(total=0, desc=f"batches of {self.model}", unit="request", leave=False, disable=not self.makes)

    # Making batches

    def _resume(self, run: _Run) -> None:
        """Take the batches of earlier runs, but for those that another process has."""
        for note in open_notes(run.job.folder / FOLDER):
            if note.base_url != self.base_url:
                logger.warning(
                    "%d requests of %s are in a batch at another server, %s (%s); those that are made here too are "
                    "paid for again",
                    *(len(note.keys), self.model, note.base_url, note.path),
                )
                continue
            if not note.hold(wait=False):
                if run.job.conversations.keys().isdisjoint(note.keys):
                    continue
                logger.warning("waiting for another process that collects the batch %s", note.batch or note.name)
                if not note.hold(wait=True):
                    continue
            run.out.append(note)  # released whatever happens
            if note.state == "creating":
                if found := self._find(note):
                    note.save(state="out", batch=found)
                else:
                    self._call("delete a file", partial(self._delete, note))
            if note.state != "out":
                run.out.remove(note)
                note.drop()

    def _submit(self, run: _Run) -> None:
        """Make batches of what is open, as far as the budget allows. With a budget, nothing else may be out then:
        what that will cost is not known yet.
        """
        if not self.makes:
            return
        busy = {key for note in run.out for key in note.keys} | run.given_up
        free = [key for key in run.job.unanswered() if key not in busy]
        may = bool(free) and (run.job.unlimited or not run.out)
        keys = run.job.wave(free) if may else []
        run.held = len(keys) < len(free)
        if may and run.held:
            logger.info(
                "%s: budget.max_tokens allows %d of %d requests for sure; the rest follows once their tokens are known",
                *(self.model, len(keys), len(free)),
            )
        for chunk, data in self._files(run.job, keys):
            note = new_note(run.job.folder / FOLDER, self.base_url, self.model, run.job.sampling.max_tokens, chunk)
            run.out.append(note)
            try:
                self._create(note, data)
            except InputError:
                if note.state == "noted":
                    run.out.remove(note)
                    note.drop()
                raise
            logger.info("%s: batch %s has %d requests", self.model, note.batch, len(chunk))

    def _files(self, job: Job, keys: Sequence[str]) -> Iterator[tuple[list[str], bytes]]:
        """The requests as the content of input files."""
        chunk, data = list[str](), bytearray()
        for key in keys:
            body = self.server.body(job.conversations[key], key, job.sampling)
            asked = {"custom_id": key, "method": "POST", "url": ENDPOINT, "body": body}
            line = json.dumps(asked).encode() + b"\n"
            full = len(chunk) == self.speed.max_requests or len(data) + len(line) > self.speed.max_megabytes * 1e6
            if chunk and full:
                yield chunk, bytes(data)
                chunk, data = [], bytearray()
            chunk.append(key)
            data += line
        if chunk:
            yield chunk, bytes(data)

    def _create(self, note: Note, data: bytes) -> None:
        """Upload the file and make a batch of it: exactly one, whatever fails."""
        import openai

        name = f"{note.name}.jsonl"
        sent = self._call("take a file", lambda: self.client.files.create(file=(name, data), purpose="batch"))
        note.save(file=sent.id, state="creating")
        asked = {"input_file_id": note.file, "endpoint": ENDPOINT, "metadata": {"persyn": note.name}}
        window = self.speed.completion_window
        for number in range(TRIES):
            if note.state != "creating":
                note.save(state="creating")
            try:
                made = self._run(self.client.batches.create(completion_window=window, **asked), drain=True)
                note.save(batch=made.id, state="out")
                return self._cancel_others(note) if number else None
            except (openai.APIConnectionError, openai.InternalServerError):  # it may be made nevertheless
                if found := self._find(note):
                    return note.save(batch=found, state="out")
            except openai.RateLimitError as error:
                note.save(state="noted")
                if _code(error) == "insufficient_quota":
                    raise self._refused("make a batch", error) from None
                self._sleep(self.speed.poll_seconds)
            except openai.APIStatusError as error:
                note.save(state="noted")
                raise self._refused("make a batch", error) from None
        raise InputError(f"{self.base_url} makes no batch for {self.model} after {TRIES} tries; run again later")

    def _cancel_others(self, note: Note) -> None:
        """Cancel what an earlier try made after all, and the list showed too late."""
        for name in self._call("list batches", lambda: self._search(note)):
            if name != note.batch:
                logger.warning("%s: %s was made twice, and %s is cancelled", self.model, note.batch, name)
                self._call("cancel a batch", partial(self.client.batches.cancel, name))

    def _find(self, note: Note) -> str:
        """The server's name of a batch that was perhaps made, looked for twice; empty if it was not."""
        for look in range(2):
            if look:
                self._sleep(self.speed.poll_seconds)  # a list may lag behind
            if found := self._call("list batches", lambda: self._search(note)):
                return str(found[0])
        return ""

    async def _search(self, note: Note) -> list[str]:
        """The server's names of the batches of this note's file."""
        return [
            batch.id
            async for batch in self.client.batches.list(limit=100)
            if batch.input_file_id == note.file or (batch.metadata or {}).get("persyn") == note.name
        ]

    async def _delete(self, note: Note) -> None:
        """Delete the file of a batch that was not made, so that a call that is still on its way makes none."""
        import openai

        try:
            await self.client.files.delete(note.file)
        except openai.APIStatusError as error:
            logger.info("%s: the file %s is not deleted: %s", self.model, note.file, _reason(error))

    # Waiting

    def _look(self, run: _Run, bar: "tqdm[Any]") -> list[tuple[Note, Any]]:
        """The batches that have ended, with what the server says of them. They are `out` no longer."""
        ended, done = [], 0
        for note in list(run.out):
            batch = self._call(
                f"look at {note.batch} (to forget it, delete {note.path})", partial(self._retrieve, note)
            )
            counts = batch.request_counts
            done += (counts.completed + counts.failed) if counts else 0
            if batch.status in ENDED:
                ended.append((note, batch))
        bar.total, bar.n = sum(len(note.keys) for note in run.out), done
        bar.refresh()
        return ended

    async def _retrieve(self, note: Note) -> Any:
        return await self.client.batches.retrieve(note.batch)

    def _raise_failures(self, run: _Run, ended: Sequence[tuple[Note, Any]]) -> None:
        """Raise the reason of batches that the server refused as a whole. One that only found the queue full waits for
        the others.
        """
        failed = [(note, batch) for note, batch in ended if batch.status == "failed"]
        for note, batch in failed:
            errors = list(batch.errors.data or []) if batch.errors else []
            codes = [error.code for error in errors]
            if QUEUE_FULL in codes and (run.out or len(failed) < len(ended)):
                run.held = True
                continue
            words = (_words(error.code, error.message, self.server.secrets, error.line) for error in errors[:3])
            said = "; ".join(words) or "no reason given"
            cure = (
                "lower speed.openai.batch.max_requests, or wait for your other batches"
                if QUEUE_FULL in codes
                else "nothing of it was paid for; correct that and run again"
            )
            raise InputError(f"{self.base_url} refused the batch {note.batch} of {self.model} ({said}); {cure}")

    # Collecting

    def _collect(self, run: _Run, note: Note, batch: Any) -> Iterator[Collected]:
        """Yield what the batch brought; then it is ended."""
        found, lines = self._read_files(run.job, note, batch)
        again = set()
        for key in [*(key for key, one in found.items() if one.error), *(set(note.keys) - set(found))]:
            run.tries[key] += 1
            kind = found[key].error.partition(":")[0] if key in found else "undone"
            retried = kind in ("server", "rate_limit", "timeout", "renamed") and run.tries[key] < TRIES
            if retried or (kind == "undone" and self._brings_more(batch, lines)):
                again.add(key)
            elif key not in found:
                found[key] = Generation("", "error", error=_undone(batch.status))
        if batch.status != "failed":
            asked = run.job.conversations
            shown = {
                key: one
                for key, one in found.items()
                if key not in again and (key in asked or not one.error or _paid(one))
            }
            run.given_up |= {key for key, one in shown.items() if one.error}
            items = list(shown.items())
            for start in range(0, len(items), MOST_ROWS):
                yield Collected(note.batch, note.max_tokens, dict(items[start : start + MOST_ROWS]))
        run.out.remove(note)
        brought = sum(not one.error for one in found.values())
        level = logging.INFO if brought == len(note.keys) else logging.WARNING
        said = f"batch {note.batch} is {batch.status}: {brought} of {len(note.keys)} requests have a response"
        logger.log(level, "%s: %s", self.model, said)
        note.end(f"{batch.status}: {brought} of {len(note.keys)}")

    def _brings_more(self, batch: Any, lines: int) -> bool:
        """Whether the rest of a batch is worth another one: it ran out of time, not out of luck."""
        return batch.status == "expired" and lines > 0

    def _read_files(self, job: Job, note: Note, batch: Any) -> tuple[dict[str, Generation], int]:
        """The results by key, and the number of lines with a response. A file that is cut is read again."""
        found: dict[str, Generation] = {}
        odd = Counter[str]()
        counts = batch.request_counts
        for number in range(TRIES):
            if number:
                self._sleep(min(1.0, self.speed.poll_seconds))
            found.clear()
            odd.clear()
            for file in filter(None, (batch.output_file_id, batch.error_file_id)):
                self._read_lines(self._download(file), job, note, found, odd)
            if not odd["unreadable"] and (not counts or len(found) >= min(counts.completed, len(note.keys))):
                break
        for kind, count in odd.items():
            logger.warning("%s: batch %s has %d %s lines", self.model, note.batch, count, kind)
        return found, sum(not one.error for one in found.values())

    def _read_lines(self, data: bytes, job: Job, note: Note, found: dict[str, Generation], odd: Counter[str]) -> None:
        keys = set(note.keys)
        for text in data.splitlines():
            try:
                line = json.loads(text)
                key = line["custom_id"]
                known = key in keys
            except (ValueError, TypeError, LookupError):
                odd["unreadable"] += bool(text.strip())
                continue
            if not known:
                odd["unknown"] += 1
            elif key in found and not found[key].error:
                odd["repeated"] += 1
            elif attempt := read_line(line, job.conversations.get(key, ()), note.max_tokens, self.server.secrets):
                verdict = attempt.verdict
                renamed = (
                    verdict is not None and verdict.case.action == "rename" and self.server.rename(verdict.parameter)
                )
                found[key] = (
                    replace(attempt.generation, error="renamed: the token limit") if renamed else attempt.generation
                )

    def _download(self, file: str) -> bytes:
        import openai

        async def content() -> bytes:
            try:
                return bytes((await self.client.files.content(file)).content)
            except openai.NotFoundError:
                logger.warning("%s: the server has the file %s no longer; its results are lost", self.model, file)
                return b""

        return bytes(self._call(f"read the file {file}", content))

    # Calls

    def _call(self, doing: str, make: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
        """The result of a call that may be repeated; a server that is down is waited for.

        Raises:
            InputError: the server refuses it, or is down for longer than max_outage.
        """
        import openai

        began, pause = time.monotonic(), 0.5
        while True:
            if trouble := self.server.trouble():
                raise trouble
            try:
                result = self._run(make())
            except (openai.APIConnectionError, openai.InternalServerError, openai.RateLimitError) as error:
                down, reason = time.monotonic() - began, _reason(error)
                if down > (self.server.max_outage if self.answered else min(FIRST_WORD, self.server.max_outage)):
                    raise InputError(
                        f"{self.base_url} cannot {doing}: it has failed for {down:.0f} s ({reason}). All responses "
                        f"are kept, and its batches go on; run again once it is back"
                    ) from None
                self._sleep(pause)
                pause = min(30.0, 2 * pause)
            except openai.APIStatusError as error:
                raise self._refused(doing, error) from None
            else:
                self.answered = True
                return result

    def _run(self, call: Coroutine[Any, Any, Any], *, drain: bool = False) -> Any:
        """The result of a coroutine. Once told to stop, it is cancelled; with `drain`, it may still end."""
        runner = self.server.calls.runner
        task = runner.get_loop().create_task(call)
        while not task.done():
            runner.run(_wait(task))
            if not task.done() and (self.stop.expired if drain else self.stop.signal):
                task.cancel()
                runner.run(_wait(task))
                raise _Told
        return task.result()

    def _sleep(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0 and not self.stop.signal:
            self.server.calls.runner.run(asyncio.sleep(min(0.5, left)))
        if self.stop.signal:
            raise _Told

    def _refused(self, doing: str, error: Any) -> InputError:
        code = error.status_code
        cure = {
            401: "check the key in the variable named by api_key_env",
            403: "check what the key in the variable named by api_key_env may do",
            404: "check base_url; a server without a Batch API needs speed.openai.batch: null",
            405: "a server without a Batch API needs speed.openai.batch: null",
        }.get(code, "correct that and run again")
        message = error.body.get("message") if isinstance(error.body, Mapping) else None
        said = _words(_code(error), message, self.server.secrets)
        return InputError(
            f"{self.base_url} does not {doing} for {self.model}: status {code}{f' ({said})' if said else ''}; {cure}. "
            f"Batches that it has go on, and are collected by the next run"
        )


async def _wait(task: "asyncio.Task[Any]") -> None:
    await asyncio.wait([task], timeout=0.5)


def read_line(
    line: Mapping[str, Any], conversation: Sequence[Message], limit: int, secrets: Sequence[str]
) -> Attempt | None:
    """The result in one line of an output or error file; None if the server did not get to the request.

    Args:
        conversation: what was asked; empty if that is not known any more.
        limit: max_tokens of the batch.
    """
    error, response = line.get("error"), line.get("response")
    error = error if isinstance(error, Mapping) else {}
    if error.get("code") in UNDONE:
        return None
    if not isinstance(response, Mapping):
        code = _words(error.get("code"), None, secrets) or "no reason given"
        return Attempt(Generation("", "error", error=f"refused: {code}"))
    status = response.get("status_code")
    sent = {"messages": list(conversation), LIMITS[0]: limit}
    attempt = read_answer(
        status if isinstance(status, int) else 500, json.dumps(response.get("body")).encode(), sent, limit, secrets
    )
    generation = attempt.generation
    if generation.error and not conversation:  # its words may repeat the prompt, which is not here to be hidden
        generation = replace(generation, error=f"{generation.error.partition(':')[0]}: status {status} in a batch")
    lost = Lost(conversation)
    lost.add(attempt.usage)
    return replace(attempt, generation=lost.added_to(generation))


def _paid(one: Generation) -> bool:
    return bool(one.num_response_tokens or one.lost_prompt_tokens or one.lost_response_tokens)


def _undone(status: str) -> str:
    reasons = {
        "expired": "expired: the batch ran out of its window before a single response",
        "cancelled": "cancelled: the batch was cancelled at the server before it came to this request",
    }
    return reasons.get(status, "malformed: the batch's files have no line of this request")


def _code(error: Any) -> str:
    return str(error.code or error.type or "") if error.body else ""


def _reason(error: Any) -> str:
    return f"status {error.status_code}" if hasattr(error, "status_code") else type(error.__cause__ or error).__name__


def _words(code: str | None, message: str | None, secrets: Sequence[str], line: int | None = None) -> str:
    """A server's reason on one line, short and without keys."""
    said = ": ".join(filter(None, (code, message)))
    return shorten(visible_words(f"{said}{f', line {line}' if line is not None else ''}", secrets=secrets), 200)
