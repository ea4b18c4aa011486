"""One run on disk: what was asked for, and who works on it now.

runs/NAME/run.json holds what people and the keeper decided; progress.jsonl what the ServerApp did.
Both survive every process of the coordinator.
"""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from protocol.errors import FoedusError
from protocol.files import write_atomically

RECORD, PROGRESS = "run.json", "progress.jsonl"
_CHANGING, _LAUNCHING, _OCCUPIED = ".changing.lock", ".launching.lock", ".occupied.lock"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class RunStatus(StrEnum):
    """Where a run stands. STARTING to INTERRUPTED go on by themselves, the others do not."""

    STARTING = "starting"
    RUNNING = "running"
    INTERRUPTED = "interrupted"
    FINISHED = "finished"
    FAILED = "failed"
    STOPPED = "stopped"

    @property
    def is_open(self) -> bool:
        """True where more is to come without anybody doing anything."""
        return self in (RunStatus.STARTING, RunStatus.RUNNING, RunStatus.INTERRUPTED)


@dataclass(frozen=True)
class RunRecord:
    """What was asked for. created and resume_after: seconds since 1970.

    overrides: the researcher's words, without those that the consortium's folder gives.
    flower_run_ids: one for each time it was started or resumed, the newest last. resumes: by the
    keeper since the last finished round, which was round `resumed_after_round`.
    """

    name: str
    overrides: tuple[str, ...]
    created: float
    flower_run_ids: tuple[int, ...] = ()
    status: RunStatus = RunStatus.STARTING
    message: str = ""
    resumes: int = 0
    resumed_after_round: int = 0
    resume_after: float = 0.0

    @property
    def newest_flower_run(self) -> int:
        """Flower's number of the newest start; 0 = never started."""
        return self.flower_run_ids[-1] if self.flower_run_ids else 0

    def to_json(self) -> dict[str, Any]:
        """Flower's numbers as text: they have 64 bits, which not every reader of JSON keeps."""
        return {**asdict(self), "flower_run_ids": [str(number) for number in self.flower_run_ids]}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> RunRecord:
        """Inverse of to_json. Errors: KeyError, TypeError, ValueError."""
        return cls(
            **{
                **values,
                "overrides": tuple(str(word) for word in values["overrides"]),
                "flower_run_ids": tuple(int(number) for number in values["flower_run_ids"]),
                "status": RunStatus(values["status"]),
            }
        )


class RunFolder:
    """runs/NAME. Commands and the keeper take turns at changing its record."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def name(self) -> str:
        """The run's name."""
        return self.path.name

    @property
    def progress(self) -> Path:
        """What the ServerApp writes as it goes on."""
        return self.path / PROGRESS

    @property
    def adapter(self) -> Path:
        """The released adapter."""
        return self.path / "adapter"

    @property
    def history(self) -> Path:
        """Every round's record, once all are done."""
        return self.path / "history.json"

    def create(self, record: RunRecord) -> None:
        """Errors: FoedusError where the name is taken."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError as error:
            raise FoedusError(
                f"A run named {self.name} exists in {self.path.parent}. Choose another --name, or "
                f"go on with it: foedus server resume {self.name}."
            ) from error
        self._write(record)

    def read(self) -> RunRecord:
        """Errors: FoedusError where there is no such run or its record is damaged."""
        path = self.path / RECORD
        try:
            return RunRecord.from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise FoedusError(
                f"Expected a run named {self.name} in {self.path.parent}, got none. "
                "foedus server status lists them."
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise FoedusError(
                f"Expected the record of a run in {path}, got a damaged file. Its checkpoints are "
                "whole: restore run.json from a backup."
            ) from error

    def change(self, changed: Callable[[RunRecord], RunRecord]) -> RunRecord:
        """Replace the record by `changed` of it, while nobody else does. Errors: as `read`."""
        with _opened(self.path / _CHANGING) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            old = self.read()
            new = changed(old)
            if new != old:
                self._write(new)
        return new

    def note(self, status: RunStatus, message: str = "") -> RunRecord:
        """Record where the run stands."""
        return self.change(lambda record: replace(record, status=status, message=message))

    @contextmanager
    def launching(self) -> Iterator[None]:
        """Held while Flower is asked to start the run. Errors: Occupied where another does so."""
        message = f"Run {self.name} is being started by another process."
        with _held(self.path / _LAUNCHING, message):
            yield

    @property
    def is_launching(self) -> bool:
        """True while a process is within `launching`."""
        return _is_held(self.path / _LAUNCHING)

    @property
    def is_occupied(self) -> bool:
        """True while a process works on the run, see `occupy`."""
        return _is_held(self.path / _OCCUPIED)

    def _write(self, record: RunRecord) -> None:
        text = json.dumps(record.to_json(), indent=2) + "\n"
        write_atomically(self.path / RECORD, text.encode())


def run_folder(runs: Path, name: str) -> RunFolder:
    """The folder of a run by its name, whether it exists or not.

    Errors: FoedusError for what is no name, so that none leads out of `runs`.
    """
    if not _NAME.fullmatch(name):
        raise FoedusError(
            f"Expected a run's name of 1 to 64 letters, digits, '-' and '_', got {name!r}."
        )
    return RunFolder(runs / name)


class Occupied(FoedusError):
    """Another process works on this run."""


@contextmanager
def occupy(output_dir: Path) -> Iterator[None]:
    """Hold a run's folder as the one process that runs it; the kernel lets go of it at any death.

    Errors: Occupied.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    message = f"Another process is at work on the run in {output_dir}. Stop it first."
    with _held(output_dir / _OCCUPIED, message):
        yield


@contextmanager
def _held(path: Path, otherwise: str) -> Iterator[None]:
    with _opened(path) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Occupied(otherwise) from error
        yield


def _is_held(path: Path) -> bool:
    try:
        with _opened(path, create=False) as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


@contextmanager
def _opened(path: Path, create: bool = True) -> Iterator[int]:
    flags = os.O_RDWR | os.O_CLOEXEC | (os.O_CREAT if create else 0)
    descriptor = os.open(path, flags, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def run_folders(runs: Path) -> list[RunFolder]:
    """Every run of a consortium, the oldest first; those with a damaged record come last."""
    found = [RunFolder(path.parent) for path in runs.glob(f"*/{RECORD}")]
    return sorted(found, key=_created)


def _created(folder: RunFolder) -> float:
    try:
        return folder.read().created
    except FoedusError:
        return math.inf


def next_name(runs: Path) -> str:
    """run-1, run-2, …: the first that no run has."""
    number = 1
    while (runs / f"run-{number}").exists():
        number += 1
    return f"run-{number}"
