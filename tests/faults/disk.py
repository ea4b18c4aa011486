"""A small disk of its own under a folder, which can be filled to the last byte."""

from __future__ import annotations

import os
import subprocess
from contextlib import suppress
from pathlib import Path

_SIZE = "64m"
_BLOCK_BYTES = 2**16


class SmallDisk:
    """A file system in memory, mounted on an empty folder. Errors: OSError where that is not
    allowed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._filler = folder / ".filler"
        words = ["mount", "-t", "tmpfs", "-o", f"size={_SIZE}", "none", str(folder)]
        if subprocess.run(words, check=False, capture_output=True).returncode:
            raise PermissionError(f"{folder} could not be mounted on")

    def fill(self) -> None:
        """Until not one more byte goes on it."""
        descriptor = os.open(self._filler, os.O_WRONLY | os.O_CREAT)
        try:
            for size in (_BLOCK_BYTES, 1):
                with suppress(OSError):
                    while True:
                        os.write(descriptor, bytes(size))
        finally:
            os.close(descriptor)

    def make_room(self) -> None:
        """Take away what filled it."""
        self._filler.unlink(missing_ok=True)

    def unmount(self) -> None:
        """Away with it, once its users are gone."""
        subprocess.run(["umount", "--lazy", str(self._folder)], check=True)
