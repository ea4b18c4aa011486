"""How far the runner is with its task: a few bytes that the supervisor reads, also after a crash.

A SuperNode whose runner dies with a message in hand notices after a minute and sends an error in
place of the reply. But between two of its own steps it would wait for ever: where a task was taken
and its message not yet fetched, and where a reply was announced and not all of it handed over.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

_COUNT_AT, _COUNT_BYTES = 1, 8


class TaskPhase(Enum):
    """What the runner is doing."""

    IDLE = b"-"
    FETCHING = b"f"
    WORKING = b"w"
    REPLYING = b"r"

    @property
    def hangs_the_supernode(self) -> bool:
        """True where a SuperNode would wait for ever for a runner that died in this phase."""
        return self in (TaskPhase.FETCHING, TaskPhase.REPLYING)


class PhaseMark:
    """A phase and a count, in a file that both processes hold open; only the runner counts."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR)

    def set(self, phase: TaskPhase) -> None:
        """Cheap enough for every step of every task."""
        os.pwrite(self._descriptor, phase.value, 0)

    def get(self) -> TaskPhase:
        """IDLE where nothing was ever set."""
        return TaskPhase(os.pread(self._descriptor, 1, 0) or TaskPhase.IDLE.value)

    def count(self) -> None:
        """One message more was dealt with."""
        number = self.num_done + 1
        os.pwrite(self._descriptor, number.to_bytes(_COUNT_BYTES, "big"), _COUNT_AT)

    @property
    def num_done(self) -> int:
        """Messages dealt with since the file was made."""
        return int.from_bytes(os.pread(self._descriptor, _COUNT_BYTES, _COUNT_AT), "big")
