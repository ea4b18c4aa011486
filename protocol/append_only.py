"""A file that only grows, a line at a time, by any number of processes.

A line counts once its end of line is on disk. What a crash left of a line is cut off before the
next one is written: it was promised to nobody.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

# At least two of the longest lines that are ever written.
_TAIL_BYTES = 8192


class AppendOnlyLines:
    """Lines without their ends, in a file that is made with the first of them (0600)."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Keep other processes and threads from writing meanwhile. Errors: OSError."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    def append(self, lines: Sequence[bytes]) -> None:
        """Write at the end; on disk when it returns. Inside `alone`. Errors: OSError."""
        self.last_line()
        with self.path.open("ab") as stream:
            stream.write(b"".join(line + b"\n" for line in lines))
            stream.flush()
            os.fsync(stream.fileno())

    def last_line(self) -> bytes | None:
        """The last whole line, read from the file's end; half a line is cut off. Inside `alone`."""
        if not self.path.exists() or self.path.stat().st_size == 0:
            return None
        with self.path.open("rb+") as stream:
            size = stream.seek(0, os.SEEK_END)
            stream.seek(max(0, size - _TAIL_BYTES))
            tail = stream.read()
            if not tail.endswith(b"\n"):
                whole, _, _half = tail.rpartition(b"\n")
                stream.truncate(size - len(tail) + (len(whole) + 1 if whole else 0))
                tail = whole
        lines = tail.splitlines()
        return lines[-1] if lines else None

    def lines(self, start: int = 0) -> list[bytes]:
        """All lines from byte `start` on, without half a line at the end. Errors: OSError."""
        if not self.path.exists():
            return []
        with self.path.open("rb") as stream:
            stream.seek(start)
            data = stream.read()
        return data.split(b"\n")[:-1]
