"""A stage in a process of its own, as `python -m stages.<name>` runs it: argv is the stage's name and its argv.

KILL_AFTER: kill -9 this process after this many steps. FSDP_ON_CPU: make accelerate, which shards only on GPUs, shard
on a CPU.
"""

import os
import runpy
import signal
import sys
from typing import Any

from accelerate import state
from accelerate.utils import DistributedType
from transformers import Trainer


def die_after(steps: int) -> None:
    original: Any = Trainer.training_step
    taken: list[int] = []

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        if len(taken) == steps and os.environ.get("RANK", "0") == "0":
            os.kill(os.getpid(), signal.SIGKILL)
        taken.append(1)
        return original(self, *args, **kwargs)

    Trainer.training_step = step  # type: ignore[method-assign]


def shard_on_a_cpu() -> None:
    original: Any = state.AcceleratorState.__init__

    def init(self: Any, *args: Any, fsdp_plugin: Any = None, **kwargs: Any) -> None:
        original(self, *args, fsdp_plugin=fsdp_plugin, **kwargs)
        if fsdp_plugin is not None:
            self.fsdp_plugin = fsdp_plugin
        if getattr(self, "fsdp_plugin", None) is not None:
            self.distributed_type = DistributedType.FSDP

    state.AcceleratorState.__init__ = init


if __name__ == "__main__":
    if "KILL_AFTER" in os.environ:
        die_after(int(os.environ["KILL_AFTER"]))
    if "FSDP_ON_CPU" in os.environ:
        shard_on_a_cpu()
    sys.argv = sys.argv[1:]
    runpy.run_module(f"stages.{sys.argv[0]}", run_name="__main__", alter_sys=True)
