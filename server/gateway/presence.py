"""Which nodes SuperLink takes for online: in the place of one that is not, it answers itself.

A node is online for a minute after its last heartbeat. Heartbeats are a clock of their own in a
SuperNode and pause for up to 20 s after an outage, while it asks for messages again already; and a
node that died without a word stays online, so that SuperLink turns it away when it comes back.
"""

from __future__ import annotations

import datetime
import logging
import time
from typing import Any, Protocol

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy.exc import SQLAlchemyError

from server.lasting_problems import LastingProblems

log = logging.getLogger("foedus.gateway")

# A heartbeat is a write, and SQLite takes one write at a time.
_AT_MOST_EVERY_SECONDS = 10.0
_NOTING = "That nodes ask for messages is not noted"

# SuperLink activates what is offline. It answers the run in the place of a node by `online_until`
# alone, which therefore stays: the node is on its way back.
_ENDED = """
UPDATE node SET status = 'offline', last_deactivated_at = :now
WHERE node_id = :node_id AND status = 'online'
"""


class Nodes(Protocol):
    """What is needed of Flower's SqlLinkState."""

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        """The node is online for two intervals."""
        ...

    def query(self, query: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one SQL statement."""
        ...


class Presence:
    """Blocks on the database."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._noted_at: dict[int, float] = {}
        self._problems = LastingProblems(log)

    def asks(self, node_id: int) -> None:
        """A node that asks for messages is online. It has proved who it is.

        A database that takes no write now is tried again at the next question: the node has other
        heartbeats, and a question that failed would end it.
        """
        now = time.monotonic()
        noted_at = self._noted_at.get(node_id)
        if noted_at is not None and now - noted_at < _AT_MOST_EVERY_SECONDS:
            return
        try:
            self._nodes.acknowledge_node_heartbeat(node_id, HEARTBEAT_DEFAULT_INTERVAL)
        except SQLAlchemyError as error:
            self._problems.tell(_NOTING, type(error).__name__)
            return
        self._problems.over(_NOTING)
        self._noted_at[node_id] = now

    def comes_back(self, node_id: int) -> None:
        """A node that starts has ended before, whatever SuperLink thinks."""
        self._noted_at.pop(node_id, None)
        now = datetime.datetime.now(datetime.UTC).isoformat()
        self._nodes.query(_ENDED, {"node_id": uint64_to_int64(node_id), "now": now})
