"""Work for test_shares and test_split: in a module of its own, so that a new process imports nothing heavy."""

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


def wait_for_each_other(folder: Path, share: list[int]) -> None:
    """Leave the id of a process of several that hold one model; then each waits for the others again and again."""
    import torch

    (folder / f"pid-{torch.distributed.get_rank()}").write_text(str(os.getpid()))
    while True:
        torch.distributed.all_reduce(torch.ones(1))
        time.sleep(0.01)


def refuse_in_one(share: list[int]) -> None:
    """The second refuses; the first waits for it."""
    import torch

    if torch.distributed.get_rank() == 1:
        raise InputError("the second refuses; mend it")
    torch.distributed.all_reduce(torch.ones(1))
