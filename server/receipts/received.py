"""The coordinator's own record of every reply that came, admitted or not: hash-chained lines.

A line says what the reply itself said (protocol.reply_facts) and what was made of it. It is on disk
before the round goes on, so that a site's receipt for it can be countersigned after any crash.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Protocol

from flwr.app import Message

from protocol.chained_lines import ChainedLines, Position
from protocol.errors import FoedusError, WireError
from protocol.messages import Kind
from protocol.reply_facts import ReplyFacts, phase_kind, reply_facts
from protocol.secure_aggregation.wire import Phase

log = logging.getLogger("foedus.server")

FILE = "received.jsonl"


@dataclass(frozen=True)
class Asked:
    """What the coordinator asked for when the reply came. phase: None outside of a session."""

    run_id: str
    round: int
    kind: Kind
    phase: Phase | None = None


class Received(Protocol):
    """Hears of every reply once it was judged."""

    def reply_came(self, asked: Asked, node_id: int, message: Message, reason: str) -> None:
        """reason: why it was set aside; empty = admitted. Errors: FoedusError ends the run."""


class Unrecorded:
    """For runs without sites of their own, such as simulations: keeps nothing."""

    def reply_came(self, asked: Asked, node_id: int, message: Message, reason: str) -> None:
        """See Received."""


@dataclass(frozen=True)
class ReceivedReply:
    """One line. node_id: Flower's. kind, run_id, round, status, digest, num_bytes: see ReplyFacts;
    what was asked, and no digest, where the reply says none. reason: empty = admitted."""

    sequence: int
    time: str
    node_id: int
    kind: str
    run_id: str
    round: int
    status: str
    digest: str
    num_bytes: int
    reason: str
    previous: str

    @property
    def admitted(self) -> bool:
        """True where the reply was used."""
        return not self.reason

    @property
    def facts(self) -> ReplyFacts:
        """What a site's receipt must agree with."""
        return ReplyFacts(
            self.kind, self.run_id, self.round, self.status, self.digest, self.num_bytes
        )


class ReceivedLog:
    """received.jsonl of one run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = ChainedLines(path, "record of a reply")

    def reply_came(self, asked: Asked, node_id: int, message: Message, reason: str) -> None:
        """See Received. Errors: FoedusError where the disk refuses: without the record nobody could
        show later what came, so the run ends here and is resumed once there is room."""
        values = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "node_id": node_id,
            "reason": reason,
            **asdict(_facts(asked, message)),
        }
        try:
            self._lines.append(values)
        except OSError as error:
            raise FoedusError(
                f"Expected to record a reply of node {node_id} in {self.path}, got "
                f"{error.strerror}. The run stops after its last whole round; make room and "
                "resume it."
            ) from error

    def verify(self, after: Position | None = None) -> Iterator[tuple[ReceivedReply, Position]]:
        """Every reply in order and where its line ends; half a line at the end is left out.

        Errors: FoedusError naming the first line that does not follow from the one before.
        """
        for line in self._lines.verify(after):
            try:
                reply = ReceivedReply(**line.values)
            except TypeError as error:
                raise self._lines.no_such_line(line.end.count) from error
            yield reply, line.end


def _facts(asked: Asked, message: Message) -> ReplyFacts:
    kind = phase_kind(asked.phase) if asked.phase else asked.kind
    nothing = ReplyFacts(kind, asked.run_id, asked.round, "", "", 0)
    if message.has_error():
        return nothing
    try:
        return reply_facts(message.content, asked.kind)
    except WireError:
        return nothing
    except Exception as error:
        # Whatever a site has put together, it must not end the run here.
        log.warning("A reply could not be described: %s", type(error).__name__)
        return nothing
