"""A small disk of its own under a folder, which can be filled to the last byte."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
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


@contextmanager
def moved_to_small_disk(folder: Path) -> Iterator[SmallDisk]:
    """The folder and what is in it lie on a small disk meanwhile. Nobody may use them as this
    begins and ends. Errors: as SmallDisk."""
    aside = folder.with_name(f"{folder.name}.aside")
    shutil.copytree(folder, aside)
    for entry in folder.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    disk = SmallDisk(folder)
    shutil.copytree(aside, folder, dirs_exist_ok=True)
    try:
        yield disk
    finally:
        shutil.rmtree(aside)
        shutil.copytree(folder, aside)
        disk.unmount()
        shutil.copytree(aside, folder, dirs_exist_ok=True)
        shutil.rmtree(aside)
