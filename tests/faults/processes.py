"""Processes of a deployment: started, found by what they are, killed, stopped and let go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

# Longer than anything takes that still works; who waits this long has found a fault of ours.
PATIENCE_SECONDS = 240.0
_LOOK_SECONDS = 0.005
_END_SECONDS = 40.0


def wait_for(what: str, found: Callable[[], T | None], seconds: float = PATIENCE_SECONDS) -> T:
    """The first value of `found` but None and False. Errors: AssertionError naming `what`."""
    give_up = time.monotonic() + seconds
    while True:
        value = found()
        if value is not None and value is not False:
            return value
        assert time.monotonic() < give_up, f"{what}: not within {seconds:.0f} s"
        time.sleep(_LOOK_SECONDS)


class Started:
    """A command in a session of its own; its output goes to a file that later starts add to."""

    def __init__(
        self, words: Sequence[str], environment: Mapping[str, str], folder: Path, log: Path
    ) -> None:
        with log.open("ab") as stream:
            self._process = subprocess.Popen(
                list(words),
                cwd=folder,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )
        self.words = " ".join(words)
        self._known = {self.pid}

    @property
    def pid(self) -> int:
        """Of the command itself."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """False once it has ended."""
        return self._process.poll() is None

    def family(self) -> set[int]:
        """Every living process that it started, and they, itself included; those of before too,
        which may have lost their parent."""
        self._known = {pid for pid in self._known | descendants(self._known) if is_alive(pid)}
        return set(self._known)

    def kill(self) -> None:
        """SIGKILL to the command alone; who depends on it has to see to itself."""
        self.family()
        self._process.kill()
        self._process.wait()

    def ask_to_end(self) -> None:
        """SIGTERM, which it passes on."""
        self._process.terminate()

    def end(self) -> None:
        """SIGTERM, and after a while SIGKILL, to it and all that is left of its family."""
        family = self.family()
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        for pid in family | self.family():
            send(pid, signal.SIGKILL)
        self._process.wait()


def send(pid: int, number: signal.Signals) -> None:
    """A signal to a process that may be gone."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def freeze(pids: Collection[int]) -> None:
    """Stop processes as they are: alive, and deaf."""
    for pid in pids:
        send(pid, signal.SIGSTOP)


def thaw(pids: Collection[int]) -> None:
    """Let them go on."""
    for pid in pids:
        send(pid, signal.SIGCONT)


def is_alive(pid: int) -> bool:
    """True unless it is gone or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except OSError:
        return False
    return text.rpartition(")")[2].split()[0] != "Z"


def words_of(pid: int) -> str:
    """Its command line; empty where it is gone."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return ""
    return words.replace(b"\0", b" ").decode(errors="replace")


def descendants(pids: set[int]) -> set[int]:
    """The living children of these processes, and theirs."""
    children: dict[int, set[int]] = {}
    for pid, parent in _parents():
        children.setdefault(parent, set()).add(pid)
    found: set[int] = set()
    waiting = set(pids)
    while waiting:
        waiting = set().union(*(children.get(pid, set()) for pid in waiting)) - found
        found |= waiting
    return found


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                text = (entry / "stat").read_text(encoding="utf-8")
                yield int(entry.name), int(text.rpartition(")")[2].split()[1])
