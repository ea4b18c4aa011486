"""Files that exist in memory only, for handing secrets to child processes.

A secret in a command line or an environment can be read by other processes of the user, and one on
disk outlives its use.
"""

from __future__ import annotations

import os
from pathlib import Path


class MemoryFile:
    """Readable by its owner alone, and gone with the last process that holds it."""

    def __init__(self, name: str, content: bytes) -> None:
        self.descriptor = os.memfd_create(name, os.MFD_CLOEXEC)
        os.fchmod(self.descriptor, 0o600)
        os.pwrite(self.descriptor, content, 0)

    @property
    def path(self) -> Path:
        """What a child that was given the descriptor opens, as often as it likes."""
        return Path(f"/proc/self/fd/{self.descriptor}")

    def close(self) -> None:
        """This process lets go of it."""
        os.close(self.descriptor)
