"""A process that asks a teacher in batches, and can be killed at a step: argv is json, as `start_worker` writes it.

kill: the step of STEPS at which it gets kill -9; empty for none. prompts: how many. It prints nothing when it succeeds;
an error ends it with status 1 and the message on stderr.
"""

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from persyn.errors import InputError
from persyn.generation import Teacher, batches
from persyn.generation.batch_notes import Note
from persyn.generation.openai import OpenAISpeed
from persyn.responses import generate_responses
from persyn.store import Store
from tests.support.tables import prompts_table

STEPS = {
    "noted": "before the file is uploaded",
    "uploaded": "after the upload, before its name is noted",
    "creating": "after its name is noted, before the batch is made",
    "created": "after the server has made the batch, before its name is noted",
    "out": "after the batch's name is noted",
    "waiting": "between two looks",
    "read": "after the results are read, before they are stored",
    "half stored": "after some of the results are stored",
    "stored": "after all results are stored, before that is noted",
    "ended": "after that is noted",
}


def start_worker(url: str, folder: Path, kill: str = "", **asked: Any) -> "subprocess.Popen[str]":
    """Start the process. asked: prompts, system (of the teacher), batch (its knobs)."""
    command = [sys.executable, "-m", "tests.support.batch_worker"]
    given = {"url": url, "folder": str(folder), "kill": kill, "prompts": 40, "system": None, "batch": {}, **asked}
    return subprocess.Popen(
        [*command, json.dumps(given)], stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2]
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _patch(owner: type, name: str, then: Callable[..., None], *, before: bool = False) -> None:
    """Let `then` see the arguments of each call of a method, before or after it."""
    original = getattr(owner, name)

    @wraps(original)
    def patched(*args: Any, **named: Any) -> Any:
        if before:
            then(*args, **named)
        result = original(*args, **named)
        if not before:
            then(*args, **named)
        return result

    setattr(owner, name, patched)


def die_at(step: str) -> None:
    """Arrange for this process to be killed at a step."""

    def on_state(state: str, *, before: bool) -> None:
        def check(note: Note, **changes: Any) -> None:
            if changes.get("state", "noted") == state:
                die()

        _patch(Note, "save", check, before=before)

    puts: list[int] = []

    def on_put(*_: Any) -> None:
        puts.append(1)
        if len(puts) == 2:
            die()

    if step in ("noted", "out", "ended", "creating"):
        on_state(step, before=False)
    elif step in ("uploaded", "created", "stored"):
        on_state({"uploaded": "creating", "created": "out", "stored": "ended"}[step], before=True)
    elif step == "waiting":
        _patch(batches.Batches, "_look", lambda *_: die())
    elif step == "read":
        _patch(batches.Batches, "_read_files", lambda *_: die())
    elif step == "half stored":
        batches.MOST_ROWS = 10
        _patch(Store, "put", on_put)
    elif step:
        raise SystemExit(f"no step is called {step!r}")


def main() -> None:
    logging.basicConfig(format="%(message)s")
    asked = json.loads(sys.argv[1])
    die_at(asked["kill"])
    prompts = prompts_table([f"Tell story number {number}." for number in range(asked["prompts"])])
    fields: dict[str, Any] = {"model": "stub", "license": "x", "backend": "openai", "sampling": {"max_tokens": 40}}
    teacher = Teacher(**fields, system=asked["system"])
    batch = batches.BatchSpeed(**{"poll_seconds": 0.05, **asked["batch"]})
    speed = OpenAISpeed(base_url=asked["url"], max_outage=5.0, batch=batch)
    try:
        generate_responses(prompts, "t", teacher, Path(asked["folder"]), speed)
    except InputError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
