"""Responses: prompts + a teacher -> its responses. Only those that the store lacks are generated."""

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from tqdm import tqdm

from persyn.errors import InputError
from persyn.generation import BackendSpeed, Teacher, load_backend
from persyn.generation.batch_notes import FOLDER, open_notes
from persyn.generation.budget import Budget
from persyn.generation.precomputed import read_precomputed
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
from persyn.generation.terms import Licenses, check_terms, refused_teachers
from persyn.schemas import RESPONSES
from persyn.settings import Settings, Share
from persyn.store import Rows, Store, key_range, position, slug
from persyn.thinking import never_closed

logger = logging.getLogger(__name__)


class ResponseSettings(Settings):
    """The section `responses`."""

    max_error_share: Share = 0.0
    """Share of a teacher's prompts that may remain without a response. Prompts that it can never answer (too long for
    its context, refused by a filter) do not count; a warning tells their share."""


def check_asking(
    wanted: Mapping[str, pl.DataFrame], teachers: Mapping[str, Teacher], licenses: Licenses, folder: Path
) -> None:
    """Refuse teachers whose terms forbid training other models on their outputs, before any is asked.

    One that has `precomputed` passes if nobody is asked: each of its prompts has a response there or in the store.
    Reading a response trains no model; the stage `dataset` refuses it.

    Args:
        wanted: teacher -> columns prompt_id and prompt of the prompts that it shall respond to.
        teachers: name -> Teacher.
        folder: the response store.

    Raises:
        InputError: as check_terms, or a refused teacher's precomputed responses are incomplete.
    """
    asked = {name: teachers[name] for name in wanted}
    for name in refused_teachers(asked, licenses):
        teacher, prompts = teachers[name], wanted[name]
        if teacher.precomputed is None:
            continue
        requests, store = prepare_requests(prompts, teacher), open_store(folder, teacher)
        left = _open_requests(prompts, requests, name, teacher, store)
        if left:
            first = prompts["prompt_id"][[request.key for request in requests].index(left[0].key)]
            raise InputError(
                f"teachers.{name}.precomputed: {len(left)} of {prompts.height} prompts have no response in "
                f"{teacher.precomputed.name}, first {first}, and its terms forbid training other models on its "
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
    prompts = each_sample(prompts, teacher)
    sampling, requests = teacher.sampling, prepare_requests(prompts, teacher)
    low, high = key_range(*part)
    mine = [index for index, request in enumerate(requests) if low <= position(request.key) < high]
    prompts, requests = prompts[mine], [requests[index] for index in mine]
    store = open_store(folder, teacher)
    failed: dict[str, dict[str, Any]] = {}
    left = _open_requests(prompts, requests, name, teacher, store)
    if left:
        store.check_space(2 * len(left) * (1000 + 8 * sampling.max_tokens))
        bar = tqdm(total=len(requests), initial=len(requests) - len(left), desc=f"responses of {name}", unit="prompt")
        try:
            for rows in _ask(requests, teacher, store, speed, budget, part):
                failed |= {key: row for key, row in rows.items() if row["finish_reason"] == "error"}
                bar.update(len(rows))
        except KeyboardInterrupt:
            logger.warning("%s: %d of %d prompts are in the store", name, bar.n, len(requests))
            raise
        finally:
            bar.close()
    else:
        _collect_old(teacher, store, speed)
    stored = [read_row(stored_response(store, request, sampling) or failed[request.key]) for request in requests]
    _check_errors(name, prompts, stored, max_error_share)
    _tell_thoughts(name, stored)
    _tell_oddities(name, stored, sampling.max_tokens)
    fields = dict(list(RESPONSES.items())[2:])
    table = pl.DataFrame([{field: row[field] for field in fields} for row in stored], schema=fields)
    table = prompts.select("prompt_id", teacher=pl.lit(name)).hstack(table).select(RESPONSES.names())
    return table.hstack(prompts.select(pl.col("^sample$")))


def with_responses(prompts: pl.DataFrame, name: str, teacher: Teacher, folder: Path) -> pl.DataFrame:
    """The prompts that generate_responses would ask nobody about: all samples are in the store, or precomputed."""
    each = each_sample(prompts, teacher)
    requests, store = prepare_requests(each, teacher), open_store(folder, teacher)
    left = {request.key for request in _open_requests(each, requests, name, teacher, store)}
    lacking = [identity for identity, request in zip(each["prompt_id"], requests, strict=True) if request.key in left]
    return prompts.filter(~pl.col("prompt_id").is_in(lacking))


def _open_requests(
    prompts: pl.DataFrame, requests: Sequence[Request], name: str, teacher: Teacher, store: Store
) -> list[Request]:
    """The requests, one for each prompt, that still have no response once the precomputed ones are in the store."""
    left = still_open(requests, store, teacher.sampling)
    if not left or teacher.precomputed is None:
        return left
    ids = {request.key: identity for identity, request in zip(prompts["prompt_id"], requests, strict=True)}
    by_id, texts = {ids[request.key]: request for request in left}, dict(prompts["prompt_id", "prompt"].iter_rows())
    rows = read_precomputed({identity: texts[identity] for identity in by_id}, name, teacher, teacher.precomputed)
    store.put({by_id[identity].precomputed: row for identity, row in rows.items()})
    return still_open(left, store, teacher.sampling)


def _ask(
    requests: Sequence[Request],
    teacher: Teacher,
    store: Store,
    speed: BackendSpeed,
    budget: Budget | None,
    part: tuple[int, int],
) -> Iterator[dict[str, dict[str, Any]]]:
    """Generate what the store still lacks: in this process, or by Ray actors."""
    sampling = teacher.sampling
    if speed.ray is not None:
        try:
            from persyn.generation.ray import generate_on_ray
        except ModuleNotFoundError as error:
            raise InputError("speed names ray, which is not installed; run `pip install 'persyn[ray]'`") from error
        yield from generate_on_ray(still_open(requests, store, sampling), teacher, store, speed, budget)
        store.refresh()
        return
    with store.exclusive(*key_range(*part)):
        left = still_open(requests, store, sampling)
        if not left:
            return
        backend = load_backend(teacher, speed)
        try:
            yield from generate_rows(left, backend, sampling, store, budget)
        finally:
            backend.close()


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


def _check_errors(name: str, prompts: pl.DataFrame, rows: list[dict[str, Any]], max_error_share: float) -> None:
    errors = {
        identity: row
        for identity, row in zip(prompts["prompt_id"], rows, strict=True)
        if row["finish_reason"] == "error"
    }
    finished = Counter(row["finish_reason"] for row in rows)
    logger.info("%s: %d prompts = %s", name, len(rows), " + ".join(f"{n} {why}" for why, n in sorted(finished.items())))
    never = {identity: row["error"] for identity, row in errors.items() if row.get("final")}
    if never:
        logger.warning(
            "%d of %d prompts of %s (%.0f %%) can never be answered at this max_tokens (%s) and are not asked again; "
            "first %s: %s",
            *(len(never), len(rows), name, 100 * len(never) / len(rows), _kinds(never)),
            *next(iter(never.items())),
        )
    reasons = {identity: row["error"] for identity, row in errors.items() if identity not in never}
    if not reasons:
        return
    first, reason = next(iter(reasons.items()))
    message = (
        f"{len(reasons)} of {len(rows)} prompts of {name} have no response ({_kinds(reasons)}); first {first}: {reason}"
    )
    if len(reasons) > max_error_share * len(rows):
        raise InputError(
            f"{message}. That is more than responses.max_error_share {max_error_share}; run again to ask only those "
            f"again, or raise it"
        )
    logger.warning("%s", message)


def _kinds(reasons: Mapping[str, str]) -> dict[str, int]:
    """Kind of error -> how many."""
    return dict(Counter(reason.partition(":")[0] for reason in reasons.values()))


def _tell_oddities(name: str, rows: list[dict[str, Any]], max_tokens: int) -> None:
    """Warn of what a server left out: words, counts of tokens, a reason that is known."""
    told = [row for row in rows if row["finish_reason"] != "error" and "origin" not in row]
    empty = Counter(row["finish_reason"] for row in told if not (row["response"].strip() or row["reasoning"]))
    if empty["length"]:
        logger.warning(
            "%s: %d of %d empty at max_tokens %d (%.0f %%): the model thinks longer; raise its sampling.max_tokens, or "
            "turn its thoughts off (for many models, template: {enable_thinking: false})",
            *(name, empty["length"], len(rows), max_tokens, 100 * empty["length"] / len(rows)),
        )
    if empty["stop"]:
        logger.warning("%s: %d of %d empty: the model ended by itself, without a word", name, empty["stop"], len(rows))
    if estimated := sum(row.get("estimated", False) for row in rows):
        logger.warning(
            "%s: the server did not count all tokens of %d of %d responses; they are estimated (a token for every four "
            "bytes)",
            *(name, estimated, len(rows)),
        )
    if unknown := Counter(row["said"] for row in told if row.get("said")):
        logger.warning(
            "%s: %d of %d responses ended for a reason that nobody knows (%s); they are kept, as stop below max_tokens "
            "and as length at it",
            *(name, unknown.total(), len(rows), ", ".join(f"{reason} x {n}" for reason, n in unknown.most_common(3))),
        )


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


def _tell_thoughts(name: str, rows: list[dict[str, Any]]) -> None:
    """Log how many responses have a thought; warn of those that ended inside it."""
    thoughts = sum(row["reasoning"] is not None for row in rows)
    open_ones = sum(never_closed(row["reasoning"], row["response"], row["finish_reason"]) for row in rows)
    if thoughts:
        logger.info("%s: %d of %d responses have a thought; %d never closed it", name, thoughts, len(rows), open_ones)
    if open_ones:
        logger.warning(
            "%s: %d of %d responses (%.0f %%) ended inside their thought and have no answer; raise its "
            "sampling.max_tokens, or turn its thoughts off (for many models, template: {enable_thinking: false})",
            *(name, open_ones, len(rows), 100 * open_ones / len(rows)),
        )
