"""Shares: work on many rows divided among processes, on the GPUs of this machine or on a Ray cluster.

As with generation, what the store holds is done, whoever did it: every process writes its rows there, so that after a
kill only what is missing is done again. Of the processes that hold one model together, only the first writes.
"""

import heapq
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partialmethod
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator
from tqdm import tqdm

from persyn.errors import InputError, end_with_parent
from persyn.settings import Misfit, Settings

PATIENCE = timedelta(hours=2)
"""How long processes that hold one model wait for each other, as in transformers: a slow disk serves one first."""
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
    tensor_parallel: Annotated[int, Field(ge=1)] = 1
    """Processes that hold one copy of the model together, each a part of every layer on a GPU of its own, for a model
    too large for one GPU; `processes` is the number of copies. It must divide the model's attention heads. Run on CPUs
    only so far (two processes, gloo)."""
    device_map: Literal["auto"] | None = None
    """auto: one process spreads the layers over all GPUs that it sees, then over memory and disk, for a model too large
    for one GPU. The GPUs work in turn, so tensor_parallel is faster; this also takes models that it refuses. Run on
    CPUs only so far (memory and disk)."""

    @model_validator(mode="after")
    def _one_way_to_split(self) -> Self:
        others = {"processes": self.processes > 1, "tensor_parallel": self.tensor_parallel > 1, "ray": bool(self.ray)}
        if self.device_map and any(others.values()):
            named = ", ".join(name for name, given in others.items() if given)
            raise Misfit("device_map", f"lets one process use all GPUs; leave out {named}, or device_map")
        here = [name for name in ("processes", "tensor_parallel") if others[name]]
        if here and self.ray:
            raise Misfit(
                here[0], f"starts processes of this machine, and ray starts tasks; leave out {', '.join(here)}, or ray"
            )
        return self

    @property
    def placement(self) -> dict[str, Any]:
        """How each process loads the model: arguments of models.load_model."""
        if self.device_map:
            return {"device_map": self.device_map}
        return {"tensor_parallel": self.tensor_parallel} if self.tensor_parallel > 1 else {}


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
    elif len(shares) > 1 or (shares and speed.tensor_parallel > 1):
        _in_processes(work, shares, speed.tensor_parallel, section)
    else:
        for share in shares:
            work(share)


def agree(found: Any) -> Any:
    """What the first of the processes that hold one model found. All must read the same passes, or they would wait for
    each other for ever; so nothing that decides on passes may differ by a rounding or a row in the store.
    """
    if not _is_one_of_several():
        return found
    import torch

    told = [found]
    torch.distributed.broadcast_object_list(told, src=0)
    return told[0]


def is_first() -> bool:
    """Whether this process stores what it and those that hold the model with it have found."""
    import torch

    return not _is_one_of_several() or torch.distributed.get_rank() == 0


def may_try_again() -> bool:
    """Whether a pass for which memory was short may be read in halves: not where others wait for the whole."""
    return not _is_one_of_several()


def _is_one_of_several() -> bool:
    import torch

    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _in_processes(work: Callable[[Any], None], shares: Sequence[Any], each: int, section: str) -> None:
    """Let `each` processes work on each share."""
    import torch
    from torch import multiprocessing

    number = len(shares) * each
    if 0 < torch.cuda.device_count() < number:
        raise InputError(
            f"speed.{section} starts {number} processes (processes x tensor_parallel), and there are "
            f"{torch.cuda.device_count()} GPUs; each process needs one"
        )
    refused = multiprocessing.get_context("spawn").SimpleQueue()
    try:
        with tempfile.TemporaryDirectory() as meeting:
            arguments = (work, shares, each, (os.getpid(), refused, meeting, section))
            multiprocessing.spawn(_one_of_several, arguments, nprocs=number, daemon=True)
    except (multiprocessing.ProcessRaisedException, multiprocessing.ProcessExitedException) as error:
        if not refused.empty():
            raise InputError(refused.get()) from error
        if isinstance(error, multiprocessing.ProcessRaisedException):
            raise
        less = f"fewer in speed.{section}.processes" if each == 1 else f"a smaller speed.{section}.batch_tokens"
        raise InputError(
            f"one of {number} scoring processes ended: {error}; what they scored is stored, run the same command "
            f"again, with {less} if memory was short"
        ) from error


def _one_of_several(
    number: int, work: Callable[[Any], None], shares: Sequence[Any], each: int, parent: tuple[int, Any, str, str]
) -> None:
    """A process. Only the first shows its progress, of its own share; the first of each share tells its warnings.

    Args:
        parent: its id, where it reads why its children refused their work, the folder where processes that hold one
            model meet, and the section of `speed`.
    """
    import torch

    pid, refused, meeting, section = parent
    end_with_parent(pid)
    share, rank = divmod(number, each)
    logging.basicConfig(format="%(message)s")
    os.environ["LOCAL_RANK"] = str(number)  # models.load_model takes this GPU
    if number:  # its variable TQDM_DISABLE is read when it is imported, which it is by now
        tqdm.__init__ = partialmethod(tqdm.__init__, disable=True)
    else:
        together = f" ({each} hold one copy of the model)" if each > 1 else ""
        logger.warning("%d processes score%s; the progress is that of the first", len(shares) * each, together)
    if rank:
        logging.disable(logging.WARNING)
    if not torch.cuda.is_available():
        torch.set_num_threads(max(1, torch.get_num_threads() // (len(shares) * each)))
    try:
        if each > 1:
            _meet(Path(meeting) / str(share), number, rank, each)
        work(shares[share])
        if each > 1:
            torch.distributed.destroy_process_group()
    except InputError as error:
        refused.put(str(error))
        raise
    except torch.OutOfMemoryError as error:
        reason = " ".join(str(error).split())[:200]
        refused.put(f"GPU {number} has too little memory; set a smaller speed.{section}.batch_tokens: {reason}")
        raise
    except RuntimeError as error:
        if each > 1 and (isinstance(error, torch.distributed.DistError) or "Connection" in str(error)):
            time.sleep(60)  # another one has ended: the parent is to tell of that one, and ends this one
        raise


def _meet(place: Path, number: int, rank: int, each: int) -> None:
    """Connect the processes that hold one model: by shared memory and NVLink on GPUs, by loopback on a CPU."""
    import torch

    on_gpu = torch.cuda.is_available()
    if Path("/sys/class/net/lo").exists():
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # or gloo listens where the host's name leads
    if on_gpu:
        torch.cuda.set_device(number)
    torch.distributed.init_process_group(
        "nccl" if on_gpu else "gloo",
        store=torch.distributed.FileStore(str(place), each),
        rank=rank,
        world_size=each,
        timeout=PATIENCE,
        device_id=torch.device("cuda", number) if on_gpu else None,
    )


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
