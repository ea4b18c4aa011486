"""A reply that has wholly arrived is built once here, before the run hears of it.

Flower's Grid builds each reply inside the run's one call for all of them, from what its objects say
and not from what was announced. An object of another kind, or one that names objects which are not
there, raises in that call and so ends the run; and a reply's content may name another message as
the one it answers. What was announced must be what the objects say, too: an object that lies in the
store with other children than its own fails whoever sends the same object later. Such a reply is
taken out of the store: its site then counts as silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from flwr.app import Message
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_object_children_ids_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supercore.utils import uint64_to_int64

from server.gateway.belongings import Database
from server.gateway.reply_removal import ReplyRemoval

_ANNOUNCED = """
SELECT run_id, src_node_id, dst_node_id, reply_to_message_id FROM message_res
WHERE message_id = :message_id
"""


class ObjectStore(Protocol):
    """What is used of Flower's store."""

    def get_object_tree(self, object_id: str) -> ObjectTree:
        """Errors: where the object was not announced."""
        ...

    def get(self, object_id: str) -> bytes | None:
        """None where it was not announced; empty where it has not come."""
        ...


class ReplyCheck:
    """Blocks on the database; holds one reply in memory."""

    def __init__(self, database: Database, store: ObjectStore, removal: ReplyRemoval) -> None:
        self._database = database
        self._store = store
        self._removal = removal

    def settle(self, message_id: str) -> bool:
        """True where the run can be told of the reply; else it is no more."""
        rows = self._database.query(_ANNOUNCED, {"message_id": message_id})
        if not rows:
            return True
        try:
            problem = self._problem(message_id, rows)
        # Whatever building it raises here it would raise in the run.
        except Exception as error:
            problem = f"it cannot be built ({type(error).__name__})"
        if problem:
            self._removal.remove([message_id], problem)
        return not problem

    def _problem(self, message_id: str, rows: Sequence[dict[str, Any]]) -> str:
        tree = self._store.get_object_tree(message_id)
        contents = {
            part.object_id: self._store.get(part.object_id) or b""
            for part in iterate_object_tree(tree)
        }
        # With this, every object that was announced is one that the message itself leads to.
        for part in iterate_object_tree(tree):
            named = set(get_object_children_ids_from_object_content(contents[part.object_id]))
            if named != {child.object_id for child in part.children}:
                return "it was announced with other objects than it has"
        built = inflate_object_from_contents(message_id, contents)
        if not isinstance(built, Message):
            return f"it is no message but {type(built).__name__}"
        said = built.metadata
        numbers = (said.run_id, said.src_node_id, said.dst_node_id)
        says = (*map(uint64_to_int64, numbers), said.reply_to_message_id)
        return "" if says == tuple(rows[0].values()) else "it names other nodes than announced"
