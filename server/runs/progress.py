"""What a run does, one JSON object a line, for whoever watches from another process.

The ServerApp writes; `foedus server run` and `status`, the keeper and the metrics read. A line is
written whole; a half-written last one (crash) is no line yet.
"""

from __future__ import annotations

import errno
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protocol.errors import FoedusError
from server.records import RoundRecord

log = logging.getLogger("foedus.server")

MAX_MESSAGE_CHARACTERS = 2000
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


@dataclass(frozen=True)
class Event:
    """One line. kind: started, waiting, round_started, phase_started, reply, checkpoint_started,
    round_finished, finished, failed. values: what the kind tells, see ProgressLog."""

    kind: str
    time: str
    values: Mapping[str, Any]


class ProgressLog:
    """An Observer that appends to progress.jsonl. site_names: node id -> name.

    A disk that refuses costs lines and not the run: what matters is in the checkpoint.
    """

    def __init__(self, path: Path, site_names: Mapping[int, str]) -> None:
        self._path = path
        self._site_names = site_names

    def started(self, flower_run_id: int, rounds: int) -> None:
        """This process has begun to work on the run under this number of Flower's."""
        self._append("started", flower_run_id=str(flower_run_id), rounds=rounds, pid=os.getpid())

    def waiting_for(self, sites: Sequence[str]) -> None:
        """The first round of this process waits for members that are not online."""
        self._append("waiting", sites=list(sites))

    def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
        """See Observer."""
        self._append("round_started", round=round_, rounds=rounds, cohort_size=cohort_size)

    def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
        """See Observer."""
        self._append(
            "phase_started", round=round_, attempt=attempt, phase=phase, num_sites=num_sites
        )

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """See Observer."""
        site = self._site_names.get(node_id, str(node_id))
        self._append("reply", round=round_, site=site, kind=kind, admitted=admitted)

    def checkpoint_started(self, round_: int) -> None:
        """See Observer."""
        self._append("checkpoint_started", round=round_)

    def round_finished(self, record: RoundRecord) -> None:
        """See Observer."""
        self._append("round_finished", **record.to_json())

    def finished(self, rounds: int) -> None:
        """All rounds are done and the adapter is released."""
        self._append("finished", rounds=rounds)

    def failed(self, error: Exception) -> None:
        """The run ended with an error. resumable: the same settings may do better next time."""
        message = str(error)
        if not isinstance(error, FoedusError):
            message = f"{type(error).__name__}: {error}"
        self._append(
            "failed",
            message=message[:MAX_MESSAGE_CHARACTERS],
            resumable=_is_resumable(error),
        )

    def _append(self, event: str, **values: Any) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"event": event, "time": now, **values})
        try:
            with self._path.open("ab") as stream:
                # A line that a full disk cut off must not swallow the next one.
                whole = stream.tell() == 0 or self._ends_with_newline()
                stream.write((line if whole else f"\n{line}").encode() + b"\n")
        except OSError as error:
            log.error("A line of %s could not be written: %s", self._path, error)

    def _ends_with_newline(self) -> bool:
        with self._path.open("rb") as stream:
            stream.seek(-1, 2)
            return stream.read(1) == b"\n"


class ProgressReader:
    """Reads a progress log as it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def new_events(self) -> Iterator[Event]:
        """Every whole line since the last call, in order; damaged ones are left out."""
        try:
            with self._path.open("rb") as stream:
                stream.seek(self._offset)
                data = stream.read()
        except FileNotFoundError:
            return
        whole, newline, _ = data.rpartition(b"\n")
        self._offset += len(whole) + len(newline)
        for line in whole.split(b"\n"):
            event = _event(line)
            if event is not None:
                yield event


def _is_resumable(error: Exception) -> bool:
    """What foedus refuses it would refuse again, unless a disk had no room."""
    refused = isinstance(error, FoedusError)
    cause = error.__cause__
    return not refused or (isinstance(cause, OSError) and cause.errno in _NO_ROOM)


def read_events(path: Path) -> list[Event]:
    """Every event of a run so far; none where there is no file."""
    return list(ProgressReader(path).new_events())


def _event(line: bytes) -> Event | None:
    try:
        values = json.loads(line)
        return Event(str(values.pop("event")), str(values.pop("time")), values)
    except (ValueError, KeyError, AttributeError, TypeError):
        return None
