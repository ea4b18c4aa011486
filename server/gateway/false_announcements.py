"""A reply that claims other children for an object than the object has cannot block the run.

Flower believes the first announcement of an object's children and fails whoever announces the same
object otherwise. A node that announces an object of the run's next message (the model that
everybody has, say) with children of its own making, and never sends it, would fail the run's push.
The run's word counts: the node's upload is given up.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, Protocol

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

log = logging.getLogger("foedus.gateway")

_PENDING = """
SELECT object_id, session_id, src_node_id FROM object_push_session_pending
JOIN object_push_session_roots USING (session_id)
JOIN message_res ON message_res.message_id = root_object_id
"""

_CHILDREN = "SELECT child_id FROM object_children WHERE parent_id = :object_id"


class Announcing(Protocol):
    """What is used of Flower's SqlLinkState."""

    def query(self, query: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one SQL statement."""
        ...

    def _cleanup_push_session(self, session_id: str, *, cleanup_messages: bool) -> None:
        """What Flower does with an upload whose time is over."""
        ...


class FalseAnnouncements:
    """Blocks on the database."""

    def __init__(self, state: Announcing) -> None:
        self._state = state

    def give_up(self, trees: Iterable[ObjectTree]) -> list[str]:
        """Sessions of the nodes' uploads that contradict these messages of the run; they are no
        more."""
        by_object: defaultdict[str, set[tuple[str, int]]] = defaultdict(set)
        for row in self._state.query(_PENDING, {}):
            by_object[row["object_id"]].add((row["session_id"], row["src_node_id"]))
        if not by_object:
            return []
        false: set[tuple[str, int]] = set()
        for part in (part for tree in trees for part in iterate_object_tree(tree)):
            if part.object_id in by_object and self._contradicts(part):
                false |= by_object[part.object_id]
        for session_id, node_id in false:
            self._state._cleanup_push_session(session_id, cleanup_messages=True)
            log.warning("Node %d announced an object falsely: given up.", node_id % (1 << 64))
        return [session_id for session_id, _ in false]

    def _contradicts(self, part: ObjectTree) -> bool:
        rows = self._state.query(_CHILDREN, {"object_id": part.object_id})
        return {row["child_id"] for row in rows} != {child.object_id for child in part.children}
