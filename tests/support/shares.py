"""Work for test_shares: in a module of its own, so that a new process imports nothing heavy."""

import os
import time
from pathlib import Path

from persyn.errors import InputError


def marks(folder: Path, share: list[int]) -> None:
    """Leave a file for each number, and the process's id; wait as long as a file `wait` is there."""
    (folder / f"pid-{share[0]}").write_text(str(os.getpid()))
    for number in share:
        while (folder / "wait").exists():
            time.sleep(0.05)
        (folder / str(number)).touch()


def refuse(share: list[int]) -> None:
    """Refuse share 2."""
    if share == [2]:
        raise InputError("share 2 is wrong; mend it")
