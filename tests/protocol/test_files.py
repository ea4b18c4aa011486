"""A file is the old one or the new one."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from protocol.files import remove_leftovers, write_atomically


def test_the_new_bytes_replace_the_old_ones_in_a_folder_made_on_the_way(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "er" / "file.bin"
    write_atomically(path, b"old and longer")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert [p.name for p in path.parent.iterdir()] == ["file.bin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


@pytest.mark.parametrize("call", ["fsync", "chmod", "replace"])
def test_a_failure_in_between_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    path = tmp_path / "file.bin"
    write_atomically(path, b"old")

    def full_disk(*_: object) -> None:
        raise OSError("No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, call, full_disk)
        with pytest.raises(OSError, match="No space"):
            write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file.bin"]


def test_a_first_write_that_fails_leaves_no_file(tmp_path: Path) -> None:
    path = tmp_path / "file.bin"
    with pytest.raises(TypeError):
        write_atomically(path, "text")  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.faults
def test_what_a_killed_process_left_is_deleted_and_nothing_else(tmp_path: Path) -> None:
    script = f"""
import os, signal
from pathlib import Path
from protocol.files import write_atomically
os.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path({str(tmp_path / "secret.json")!r}), b"secret")
"""
    root = Path(__file__).parents[2]
    killed = subprocess.run([sys.executable, "-c", script], cwd=root, check=False)
    assert killed.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert left.read_bytes() == b"secret"
    kept = {"secret.json", ".secret.json", ".secret.json.old", ".other.json.abcdefgh"}
    for name in kept:
        (tmp_path / name).touch()
    remove_leftovers(tmp_path, "secret.json")
    assert {path.name for path in tmp_path.iterdir()} == kept
