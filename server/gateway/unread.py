"""How many bytes of each node's replies lie in the store because the run has not taken them yet."""

from __future__ import annotations

from collections import Counter


class UnreadBytes:
    """Counted from what passes by; a restart begins at zero."""

    def __init__(self) -> None:
        self._by_node: Counter[int] = Counter()
        self._by_message: dict[str, tuple[int, int]] = {}

    def add(self, node_id: int, message_id: str, num_bytes: int) -> None:
        """An object of a node's reply was stored."""
        _, before = self._by_message.get(message_id, (node_id, 0))
        self._by_message[message_id] = (node_id, before + num_bytes)
        self._by_node[node_id] += num_bytes

    def taken(self, message_id: str) -> None:
        """The run has the whole reply; SuperLink deletes it."""
        node_id, num_bytes = self._by_message.pop(message_id, (0, 0))
        self._by_node[node_id] -= num_bytes
        if self._by_node[node_id] <= 0:
            del self._by_node[node_id]

    def of(self, node_id: int) -> int:
        """Bytes that lie there now."""
        return self._by_node[node_id]
