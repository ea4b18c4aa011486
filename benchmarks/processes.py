"""Real processes for a benchmark: each with a log, all of them ended, and what they started too."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from protocol.errors import FoedusError

LOOPBACK = "127.0.0.1"
_BIN = Path(sys.executable).parent
_ROOT = Path(__file__).parents[1]
# Processes inherit it, also those that leave the session of whoever started them.
_MARK = "FOEDUS_BENCHMARK_MARK"
_GRACE_SECONDS = 20.0
_PAUSE_SECONDS = 0.5
_KILL_PAUSE_SECONDS = 0.05
_LOG_TAIL_CHARACTERS = 1500


class Processes:
    """Started with one thread each; logs go to folder/NAME.log.

    mark: in the environment of each, and of all that they start.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str] | None = None) -> None:
        self._folder = folder
        self.mark = secrets.token_hex(16)
        self._running: dict[str, subprocess.Popen[bytes]] = {}
        self._environment = {
            **os.environ,
            "PATH": f"{_BIN}{os.pathsep}{os.environ.get('PATH', '')}",
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            # The benchmarks are not installed, and a package that we need brings others so named.
            "PYTHONPATH": str(_ROOT),
            _MARK: self.mark,
            **(environment or {}),
        }

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        # SIGTERM would end this process and leave all others running.
        self._before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        signal.signal(signal.SIGTERM, self._before)
        for process in reversed(self._running.values()):
            process.terminate()
        give_up = time.monotonic() + _GRACE_SECONDS
        for process in self._running.values():
            try:
                process.wait(max(0.0, give_up - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        give_up = time.monotonic() + _GRACE_SECONDS
        # A killed process is there for a moment more, and another may have started it anew.
        while (left := marked_processes(self.mark)) and time.monotonic() < give_up:
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            time.sleep(_KILL_PAUSE_SECONDS)

    def start(self, name: str, *words: str) -> int:
        """Start a program of this environment in the background; returns its process id."""
        with self._log(name).open("wb") as log:
            process = subprocess.Popen(
                _found(words),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self._running[name] = process
        return process.pid

    def run(self, name: str, *words: str) -> None:
        """Run a program to its end. Errors: FoedusError with the end of its log where it fails."""
        with self._log(name).open("ab") as log:
            done = subprocess.run(
                _found(words),
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                check=False,
            )
        if done.returncode != 0:
            raise FoedusError(f"Expected {name} to end well:\n{self._tail(name)}")

    def wait_for(self, what: str, ready: Callable[[], bool], patience_seconds: float) -> None:
        """Until it is ready. Errors: FoedusError with the ends of all logs where a process ends
        before, or patience does."""
        give_up = time.monotonic() + patience_seconds
        while not ready():
            ended = [name for name, process in self._running.items() if process.poll() is not None]
            if ended or time.monotonic() >= give_up:
                logs = "\n".join(self._tail(name) for name in self._running)
                why = f"{', '.join(ended)} ended" if ended else f"{patience_seconds:.0f} s passed"
                raise FoedusError(f"Expected {what}, but {why}.\n{logs}")
            time.sleep(_PAUSE_SECONDS)

    def _log(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def _tail(self, name: str) -> str:
        text = self._log(name).read_text(encoding="utf-8", errors="replace")
        return f"--- {name}\n{text[-_LOG_TAIL_CHARACTERS:]}"


def _found(words: Sequence[str]) -> list[str]:
    """Programs by the path beside this Python, where they are installed there."""
    beside = _BIN / words[0]
    return [str(beside) if beside.exists() else words[0], *words[1:]]


def free_port() -> int:
    """A port of the loopback address that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    """True where somebody listens on this port of the loopback address."""
    with socket.socket() as connection:
        connection.settimeout(1.0)
        return connection.connect_ex((LOOPBACK, port)) == 0


def cpu_seconds(pid: int) -> float:
    """Processor time of a process so far. Errors: FoedusError where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2]
    except OSError as error:
        raise FoedusError(f"Expected process {pid} to run, it is gone.") from error
    user, system = fields.split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def marked_processes(mark: str) -> list[int]:
    """Process ids of those whose environment has the mark; Linux only."""
    needle = f"{_MARK}={mark}".encode()
    found: list[int] = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if needle in entry.read_bytes().split(b"\0"):
                found.append(int(entry.parent.name))
        except OSError:
            continue  # It ended meanwhile, or is another user's.
    return found
