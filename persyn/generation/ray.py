"""The ray engine: a teacher's backend in Ray actors, on one machine or a cluster.

Ray only moves work. What counts as done is what stands in the store, which must be a folder that every node sees: an
actor stores each answer as it comes and returns no more than that it did. An actor takes a unit of keys and holds their
range of the store while it works, so that whatever a killed run has left behind and a new run never ask the same twice.
"""

import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
import ray.data

from persyn.errors import InputError
from persyn.generation import Backend, BackendSpeed, RaySpeed, Teacher, load_backend
from persyn.generation.budget import Budget
from persyn.generation.requests import Request, generate_rows, still_open, stored_response
from persyn.store import Store, position


def generate_on_ray(
    requests: Sequence[Request],
    teacher: Teacher,
    store: Store,
    speed: BackendSpeed,
    budget: Budget | None = None,
) -> Iterator[dict[str, dict[str, Any]]]:
    """Have requests answered by actors. What is yielded, rows without their text by key, is in the store by then.

    Args:
        speed: the knobs of the teacher's backend, and of Ray: an actor that dies, or whose node does, is started again
            elsewhere, and its unit of requests is asked again, but for what is stored.

    Raises:
        InputError: that of the backend, or the budget is spent.
    """
    knobs = speed.ray or RaySpeed()
    connect(knobs.address)
    try:
        ordered = sorted(requests, key=lambda request: request.key)
        for wave in (budget or Budget()).waves(store.folder.parent, ordered, teacher.sampling.max_tokens):
            starts = range(0, len(wave), knobs.unit)
            units = [[asdict(request) for request in wave[start : start + knobs.unit]] for start in starts]
            dataset = ray.data.from_items(
                [{"requests": json.dumps(each)} for each in units], override_num_blocks=len(units)
            ).map_batches(
                Worker,
                fn_constructor_args=(teacher, store.folder, speed),
                compute=ray.data.ActorPoolStrategy(size=min(knobs.workers, len(units))),
                batch_size=1,
                num_cpus=knobs.cpus,
                num_gpus=knobs.gpus,
            )
            refused = ""
            for (
                returned
            ) in dataset.iter_rows():  # to its end: a thread of Ray's that outlives it would end this process
                refused = refused or returned["refused"]
                yield json.loads(returned["rows"])
            if refused:
                raise InputError(refused)
    finally:
        ray.shutdown()


class Worker:
    """An actor: one backend, loaded once, that answers unit after unit."""

    def __init__(self, teacher: Teacher, folder: Path, speed: BackendSpeed) -> None:
        self.teacher, self.sampling, self.store, self.speed = teacher, teacher.sampling, Store(folder), speed
        self.backend: Backend | None = None
        self.refused = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Answer a unit (column `requests`, json); returns its rows without their text (column `rows`, json), or why
        none can be answered (`refused`): as an exception, it would reach the user inside pages of Ray's own. Then no
        other unit is tried.
        """
        [unit] = batch["requests"]
        rows: dict[str, dict[str, Any]] = {}
        if not self.refused:
            try:
                rows = self._answer(unit)
            except InputError as error:
                self.refused = str(error)
        return {"rows": [json.dumps(rows)], "refused": [self.refused]}

    def _answer(self, unit: str) -> dict[str, dict[str, Any]]:
        self.backend = self.backend or load_backend(self.teacher, self.speed)
        requests = [Request(**request) for request in json.loads(unit)]
        with self.store.exclusive(position(requests[0].key), position(requests[-1].key) + 1):
            left = still_open(requests, self.store, self.sampling)
            rows = {r.key: stored_response(self.store, r, self.sampling) for r in requests if r not in left}
            for answered in generate_rows(left, self.backend, self.sampling, self.store):
                rows |= answered
        return {key: {**row, "response": ""} for key, row in rows.items() if row}


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or start one in this machine."""
    configure()
    # Ray listens on every interface, in this machine too: no dashboard that could be attacked; its tokens stay on.
    local: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    ray.init(address=address, logging_level=logging.WARNING, **local)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False


def configure() -> None:
    """Settings for nodes started in this machine, unless the environment has its own: on a busy one their start takes
    longer than Ray allows for, and its workers are too polite to get a core.
    """
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
