"""A plug-in that vLLM loads into its processes: those started by PerSyn end when PerSyn ends.

vLLM's engine outlives a parent that was killed (kill -9, out of memory) and keeps the GPU's memory, so the next run
could not start. Processes that PerSyn did not start, such as `vllm serve`, are not affected.
"""

import ctypes
import os
import signal
import sys

from persyn.settings import VLLM_PARENT

PR_SET_PDEATHSIG = 1


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends (Linux only), if PerSyn is its parent."""
    if sys.platform == "linux" and os.environ.get(VLLM_PARENT) == str(os.getppid()):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.environ[VLLM_PARENT] != str(os.getppid()):  # it ended meanwhile
            os.kill(os.getpid(), signal.SIGKILL)
