"""A plug-in that vLLM loads into its processes: those started by PerSyn end when PerSyn ends.

vLLM's engine outlives a parent that was killed (kill -9, out of memory) and keeps the GPU's memory, so the next run
could not start. Processes that PerSyn did not start, such as `vllm serve`, are not affected.
"""

import os

from persyn import errors
from persyn.settings import VLLM_PARENT


def end_with_parent() -> None:
    """As errors.end_with_parent, if PerSyn is this process's parent."""
    errors.end_with_parent(int(os.environ.get(VLLM_PARENT, "0")))
