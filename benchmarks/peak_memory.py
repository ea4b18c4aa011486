"""The peak memory of a piece of work in this process, as the Linux kernel records it.

The record of getrusage would not do: it survives exec, so that a child starts with its parent's
peak. The one used here can be reset.
"""

from __future__ import annotations

import ctypes
import gc
import platform
from collections.abc import Callable
from pathlib import Path

from protocol.errors import FoedusError

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_RESET_PEAK = "5"


def can_measure() -> bool:
    """True where the kernel keeps a peak that can be reset."""
    return _CLEAR.exists()


def peak_growth(work: Callable[[], object]) -> int:
    """Bytes by which this process grew at most while it did the work."""
    gc.collect()
    if is_glibc():
        # What is free but still held would be used again without being counted.
        ctypes.CDLL(None).malloc_trim(0)
    before = _status_bytes("VmRSS")
    _CLEAR.write_text(_RESET_PEAK)
    work()
    return _status_bytes("VmHWM") - before


def is_glibc() -> bool:
    """True where malloc is glibc's, which can be told how to behave."""
    return platform.libc_ver()[0] == "glibc"


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii").splitlines():
        name, _, rest = line.partition(":")
        if name == field:
            return int(rest.split()[0]) * 1024
    raise FoedusError(f"Expected {field} in {_STATUS}, got none. This system keeps no peak memory.")
