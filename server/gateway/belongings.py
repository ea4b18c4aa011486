"""What in SuperLink's store is a node's own: read from its database, whose rows outlive restarts.

Flower's fleet handlers let any node that knows an object's id read it, and any node that knows a
message's id delete it. These questions close that; all of them block on the database.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Protocol

from flwr.supercore.utils import uint64_to_int64

# All objects of the messages that were handed to a node.
_READABLE = """
WITH RECURSIVE readable(object_id) AS (
    SELECT message_id FROM message_ins WHERE dst_node_id = :node_id AND delivered_at != ''
    UNION
    SELECT child_id FROM object_children JOIN readable ON parent_id = readable.object_id
)
SELECT object_id FROM readable
"""

_INSTRUCTION = """
SELECT message_id FROM message_ins
WHERE message_id = :message_id AND dst_node_id = :node_id AND delivered_at != ''
"""

# An upload's messages by whom they come from; instructions, which come from the run, have no reply.
_UPLOAD = """
SELECT root_object_id AS message_id, src_node_id FROM object_push_session_roots
LEFT JOIN message_res ON message_res.message_id = root_object_id
WHERE session_id = :session_id
"""

_OPEN_UPLOADS = """
SELECT session_id, reply_to_message_id, object_id FROM object_push_session_pending
JOIN object_push_session_roots USING (session_id)
JOIN message_res ON message_res.message_id = root_object_id
"""


class Database(Protocol):
    """What is used of Flower's SqlLinkState."""

    def query(self, query: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one SQL statement."""
        ...


class Belongings:
    """Answers for one database. What a node may read is kept until it asks for something else."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._readable: dict[int, frozenset[str]] = {}

    def may_read(self, node_id: int, object_id: str) -> bool:
        """True where the object is part of a message that was handed to the node."""
        if object_id not in self._readable.get(node_id, ()):
            rows = self._database.query(_READABLE, {"node_id": uint64_to_int64(node_id)})
            self._readable[node_id] = frozenset(row["object_id"] for row in rows)
        return object_id in self._readable[node_id]

    def was_instructed(self, node_id: int, message_id: str) -> bool:
        """True where that message was handed to the node and is not settled yet."""
        key = {"message_id": message_id, "node_id": uint64_to_int64(node_id)}
        return bool(self._database.query(_INSTRUCTION, key))

    def uploaded_message(self, node_id: int, session_id: str) -> str | None:
        """The id of the node's message that this upload belongs to; None where it is not its own.

        An upload that is complete or expired is nobody's: Flower then answers `stored: false`, and
        "" is returned.
        """
        rows = self._database.query(_UPLOAD, {"session_id": session_id})
        if any(row["src_node_id"] != uint64_to_int64(node_id) for row in rows):
            return None
        return str(rows[0]["message_id"]) if rows else ""

    def open_uploads(self) -> list[tuple[str, str, set[str]]]:
        """Of each reply on its way: session, the message it answers, and what is still to come."""
        found: dict[tuple[str, str], set[str]] = defaultdict(set)
        for row in self._database.query(_OPEN_UPLOADS, {}):
            found[row["session_id"], row["reply_to_message_id"]].add(row["object_id"])
        return [(*key, missing) for key, missing in found.items()]
