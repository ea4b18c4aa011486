"""The C allocator, told to keep what training frees: the next step asks for it again at once.

glibc gives large freed blocks back to the kernel, so each training step on a CPU pays for tens of
thousands of page faults. Results do not change; the process holds its peak memory until it ends.
"""

from __future__ import annotations

import ctypes
import functools
import platform

# Parameters of glibc's mallopt, from <malloc.h>.
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_THRESHOLD = -1, -2, -3
# glibc's largest permitted value on 64-bit systems.
_MMAP_THRESHOLD_BYTES = 32 * 1024 * 1024
_TRIM_THRESHOLD_BYTES = 2_000_000_000
_TOP_PAD_BYTES = 64 * 1024 * 1024


@functools.cache
def keep_freed_memory() -> bool:
    """Once per process; True where the allocator took it (glibc), False elsewhere."""
    if platform.libc_ver()[0] != "glibc":
        return False
    libc = ctypes.CDLL(None)
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES),
        (_M_TOP_PAD, _TOP_PAD_BYTES),
    )
    return all(libc.mallopt(parameter, value) == 1 for parameter, value in settings)
