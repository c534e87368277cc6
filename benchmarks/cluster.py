"""Cluster: Ray on two nodes of this machine; an actor, a node or the driver is killed. One table, as faults.

python -m benchmarks.cluster      about two minutes; needs the extra `ray`
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import polars as pl
import psutil

from benchmarks.faults import CONCURRENCY, Row, differs, generation, print_table, sealed, write_prompts
from persyn.models.shares import configure
from persyn.store import shelves, verify
from tests.support.stub import StubServer, stub_teacher

NODES = 2
Run = subprocess.Popen[str]
Kill = Callable[["Nodes", Run], None]


def main() -> None:
    """Kill an actor, a node, a driver, and print what each cost."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prompts = write_prompts(folder / "prompts.parquet", 400)
        sealed(folder / "calm", prompts, {})
        parts = [
            killed(folder, prompts, kill_actor, "Ray, 1 of 2 actors killed", CONCURRENCY),
            killed(folder, prompts, kill_node, "Ray, 1 of 2 nodes killed", CONCURRENCY),
            killed(folder, prompts, kill_driver, "Ray, driver killed and run again", NODES * CONCURRENCY),
        ]
        sys.exit(print_table([row for rows in parts for row in rows]))


def killed(folder: Path, prompts: Path, kill: Kill, fault: str, in_flight: int) -> Iterator[Row]:
    """A run in which `kill` strikes while both actors work. It must end by itself; a driver that was killed is started
    again at once, beside what is left of the first.
    """
    target = folder / kill.__name__
    with stub_teacher(delay=0.2) as server, Nodes() as nodes:
        run = generation(target, prompts, server, nodes.speed)
        wait_for(server, 60, run)
        kill(nodes, run)
        if run.returncode is not None:
            run = generation(target, prompts, server, nodes.speed)
        _, errors = run.communicate()
        if run.returncode:
            sys.exit(errors)
        yield from checked(folder, target, prompts, server, fault, in_flight)


def kill_actor(nodes: "Nodes", run: Run) -> None:
    """kill -9 of one of the two processes that ask the teacher."""
    [first, _] = [each for each in psutil.process_iter() if "MapWorker" in "".join(cmdline(each))]
    first.kill()


def kill_node(nodes: "Nodes", run: Run) -> None:
    """kill -9 of all processes of a node; a new one joins."""
    nodes.kill_one()
    nodes.add()


def kill_driver(nodes: "Nodes", run: Run) -> None:
    """kill -9 of the process that hands out the work."""
    run.kill()
    run.wait()


def checked(folder: Path, target: Path, prompts: Path, server: StubServer, fault: str, in_flight: int) -> Iterator[Row]:
    """What is in the store, and in the sealed table, of the run in `target`."""
    count = pl.read_parquet(prompts).height
    answers = pl.read_parquet(target / "sealed.parquet").filter(pl.col("finish_reason") != "error")
    report, _ = verify(shelves(target / "store")[0])
    yield fault, "prompts without their answer", count - answers.height, 0
    yield fault, "rows answered twice", report.records - report.rows + report.conflicts, 0
    yield fault, "extra calls", server.counts["ok"] - count, in_flight
    expected = (folder / "calm" / "sealed.parquet").read_bytes()
    yield fault, "sealed table differs by a byte", differs(target, expected), 0


def cmdline(process: psutil.Process) -> list[str]:
    """Of a process that may be gone."""
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def wait_for(server: StubServer, calls: int, run: Run) -> None:
    """Wait until so many answers were given."""
    while server.counts["ok"] < calls:
        if run.poll() is not None:
            sys.exit(f"the run ended after {server.counts['ok']} calls: {run.communicate()[1]}")
        time.sleep(0.05)


class Nodes:
    """A cluster of a head, which runs no actor, and two nodes of one core each, all on this machine."""

    def __enter__(self) -> "Nodes":
        configure()
        from ray.cluster_utils import Cluster

        self.cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
        self.workers = [self.add() for _ in range(NODES)]
        return self

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()

    @property
    def speed(self) -> dict[str, Any]:
        """The knobs of a run on this cluster."""
        return {"ray": {"address": self.cluster.address, "workers": NODES, "unit": 20}}

    def add(self) -> Any:
        """One more node."""
        return self.cluster.add_node(num_cpus=1)

    def kill_one(self) -> None:
        """kill -9 of a node's processes."""
        self.cluster.remove_node(self.workers.pop(), allow_graceful=False)


if __name__ == "__main__":
    main()
