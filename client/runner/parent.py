"""A child process that does not outlive the process that started it."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def end_with_parent(parent_pid: int) -> None:
    """Have Linux kill this process as soon as its parent is gone, however that went.

    First thing in a child's main thread; the parent has to start children from a thread that lives
    as long as it does.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # It may have gone before that was asked for.
    if os.getppid() != parent_pid:
        os._exit(1)
