"""Takes a reply out of SuperLink's store, and every announcement that would keep it there.

Flower deletes an object when nothing that was announced names it any more. A second node that
announces the reply as a part of its own would so keep it; no honest reply names what is taken out
here, so whatever names it goes too.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from typing import Any, Protocol

log = logging.getLogger("foedus.gateway")

# What stands at the top of the announcements that lead to these objects, and whose it is.
_ROOTS = """
WITH RECURSIVE above(object_id) AS (
    SELECT value FROM json_each(:object_ids)
    UNION
    SELECT parent_id FROM object_children JOIN above ON child_id = object_id
)
SELECT above.object_id, session_id, src_node_id, reply_to_message_id FROM above
LEFT JOIN object_children ON child_id = above.object_id
LEFT JOIN object_push_session_roots ON root_object_id = above.object_id
LEFT JOIN message_res ON message_id = above.object_id
WHERE child_id IS NULL
"""


class Objects(Protocol):
    """What is used of Flower's store of objects."""

    def delete(self, object_id: str) -> None:
        """With all below it that nothing else needs."""
        ...


class Removing(Protocol):
    """What is used of Flower's SqlLinkState."""

    @property
    def object_store(self) -> Objects:
        """Where the objects are."""
        ...

    def query(self, query: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one SQL statement."""
        ...

    def delete_messages(self, message_ins_ids: set[str]) -> None:
        """Instructions, and the replies to them."""
        ...

    def _cleanup_push_session(self, session_id: str, *, cleanup_messages: bool) -> None:
        """What Flower does with an upload whose time is over."""
        ...


class ReplyRemoval:
    """Blocks on the database."""

    def __init__(self, state: Removing) -> None:
        self._state = state

    def remove(self, object_ids: Iterable[str], why: str) -> list[str]:
        """Remove the nodes' replies to which these objects belong; returns the uploads that ended.

        why: for the log, after "A reply of node N is thrown away:".
        """
        roots = self._state.query(_ROOTS, {"object_ids": json.dumps(list(object_ids))})
        # First, so that the run is not told of a reply whose objects somebody announces anew.
        self._state.delete_messages({r["reply_to_message_id"] for r in roots} - {None})
        for root in roots:
            if root["session_id"] is None:
                self._state.object_store.delete(root["object_id"])
            else:
                self._state._cleanup_push_session(root["session_id"], cleanup_messages=True)
            node = "unknown" if root["src_node_id"] is None else root["src_node_id"] % (1 << 64)
            log.warning("A reply of node %s is thrown away: %s.", node, why)
        return [root["session_id"] for root in roots if root["session_id"] is not None]
