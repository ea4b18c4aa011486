"""A SuperNode's question for messages is held until one has wholly arrived."""

from __future__ import annotations

import threading
import time

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import PullMessagesRequest
from flwr.proto.message_pb2 import PushObjectRequest
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import PushAppMessagesRequest
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree

from server.gateway.redelivery import MOST_TIMES
from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    Told,
    wait_for,
)
from tests.server.gateway.raw_requests import tls
from tests.server.gateway.signed_headers import headers

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
    asking.node.confirm(asking.told)
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
    other.confirm(told)
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
    asking.node.confirm(asking.told)
    asking.node.leave()


def test_a_message_that_went_into_a_dead_connection_is_handed_out_again(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    """The first question's connection is as good as cut: nobody reads what comes on it."""
    node = FirmNode.activate(coordinator, ash)
    question = PullMessagesRequest(node=node.node).SerializeToString()
    signed = "".join(f"{name}: {value}\r\n" for name, value in headers(ash).items())
    with tls(coordinator) as cut:
        cut.sendall(
            f"POST /v1/fleet/pull-messages HTTP/1.1\r\nhost: x\r\n{signed}"
            f"content-length: {len(question)}\r\n\r\n".encode()
            + question
        )
        wait_for(lambda: coordinator.metric("foedus_held_polls") == 1)
        (sent,) = run.tell(node.node_id)
        wait_for(lambda: coordinator.metric("foedus_held_polls") == 0)
        told = node.pull()
    assert told is not None and told.message_id == sent
    node.confirm(told)
    assert node.pull() is None
    node.leave()


def test_a_message_that_is_never_confirmed_is_not_handed_out_for_ever(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    node = FirmNode.activate(coordinator, ash)
    (sent,) = run.tell(node.node_id)
    handed_out = [node.pull() for _ in range(MOST_TIMES + 2)]
    assert [told.message_id if told else "" for told in handed_out] == [
        *[sent] * (MOST_TIMES + 1),
        "",
    ]
    node.leave()


def test_a_second_question_takes_the_place_of_the_first(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    """Else a message could go to the one whose connection is dead."""
    asking = Asking(coordinator, ash)
    wait_for(asking.is_held)
    second = FirmNode(coordinator.fleet(ash), asking.node.node)
    told: list[Told | None] = []
    later = threading.Thread(target=lambda: told.append(second.pull()))
    later.start()
    asking.join()
    assert asking.told is None
    (sent,) = run.tell(second.node_id)
    later.join()
    assert told[0] is not None and told[0].message_id == sent
    second.confirm(told[0])
    second.leave()
