"""The ray engine: a teacher's backend in Ray actors, on one machine or a cluster.

Ray only distributes work. Only responses in the store count as done, so every node must see the store's folder. An
actor stores each response as it comes and returns only a notice. It takes a unit of keys and locks their range of the
store while it works, so that actors left behind by a killed run and those of a new run never ask the same twice.
"""

import json
import logging
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
from persyn.models.shares import connect
from persyn.store import Store, position


def generate_on_ray(
    requests: Sequence[Request],
    teacher: Teacher,
    store: Store,
    speed: BackendSpeed,
    budget: Budget | None = None,
) -> Iterator[dict[str, dict[str, Any]]]:
    """Generate responses by Ray actors. Yields stored rows by key, without their text.

    Args:
        speed: the knobs of the teacher's backend, and of Ray. If an actor or its node dies, the actor is restarted
            elsewhere and asks the rest of its unit, without what is stored.

    Raises:
        InputError: the backend raised it, or the budget is spent.
    """
    knobs = speed.ray or RaySpeed()
    connect(knobs.address)
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    ray.data.DataContext.get_current().enable_progress_bars = False
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
            # Read to the end: one of Ray's threads that outlives the loop would end this process.
            for returned in dataset.iter_rows():
                refused = refused or returned["refused"]
                yield json.loads(returned["rows"])
            if refused:
                raise InputError(refused)
    finally:
        ray.shutdown()


class Worker:
    """An actor: one backend, loaded once, that generates unit after unit."""

    def __init__(self, teacher: Teacher, folder: Path, speed: BackendSpeed) -> None:
        self.teacher, self.sampling, self.store, self.speed = teacher, teacher.sampling, Store(folder), speed
        self.backend: Backend | None = None
        self.refused = ""

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Generate a unit (column `requests`, json); returns its rows without their text (column `rows`, json), or an
        error (`refused`), after which no other unit is tried. As an exception, it would be buried in Ray's traceback.
        """
        [unit] = batch["requests"]
        rows: dict[str, dict[str, Any]] = {}
        if not self.refused:
            try:
                rows = self._generate(unit)
            except InputError as error:
                self.refused = str(error)
        return {"rows": [json.dumps(rows)], "refused": [self.refused]}

    def _generate(self, unit: str) -> dict[str, dict[str, Any]]:
        self.backend = self.backend or load_backend(self.teacher, self.speed)
        requests = [Request(**request) for request in json.loads(unit)]
        with self.store.exclusive(position(requests[0].key), position(requests[-1].key) + 1):
            left = still_open(requests, self.store, self.sampling)
            rows = {r.key: stored_response(self.store, r, self.sampling) for r in requests if r not in left}
            for new in generate_rows(left, self.backend, self.sampling, self.store):
                rows |= new
        return {key: {**row, "response": "", "reasoning": None} for key, row in rows.items() if row}
