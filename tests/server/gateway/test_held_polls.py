"""A SuperNode's question for messages is held until one has wholly arrived."""

from __future__ import annotations

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    Told,
    wait_for,
)

pytestmark = pytest.mark.slow


class Asking(threading.Thread):
    """A node's question in a thread of its own."""

    def __init__(self, coordinator: Coordinator, firm: Firm) -> None:
        super().__init__()
        self.node = FirmNode.activate(coordinator, firm)
        self.told: Told | None = None
        self._coordinator = coordinator
        self.start()

    def run(self) -> None:
        self.told = self.node.pull()

    def is_held(self) -> bool:
        return self._coordinator.metric("foedus_held_polls") > 0


def test_a_question_is_held_until_a_message_comes(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    asking = Asking(coordinator, ash)
    wait_for(asking.is_held)
    (sent,) = run.tell(asking.node.node_id)
    asking.join()
    assert asking.told is not None and asking.told.message_id == sent
    for object_id in asking.told.object_ids:
        assert asking.node.read(asking.told, object_id).object_available
    asking.node.leave()


def test_a_question_without_a_message_is_answered_before_the_node_gives_up(
    coordinator: Coordinator, ash: Firm
) -> None:
    node = FirmNode.activate(coordinator, ash)
    assert node.pull() is None
    node.leave()


def test_a_message_to_one_node_does_not_wake_another(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, birch: Firm
) -> None:
    asking, other = Asking(coordinator, ash), FirmNode.activate(coordinator, birch)
    wait_for(asking.is_held)
    (sent,) = run.tell(other.node_id)
    told = other.pull()
    assert told is not None and told.message_id == sent
    asking.join()
    assert asking.told is None
    for node in (asking.node, other):
        node.leave()


def test_a_message_is_handed_over_when_its_last_object_has_come(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    """Pushed by hand, the last object late: until then the question stays open."""
    asking = Asking(coordinator, ash)
    wait_for(asking.is_held)
    content = RecordDict({"c": ConfigRecord({"text": "late"})})
    message = Message(content, asking.node.node_id, "train")
    message.metadata.__dict__.update(_run_id=run.run_id, _src_node_id=1)
    message.metadata.__dict__["_message_id"] = message.object_id
    answer = run.grid._runtime_client.PushMessages(
        PushAppMessagesRequest(
            messages_list=[message_to_proto(remove_content_from_message(message))],
            message_object_trees=[get_object_tree(message)],
        )
    )
    objects = get_all_nested_objects(message)
    *first, last = answer.objects_to_push
    assert first

    def push(object_id: str) -> None:
        run.grid._runtime_client.PushObject(
            PushObjectRequest(
                node=Node(node_id=1),
                run_id=run.run_id,
                session_id=answer.session_id,
                object_id=object_id,
                object_content=objects[object_id].deflate(),
            )
        )

    for object_id in first:
        push(object_id)
    time.sleep(0.5)
    assert asking.is_held() and asking.told is None
    push(last)
    asking.join()
    assert asking.told is not None and asking.told.message_id == message.object_id
    assert all(
        asking.node.read(asking.told, part).object_available for part in asking.told.object_ids
    )
    asking.node.leave()
