"""Batches: what a run in batches pays, keeps and says, whatever becomes of the batch or of the run. One table.

    python -m benchmarks.batches                 three to four minutes; loopback and subprocesses only
    python -m benchmarks.batches --only killed   behaviours whose name holds this text

40 prompts to a stub of the Batch API, until a run ends well (three runs at most). Calls are the lines of all batches;
billed is the stub's own count of tokens, counted is the store's. The exit status is 1 if those differ in a row, or if a
row lacks a response.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from persyn.files import markdown_table
from persyn.store import shelves, verify
from tests.support.batch_worker import STEPS, start_worker
from tests.support.batches import BatchServer, Fate, batch_server

PROMPTS = 40
BAR = re.compile(r"/s\]|\d+%\|")
"""A line of a progress bar."""
RUNS = 3


@dataclass(frozen=True)
class BatchRow:
    """One behaviour, and what came of it."""

    behaviour: str
    calls: int
    billed: int
    counted: int
    rows: int
    """Responses in the store."""
    status: str
    """Exit status of each run."""
    seconds: float
    """Of all runs."""
    message: str
    """The last line of the first run, beside progress bars."""

    @property
    def right(self) -> bool:
        return self.billed == self.counted and self.rows == PROMPTS


@dataclass(frozen=True)
class Behaviour:
    """What becomes of the batches, the calls or the first run."""

    fates: tuple[Fate, ...] = ()
    fail: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """As the stub's `fail`."""
    kill: str = ""
    max_requests: int = 50_000


BEHAVIOURS = {
    "batch: completed": Behaviour(),
    "batch: split in four": Behaviour(max_requests=10),
    "batch: expired, 40 % done": Behaviour((Fate("expired", 0.4),)),
    "batch: expired, nothing done": Behaviour((Fate("expired", 0.0),)),
    "batch: cancelled by somebody, 25 % done": Behaviour((Fate("cancelled", 0.25),)),
    "batch: failed validation": Behaviour((Fate("failed", code="invalid_model"),)),
    "batch: lines with status 429 and 500": Behaviour((Fate(statuses={0: 429, 1: 500}),)),
    "batch: a line with status 400": Behaviour((Fate(statuses={0: 400}),)),
    "batch: all lines with status 400": Behaviour((Fate(statuses=dict.fromkeys(range(PROMPTS), 400)),)),
    "batch: a repeated and an unknown line": Behaviour((Fate(oddities=frozenset({"repeated", "unknown"})),)),
    "batch: its file comes cut at first": Behaviour((Fate(oddities=frozenset({"cut once"})),)),
    "batch: upload drops, then 500": Behaviour(fail={"POST /files": ("drop", "500")}),
    "batch: made, but the response is lost": Behaviour(fail={"POST /batches": ("lose",)}),
    "batch: creation fails with 500": Behaviour(fail={"POST /batches": ("500",)}),
    "batch: a server without batches (404)": Behaviour(fail={"POST /files": ("404",)}),
    "batch: a look fails with 503": Behaviour(fail={"GET /batches/*": ("503", "drop")}),
    **{f"batch: killed {when}": Behaviour(kill=step) for step, when in STEPS.items()},
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="")
    rows = list(batch_rows(parser.parse_args().only))
    columns = ["behaviour", "calls", "billed", "counted", "rows", "exit status", "seconds", "message"]
    cells = [(r.behaviour, r.calls, r.billed, r.counted, r.rows, r.status, f"{r.seconds:.1f}", r.message) for r in rows]
    print(markdown_table(columns, cells))  # noqa: T201
    sys.exit(int(not all(row.right for row in rows)))


def batch_rows(only: str = "") -> Iterator[BatchRow]:
    """A row for each behaviour whose name holds `only`."""
    for name, behaviour in BEHAVIOURS.items():
        if only in name:
            with tempfile.TemporaryDirectory() as scratch, batch_server(*behaviour.fates) as server:
                server.fail = {call: list(faults) for call, faults in behaviour.fail.items()}
                yield _row(name, behaviour, server, Path(scratch))


def _row(name: str, behaviour: Behaviour, server: BatchServer, folder: Path) -> BatchRow:
    began, statuses, message = time.monotonic(), list[int](), ""
    while len(statuses) < RUNS and 0 not in statuses:
        kill = "" if statuses else behaviour.kill
        process = start_worker(server.url, folder, kill, batch={"max_requests": behaviour.max_requests})
        lines = process.communicate()[1].replace("\r", "\n").replace("\x1b[A", "").splitlines()
        said = [line for line in lines if line.strip() and not BAR.search(line)]
        if not statuses and said:
            message = said[-1].replace(server.url, "(url)")
        statuses.append(process.returncode)
    stored = [json.loads(payload)["row"] for shelf in shelves(folder) for payload in verify(shelf)[1].values()]
    return BatchRow(
        name,
        sum(batch["request_counts"]["total"] for batch in server.batches.values()),
        server.tokens,
        sum(row["num_prompt_tokens"] + row["num_response_tokens"] for row in stored),
        sum(row["finish_reason"] != "error" for row in stored),
        ", ".join(map(str, statuses)),
        time.monotonic() - began,
        message,
    )


if __name__ == "__main__":
    main()
