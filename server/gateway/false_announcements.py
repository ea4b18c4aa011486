"""A reply that claims other children for an object than the object has cannot block the run.

Flower believes the first announcement of an object's children and fails whoever announces the same
object otherwise. A node that announces an object of the run's next message (the model that
everybody has, say) with children of its own making would fail the run's push, whether it sends the
object or not. The run's word counts: the node's reply is thrown away.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable

from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

from server.gateway.belongings import Database
from server.gateway.reply_removal import ReplyRemoval

_ANNOUNCED = """
SELECT object_id, child_id FROM objects LEFT JOIN object_children ON parent_id = object_id
WHERE object_id IN (SELECT value FROM json_each(:object_ids))
"""


class FalseAnnouncements:
    """Blocks on the database."""

    def __init__(self, database: Database, removal: ReplyRemoval) -> None:
        self._database = database
        self._removal = removal

    def give_up(self, trees: Iterable[ObjectTree]) -> list[str]:
        """Remove the nodes' replies that contradict these messages of the run.

        Returns the uploads that ended by it.
        """
        children = {
            part.object_id: {child.object_id for child in part.children}
            for tree in trees
            for part in iterate_object_tree(tree)
        }
        announced: defaultdict[str, set[str]] = defaultdict(set)
        for row in self._database.query(_ANNOUNCED, {"object_ids": json.dumps(list(children))}):
            announced[row["object_id"]] |= {row["child_id"]} - {None}
        false = [key for key, claimed in announced.items() if claimed != children[key]]
        if not false:
            return []
        return self._removal.remove(false, "it gives an object of the run other children")
