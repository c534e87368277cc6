"""Shares: work on many rows divided among processes, on the GPUs of this machine or on a Ray cluster.

As with generation, what the store holds is done, whoever did it: every process writes its rows there, so that after a
kill only what is missing is done again.
"""

import heapq
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partialmethod
from typing import Annotated, Any

from pydantic import Field
from tqdm import tqdm

from persyn.errors import InputError, end_with_parent
from persyn.settings import Settings

logger = logging.getLogger(__name__)


class Nodes(Settings):
    """Ray's processes, on one machine or a cluster. Every node must see the store's folder."""

    address: str | None = None
    """A running cluster (`auto` on one of its nodes); null starts one on this machine and ends it afterwards."""
    workers: Annotated[int, Field(ge=1)] = 1
    """Processes, each with a copy of the model."""
    cpus: Annotated[float, Field(ge=0)] = 1
    """CPU cores of each."""
    gpus: Annotated[float, Field(ge=0)] = 0
    """GPUs of each: tensor_parallel x data_parallel for vLLM."""


class ScoringSpeed(Settings):
    """How fast a model scores responses; the scores are the same."""

    processes: Annotated[int, Field(ge=1)] = 1
    """Processes of this machine that share the rows, each with a copy of the model: on a GPU of its own, if there are
    GPUs. On a CPU one process uses all cores already."""
    ray: Nodes | None = None
    """Ray tasks that share the rows; null runs none."""


def divide(weights: Mapping[Any, int], parts: int) -> list[list[Any]]:
    """Divide keys into at most `parts` shares of about the same weight, none empty; the same keys give the same."""
    heap = [(0, part) for part in range(parts)]
    shares: list[list[Any]] = [[] for _ in range(parts)]
    for key, weight in sorted(weights.items(), key=lambda item: -item[1]):
        load, part = heapq.heappop(heap)
        shares[part].append(key)
        heapq.heappush(heap, (load + weight, part))
    return [share for share in shares if share]


def work_in_shares(work: Callable[[Any], None], shares: Sequence[Any], speed: ScoringSpeed, section: str) -> None:
    """Call `work` with each share: here if there is one, else in processes or Ray tasks, all at once.

    Args:
        work: can be pickled; stores what it has done.
        section: of `speed`, for messages.

    Raises:
        InputError: `work` raised it, or a process was killed; or there are fewer GPUs than processes.
    """
    if speed.ray is not None and shares:
        _on_ray(work, shares, speed.ray, section)
    elif len(shares) > 1:
        _in_processes(work, shares, section)
    else:
        for share in shares:
            work(share)


def _in_processes(work: Callable[[Any], None], shares: Sequence[Any], section: str) -> None:
    import torch
    from torch import multiprocessing

    if 0 < torch.cuda.device_count() < len(shares):
        raise InputError(
            f"speed.{section}.processes is {len(shares)}, and there are {torch.cuda.device_count()} GPUs; each process "
            f"needs one"
        )
    refused = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        multiprocessing.spawn(_one_of_several, (work, shares, os.getpid(), refused), nprocs=len(shares), daemon=True)
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
        if not refused.empty():
            raise InputError(refused.get()) from error
        if isinstance(error, multiprocessing.ProcessRaisedException):
            raise
        raise InputError(
            f"one of {len(shares)} scoring processes ended: {error}; what they scored is stored, run the same command "
            f"again, with fewer in speed.{section}.processes if memory was short"
        ) from error


def _one_of_several(rank: int, work: Callable[[Any], None], shares: Sequence[Any], parent: int, refused: Any) -> None:
    """A process. Only the first shows its progress, of its own share; all tell their warnings."""
    import torch

    end_with_parent(parent)
    logging.basicConfig(format="%(message)s")
    os.environ["LOCAL_RANK"] = str(rank)  # models.load_model takes this GPU
    if rank:  # its variable TQDM_DISABLE is read when it is imported, which it is by now
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    else:
        logger.warning("%d processes score; the progress is that of the first", len(shares))
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // len(shares)))
    try:
        work(shares[rank])
    except InputError as error:
        refused.put(str(error))
        raise


def _on_ray(work: Callable[[Any], None], shares: Sequence[Any], nodes: Nodes, section: str) -> None:
    import ray

    def one(share: Any) -> str:
        """Why it was refused; as an exception it would be buried in Ray's traceback."""
        try:
            work(share)
        except InputError as error:
            return str(error)
        return ""

    connect(nodes.address)
    try:
        task = ray.remote(num_cpus=nodes.cpus, num_gpus=nodes.gpus, max_retries=3)(one)  # if a node dies
        refused = [error for error in ray.get([task.remote(share) for share in shares]) if error]
        if refused:
            raise InputError(refused[0])
    except ray.exceptions.WorkerCrashedError as error:
        raise InputError(
            f"Ray's tasks of speed.{section}.ray were killed four times; what they scored is stored, run the same "
            f"command again, on nodes with more memory if that was short"
        ) from error
    finally:
        ray.shutdown()


def connect(address: str | None) -> None:
    """Join the Ray cluster at `address`, or start one on this machine."""
    import ray

    configure()
    # Ray listens on every interface, even on one machine: no dashboard, which could be attacked; its tokens stay on.
    local: dict[str, Any] = {"include_dashboard": False} if address is None else {}
    ray.init(address=address, logging_level=logging.WARNING, **local)


def configure() -> None:
    """Settings for nodes started on this machine, unless the environment has its own. On a busy machine they start too
    slowly for Ray's timeout, and the low priority of its workers keeps them from getting a core.
    """
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "300")
    os.environ.setdefault("RAY_worker_niceness", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
