"""How many bytes of each node's replies lie in the store because the run has not taken them yet."""

from __future__ import annotations

import json
import threading
import time
from collections import Counter

from server.gateway.belongings import Database
from server.gateway.reply_removal import ReplyRemoval

# Of these replies, those that still lie there in a run that is not over. Flower deletes the replies
# of one that is. Late: the run's question has expired, so that nobody can take them any more.
_WAITING = """
SELECT message_res.message_id, (message_ins.message_id IS NULL
    OR message_ins.created_at + message_ins.ttl <= :now) AS late
FROM message_res
JOIN run ON run.run_id = message_res.run_id
JOIN task ON task.task_id = run.primary_task_id AND task.finished_at IS NULL
LEFT JOIN message_ins ON message_ins.message_id = message_res.reply_to_message_id
WHERE message_res.message_id IN (SELECT value FROM json_each(:message_ids))
"""


class UnreadBytes:
    """Counted from what passes by; a restart begins at zero. Several threads ask."""

    def __init__(self, database: Database, removal: ReplyRemoval) -> None:
        self._database = database
        self._removal = removal
        self._lock = threading.Lock()
        self._by_node: dict[int, Counter[str]] = {}
        self._node_of: dict[str, int] = {}

    def add(self, node_id: int, message_id: str, num_bytes: int) -> None:
        """An object of a node's reply was stored."""
        with self._lock:
            self._node_of[message_id] = node_id
            self._by_node.setdefault(node_id, Counter())[message_id] += num_bytes

    def taken(self, message_id: str) -> None:
        """The reply lies there no more."""
        with self._lock:
            node_id = self._node_of.pop(message_id, None)
            if node_id is not None:
                del self._by_node[node_id][message_id]
                if not self._by_node[node_id]:
                    del self._by_node[node_id]

    def of(self, node_id: int) -> int:
        """Bytes that lie there, or some that did: see `review`."""
        with self._lock:
            return self._by_node.get(node_id, Counter()).total()

    def review(self, node_id: int, uploading: str) -> None:
        """Count only what a run can still take. Blocks on the database.

        The run's taking is seen here, but not that a run was stopped, or that an upload was given
        up. Late replies are thrown away, but for the one that is being uploaded.
        """
        with self._lock:
            counted = list(self._by_node.get(node_id, ()))
        rows = self._database.query(
            _WAITING, {"message_ids": json.dumps(counted), "now": time.time()}
        )
        late = {row["message_id"] for row in rows if row["late"]} - {uploading}
        if late:
            self._removal.remove(late, "it came too late to be read")
        for message_id in set(counted) - {row["message_id"] for row in rows} | late:
            self.taken(message_id)
