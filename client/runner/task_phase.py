"""How far the runner is with its task: a few bytes that outlive the process that wrote them.

A SuperNode whose runner died with a message in hand notices after a minute, and until then takes no
other. So the runner notes which message it works on, and the next one says at once that no reply
will come. But between two of its own steps the SuperNode would wait for ever: where a task was
taken and its message not yet fetched, and where a reply was announced and not all of it handed
over. There the supervisor starts it anew.
"""

from __future__ import annotations

import os
from enum import Enum
from pathlib import Path

_COUNT_AT, _COUNT_BYTES = 1, 8
_NOTE_AT = _COUNT_AT + _COUNT_BYTES


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
    """A phase, a count and a note, in a file that both processes hold open; only the runner counts
    and notes."""

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR)

    def set(self, phase: TaskPhase) -> None:
        """Cheap enough for every step of every task."""
        os.pwrite(self._descriptor, phase.value, 0)

    def get(self) -> TaskPhase:
        """IDLE where nothing was ever set."""
        return TaskPhase(os.pread(self._descriptor, 1, 0) or TaskPhase.IDLE.value)

    def work_on(self, note: bytes) -> None:
        """WORKING, on the message of which `note` tells."""
        os.ftruncate(self._descriptor, _NOTE_AT)
        os.pwrite(self._descriptor, note, _NOTE_AT)
        # Last: whoever reads WORKING has the whole note.
        self.set(TaskPhase.WORKING)

    @property
    def note(self) -> bytes:
        """Of the message that is worked on, or was last."""
        return os.pread(self._descriptor, os.fstat(self._descriptor).st_size, _NOTE_AT)

    def count(self) -> None:
        """One message more was dealt with."""
        number = self.num_done + 1
        os.pwrite(self._descriptor, number.to_bytes(_COUNT_BYTES, "big"), _COUNT_AT)

    @property
    def num_done(self) -> int:
        """Messages dealt with since the file was made."""
        return int.from_bytes(os.pread(self._descriptor, _COUNT_BYTES, _COUNT_AT), "big")
