"""Keeps the coordinator's process alive, one at a time, and leaves nothing running behind it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil

from protocol.errors import FoedusError

log = logging.getLogger("foedus.server")

FIRST_PAUSE_SECONDS = 0.5
LONGEST_PAUSE_SECONDS = 30.0
# A process that lived this long was no failed start; the pauses begin anew.
LIVED_SECONDS = 60.0
# A clean stop: answers in flight, then SuperLink's own end.
STOP_SECONDS = 20.0
LEFTOVER_SECONDS = 3.0
# The child's own word for "starting again would not change this".
HOPELESS = 2

_PR_SET_CHILD_SUBREAPER = 36


@contextlib.contextmanager
def single_instance(lock: Path) -> Iterator[None]:
    """Errors: FoedusError where another process holds the lock."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise FoedusError(
                f"The coordinator of this consortium is up already ({lock} is held)."
            ) from error
        yield


class Supervisor:
    """Runs `command` until SIGTERM or SIGINT; starts it again, after a growing pause, if it dies.

    The child has a pipe as standard input, which ends when this process does: it must stop then.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = list(command)
        self._stopping = False
        self._child: subprocess.Popen[bytes] | None = None

    def run(self) -> int:
        """Returns the exit status: 0 after a stop that was asked for, else the child's."""
        _adopt_orphans()
        handlers = {n: signal.signal(n, self._stop) for n in (signal.SIGTERM, signal.SIGINT)}
        try:
            return self._keep_alive()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def _keep_alive(self) -> int:
        pause_seconds = FIRST_PAUSE_SECONDS
        while True:
            started = time.monotonic()
            status = self._run_child()
            if self._stopping:
                return 0
            if status in (0, HOPELESS):
                return status
            if time.monotonic() - started > LIVED_SECONDS:
                pause_seconds = FIRST_PAUSE_SECONDS
            log.error(
                "The coordinator's process ended with %d; again in %.1f s.", status, pause_seconds
            )
            self._pause(pause_seconds)
            pause_seconds = min(2 * pause_seconds, LONGEST_PAUSE_SECONDS)

    def _run_child(self) -> int:
        if self._stopping:
            return 0
        self._child = subprocess.Popen(self._command, stdin=subprocess.PIPE)
        try:
            return self._wait(self._child)
        finally:
            end_leftovers()

    def _wait(self, child: subprocess.Popen[bytes]) -> int:
        give_up = float("inf")
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(timeout=0.2)
            if self._stopping:
                give_up = min(give_up, time.monotonic() + STOP_SECONDS)
            if time.monotonic() > give_up:
                log.error("The coordinator's process did not stop and is killed.")
                child.kill()

    def _stop(self, number: int, frame: object) -> None:
        self._stopping = True
        if self._child is not None and self._child.poll() is None:
            self._child.terminate()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stopping and time.monotonic() < until:
            time.sleep(0.1)


def end_leftovers() -> None:
    """End every process below this one: what the child started and left behind."""
    left = psutil.Process().children(recursive=True)
    for process in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(left, timeout=LEFTOVER_SECONDS)
    for process in alive:
        log.warning("Process %d did not end and is killed.", process.pid)
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=LEFTOVER_SECONDS)


def gateway_command(consortium: Path, log_format: str) -> list[str]:
    """The child of `foedus server up`."""
    module = [sys.executable, "-m", "server.gateway"]
    return [*module, "--consortium", str(consortium), "--log-format", log_format]


def _adopt_orphans() -> None:
    """On Linux, processes whose parent died become this one's children instead of init's."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
