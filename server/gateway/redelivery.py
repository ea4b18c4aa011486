"""Messages that were handed to a node and never reached it are handed out again.

SuperLink counts a message as delivered once it has answered the node's question, also where the
answer went into a connection that was cut. A question that is held for long makes that likely. A
SuperNode works on one message at a time and confirms it (which removes it from the store) before it
asks for another; so what it has neither confirmed nor answered when it asks, it does not have.
"""

from __future__ import annotations

import logging
import time
from collections import Counter

from flwr.supercore.utils import uint64_to_int64

from server.gateway.belongings import Database

log = logging.getLogger("foedus.gateway")

# A node that cannot take a message (no disk, say) must not be told it for ever.
MOST_TIMES = 3

_UNRECEIVED = """
SELECT message_id FROM message_ins
WHERE dst_node_id = :node_id AND delivered_at != '' AND created_at + ttl > :now
AND EXISTS (SELECT 1 FROM objects WHERE object_id = message_id)
AND NOT EXISTS (SELECT 1 FROM message_res WHERE reply_to_message_id = message_ins.message_id)
"""

_UNDELIVERED = "UPDATE message_ins SET delivered_at = '' WHERE message_id = :message_id"


class Redelivery:
    """Blocks on the database."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._times: Counter[str] = Counter()

    def before_question(self, node_id: int) -> None:
        """Make what the node did not receive waiting again."""
        key = {"node_id": uint64_to_int64(node_id), "now": time.time()}
        for row in self._database.query(_UNRECEIVED, key):
            message_id = row["message_id"]
            if self._times[message_id] >= MOST_TIMES:
                continue
            self._times[message_id] += 1
            self._database.query(_UNDELIVERED, {"message_id": message_id})
            log.warning("Node %d did not receive a message and gets it again.", node_id)
