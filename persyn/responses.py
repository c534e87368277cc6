"""Responses: prompts + a teacher -> its responses. Only those that the store lacks are generated."""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import polars as pl
from tqdm import tqdm

from persyn.errors import InputError
from persyn.generation import Backend, BackendSpeed, Teacher, load_backend
from persyn.generation.batch_notes import FOLDER, open_notes
from persyn.generation.budget import Budget
from persyn.generation.precomputed import PrecomputedRows
from persyn.generation.requests import (
    Request,
    each_sample,
    generate_rows,
    lost_tokens,
    open_store,
    prepare_requests,
    read_row,
    still_open,
    stored_response,
    teacher_identity,
)
from persyn.generation.tally import Tally
from persyn.generation.terms import Licenses, check_terms, refused_teachers
from persyn.schemas import RESPONSES
from persyn.settings import Settings, Share
from persyn.store import Rows, Store, key_range, position, slug

logger = logging.getLogger(__name__)


class ResponseSettings(Settings):
    """The section `responses`."""

    max_error_share: Share = 0.0
    """Share of a teacher's prompts that may remain without a response. Prompts that it can never answer (too long for
    its context, refused by a filter) do not count; a warning tells their share."""


def check_asking(
    wanted: Mapping[str, Iterable[pl.DataFrame]], teachers: Mapping[str, Teacher], licenses: Licenses, folder: Path
) -> None:
    """Refuse teachers whose terms forbid training other models on their outputs, before any is asked.

    One that has `precomputed` passes if nobody is asked: each of its prompts has a response there or in the store.
    Reading a response trains no model; the stage `dataset` refuses it.

    Args:
        wanted: teacher -> columns prompt_id and prompt of the prompts that it shall respond to, in any number of parts,
            which may be read more than once.
        teachers: name -> Teacher.
        folder: the response store.

    Raises:
        InputError: as check_terms, or a refused teacher's precomputed responses are incomplete.
    """
    asked = {name: teachers[name] for name in wanted}
    for name in refused_teachers(asked, licenses):
        teacher = teachers[name]
        if teacher.precomputed is None:
            continue
        left = _lacking(wanted[name], name, teacher, folder)
        if left:
            count = sum(part.height for part in wanted[name])
            raise InputError(
                f"teachers.{name}.precomputed: {len(left)} of {count} prompts have no response in "
                f"{teacher.precomputed.name}, first {left[0]}, and its terms forbid training other models on its "
                f"outputs, so it is not asked; complete that file, or name it in licenses.allow_forbidden"
            )
        del asked[name]
    check_terms(asked, licenses)


def generate_responses(
    prompts: pl.DataFrame,
    name: str,
    teacher: Teacher,
    folder: Path,
    speed: BackendSpeed,
    budget: Budget | None = None,
    part: tuple[int, int] = (0, 1),
    *,
    max_error_share: float = 0.0,
) -> pl.DataFrame:
    """One teacher's responses to every prompt; its backend generates only those that the store lacks.

    Precomputed responses are read before the backend is loaded; the backend is not asked for those.
    A response that ended by itself serves every max_tokens that it fits. A cut one serves only the max_tokens that cut
    it, so a larger max_tokens asks again for just those. An error is stored as a record, and asked again, unless asking
    again cannot change it.

    Args:
        prompts: columns prompt_id and prompt.
        name: the teacher's key in params.yaml.
        folder: the response store.
        speed: the knobs of the teacher's backend.
        budget: tokens that may be paid for; None sets no limit.
        part: (i, n): only the i-th of n parts of the prompts, by key. Parts may run at once, in any processes.
        max_error_share: share of the prompts that may remain without a response.

    Returns:
        RESPONSES, one row for each prompt (and sample) of the part.

    Raises:
        InputError: more than `max_error_share` failed, or the budget is spent. All responses are stored by then.
    """
    [table] = generate_parts([prompts], name, teacher, folder, speed, budget, part, max_error_share=max_error_share)
    return table


def generate_parts(
    prompts: Iterable[pl.DataFrame],
    name: str,
    teacher: Teacher,
    folder: Path,
    speed: BackendSpeed,
    budget: Budget | None = None,
    part: tuple[int, int] = (0, 1),
    *,
    max_error_share: float = 0.0,
) -> Iterator[pl.DataFrame]:
    """As generate_responses, of prompts that come in parts, of which one is in memory. The backend is loaded once.

    Args:
        prompts: tables with columns prompt_id and prompt, which may be read more than once.

    Returns:
        RESPONSES of each of these tables.

    Raises:
        InputError: as generate_responses; for the share of errors, once all parts have come.
    """
    store, tally = open_store(folder, teacher), Tally(name, teacher.sampling.max_tokens)
    fields = dict(list(RESPONSES.items())[2:])
    with _Asking(prompts, name, teacher, store, speed, budget, part) as asking:
        for each in prompts:
            asked, requests = _requests(each, teacher, part)
            asking.fill(asked, requests)
            found = (stored_response(store, request, teacher.sampling) for request in requests)
            rows = [read_row(row or asking.failed[one.key]) for row, one in zip(found, requests, strict=True)]
            tally.add(asked["prompt_id"], rows)
            table = pl.DataFrame([{field: row[field] for field in fields} for row in rows], schema=fields)
            table = asked.select("prompt_id", teacher=pl.lit(name)).hstack(table).select(RESPONSES.names())
            yield table.hstack(asked.select(pl.col("^sample$")))
    tally.tell(max_error_share)


def with_responses(
    prompts: Iterable[pl.DataFrame], name: str, teacher: Teacher, folder: Path
) -> Iterator[pl.DataFrame]:
    """Of each table the prompts that generate_parts would ask nobody about: all samples are in the store, or
    precomputed.
    """
    lacking = set(_lacking(prompts, name, teacher, folder))
    for part in prompts:
        yield part.filter(pl.Series([identity not in lacking for identity in part["prompt_id"]], dtype=pl.Boolean))


def _lacking(prompts: Iterable[pl.DataFrame], name: str, teacher: Teacher, folder: Path) -> list[str]:
    """prompt_id of the prompts without a response, or of some samples, once the precomputed ones are in the store."""
    store = open_store(folder, teacher)
    _take_precomputed(prompts, name, teacher, store)
    lacking = []
    for part in prompts:
        asked, requests = _requests(part, teacher)
        left = {request.key for request in still_open(requests, store, teacher.sampling)}
        lacking += [identity for identity, one in zip(asked["prompt_id"], requests, strict=True) if one.key in left]
    return lacking


def _requests(
    prompts: pl.DataFrame, teacher: Teacher, part: tuple[int, int] = (0, 1)
) -> tuple[pl.DataFrame, list[Request]]:
    """The prompts, as often as each is asked, whose keys are in the i-th of n parts, and their requests."""
    prompts = each_sample(prompts, teacher)
    requests = prepare_requests(prompts, teacher)
    if part == (0, 1):
        return prompts, requests
    low, high = key_range(*part)
    mine = [index for index, request in enumerate(requests) if low <= position(request.key) < high]
    return prompts[mine], [requests[index] for index in mine]


def _take_precomputed(
    prompts: Iterable[pl.DataFrame], name: str, teacher: Teacher, store: Store, part: tuple[int, int] = (0, 1)
) -> None:
    """Store the precomputed responses to the prompts that have none yet, if the teacher has a data set of them."""
    if teacher.precomputed is None:
        return
    wanted = set[str]()
    for each in prompts:
        asked, requests = _requests(each, teacher, part)
        left = {request.key for request in still_open(requests, store, teacher.sampling)}
        wanted.update(identity for identity, one in zip(asked["prompt_id"], requests, strict=True) if one.key in left)
    if not wanted:
        return
    given = PrecomputedRows(name, teacher, teacher.precomputed)
    for rows in given.read(wanted):
        for each in prompts:
            mine = each.filter(pl.col("prompt_id").is_in(list(rows)))
            store.put(
                {
                    one.precomputed: {**rows[identity], "num_prompt_tokens": given.prompt_tokens(one.conversation)}
                    for identity, one in zip(mine["prompt_id"], prepare_requests(mine, teacher), strict=True)
                }
            )


class _Asking:
    """Asks a teacher for what the store lacks, part by part."""

    def __init__(
        self,
        prompts: Iterable[pl.DataFrame],
        name: str,
        teacher: Teacher,
        store: Store,
        speed: BackendSpeed,
        budget: Budget | None,
        part: tuple[int, int],
    ) -> None:
        self._prompts, self._name, self._teacher, self._store = prompts, name, teacher, store
        self._speed, self._budget, self._part = speed, budget, part
        self._backend: Backend | None = None
        self._looked = self._asked = False
        self.failed: dict[str, dict[str, Any]] = {}
        """Key of a request that failed -> its row."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        if self._backend is not None:
            self._backend.close()
        elif kind is None and not self._asked:
            _collect_old(self._teacher, self._store, self._speed)

    def fill(self, prompts: pl.DataFrame, requests: Sequence[Request]) -> None:
        """Ask for the responses to these requests, one for each prompt, that are not in the store."""
        left = self._open(requests)
        if left and not self._looked:
            self._looked = True
            _take_precomputed(self._prompts, self._name, self._teacher, self._store, self._part)
            left = self._open(left)
        if not left:
            return
        self._asked = True
        self._store.check_space(2 * len(left) * (1000 + 8 * self._teacher.sampling.max_tokens))
        done = len(requests) - len(left)
        bar = tqdm(total=len(requests), initial=done, desc=f"responses of {self._name}", unit="prompt")
        try:
            for rows in self._ask(requests):
                self.failed |= {key: row for key, row in rows.items() if row["finish_reason"] == "error"}
                bar.update(len(rows))
        except KeyboardInterrupt:
            logger.warning("%s: %d of %d prompts are in the store", self._name, bar.n, len(requests))
            raise
        finally:
            bar.close()

    def _open(self, requests: Sequence[Request]) -> list[Request]:
        """Those without a response that did not fail in this run."""
        left = still_open(requests, self._store, self._teacher.sampling)
        return [request for request in left if request.key not in self.failed]

    def _ask(self, requests: Sequence[Request]) -> Iterator[dict[str, dict[str, Any]]]:
        """Generate what the store still lacks: in this process, or by Ray actors."""
        store = self._store
        if self._speed.ray is not None:
            try:
                from persyn.generation.ray import generate_on_ray
            except ModuleNotFoundError as error:
                raise InputError("speed names ray, which is not installed; run `pip install 'persyn[ray]'`") from error
            yield from generate_on_ray(self._open(requests), self._teacher, store, self._speed, self._budget)
            store.refresh()
            return
        with store.exclusive(*key_range(*self._part)):
            left = self._open(requests)
            if not left:
                return
            if self._backend is None:
                self._backend = load_backend(self._teacher, self._speed)
            batches = getattr(self._backend, "batches", None)
            if batches and batches.makes:  # a batch takes up to a day: all are made at once
                parts = (_requests(each, self._teacher, self._part)[1] for each in self._prompts)
                left = [request for part in parts for request in self._open(part)]
            yield from generate_rows(left, self._backend, self._teacher.sampling, store, self._budget)


def _collect_old(teacher: Teacher, store: Store, speed: BackendSpeed) -> None:
    """Store what has come of batches whose requests are not made any more. Nothing depends on it, so a failure is only
    told.
    """
    if speed.ray is not None or not open_notes(store.folder / FOLDER):
        return
    try:
        backend = load_backend(teacher, speed)
        try:
            for _ in generate_rows([], backend, teacher.sampling, store):
                pass
        finally:
            backend.close()
    except InputError as error:
        logger.warning("batches of %s are not collected: %s", teacher.model, error)


def asked_of(responses: Iterable[pl.DataFrame], prompts: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Teacher and the prompts that it was asked, of each table of RESPONSES."""
    for table in responses:
        for (name,), rows in table.sort("teacher").group_by("teacher", maintain_order=True):
            yield str(name), prompts.join(rows.select("prompt_id"), on="prompt_id", how="semi")


def count_lost(
    asked: Iterable[tuple[str, pl.DataFrame]], teachers: Mapping[str, Teacher], folder: Path
) -> dict[str, dict[str, int]]:
    """teacher -> {prompt_tokens, response_tokens} that were paid for these prompts and are in no response: of attempts
    that brought none, and of failures. Teachers without any are left out.

    Args:
        asked: teacher and prompts (columns prompt_id and prompt); a prompt that comes twice counts once.
        folder: the response store.
    """
    lost: dict[str, dict[str, int]] = {}
    seen: set[str] = set()
    for name, prompts in asked:
        teacher = teachers[name]
        if not prompts.height or not Rows(folder / slug(teacher_identity(teacher))):
            continue
        store = open_store(folder, teacher)
        for request in prepare_requests(each_sample(prompts, teacher), teacher):
            if request.key not in seen:
                seen.add(request.key)
                counts = lost_tokens(store, request, stored_response(store, request, teacher.sampling) or {})
                if any(counts):
                    use = lost.setdefault(name, {"prompt_tokens": 0, "response_tokens": 0})
                    use["prompt_tokens"] += counts[0]
                    use["response_tokens"] += counts[1]
    return lost
