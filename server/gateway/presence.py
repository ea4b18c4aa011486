"""Which nodes SuperLink takes for online: in the place of one that is not, it answers itself.

A node is online for a minute after its last heartbeat. Heartbeats are a clock of their own in a
SuperNode and pause for up to 20 s after an outage, while it asks for messages again already; and a
node that died without a word stays online, so that SuperLink turns it away when it comes back.
"""

from __future__ import annotations

import time
from typing import Protocol

from flwr.common.constant import HEARTBEAT_DEFAULT_INTERVAL

# A heartbeat is a write, and SQLite takes one write at a time.
_AT_MOST_EVERY_SECONDS = 10.0


class Nodes(Protocol):
    """What is needed of Flower's LinkState."""

    def acknowledge_node_heartbeat(self, node_id: int, heartbeat_interval: float) -> bool:
        """The node is online for two intervals."""

    def deactivate_node(self, node_id: int) -> bool:
        """The node is offline."""


class Presence:
    """Blocks on the database."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._noted_at: dict[int, float] = {}

    def asks(self, node_id: int) -> None:
        """A node that asks for messages is online. It has proved who it is."""
        now = time.monotonic()
        noted_at = self._noted_at.get(node_id)
        if noted_at is None or now - noted_at >= _AT_MOST_EVERY_SECONDS:
            self._noted_at[node_id] = now
            self._nodes.acknowledge_node_heartbeat(node_id, HEARTBEAT_DEFAULT_INTERVAL)

    def comes_back(self, node_id: int) -> None:
        """A node that starts has ended before, whatever SuperLink thinks."""
        self._nodes.deactivate_node(node_id)
