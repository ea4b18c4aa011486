"""Files that are either the old one or the new one, never half of each."""

from __future__ import annotations

import os
import string
import tempfile
from pathlib import Path

# How tempfile ends a name.
_RANDOM_END = f"[{string.ascii_lowercase}{string.digits}_]" * 8


def write_atomically(path: Path, data: bytes, mode: int = 0o644) -> None:
    """Write to a temporary name in the same folder, flush to disk, rename, flush the folder.

    A crash at any point leaves either the previous file or the new one. mode: the new file's
    permissions; under 0o600 nobody but its owner can read it at any moment.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, mode)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    _flush_folder(path.parent)


def remove_leftovers(folder: Path, names: str) -> None:
    """Delete what a crash within write_atomically left of files in `folder`.

    names: a glob. Call it where nobody else can be writing one of them.
    """
    for path in folder.glob(f".{names}.{_RANDOM_END}"):
        path.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
