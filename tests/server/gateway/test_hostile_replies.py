"""Replies of a form that fails Flower's Grid: the run is not told of them, and goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from numpy import zeros

from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    Reply,
    Told,
    wait_for,
)

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _others_go_on(coordinator: Coordinator, run: PlayedRun, cedar: Firm) -> Iterator[None]:
    yield
    run.serves(coordinator, cedar)


def sent_as(honest: Reply, objects: dict[str, bytes], tree: ObjectTree) -> Reply:
    """The honest reply's announcement with this tree and these objects in its place."""
    request = PushMessagesRequest()
    request.CopyFrom(honest.request)
    request.messages_list[0].metadata.message_id = tree.object_id
    del request.message_object_trees[:]
    request.message_object_trees.append(tree)
    return Reply(request, objects)


def content(kind: str, children: list[str], body: bytes) -> bytes:
    """An object as Flower writes it."""
    return f"{kind} {','.join(children)} {len(body)}".encode() + b"\x00" + body


def leaf(honest: Reply, made: bytes) -> Reply:
    """A reply whose only object is this one."""
    object_id = hashlib.sha256(made).hexdigest()
    return sent_as(honest, {object_id: made}, ObjectTree(object_id=object_id))


def of_another_kind(honest: Reply) -> Reply:
    return leaf(honest, content("ConfigRecord", [], b""))


def garbage(honest: Reply) -> Reply:
    return leaf(honest, content("Message", [], b"\xff\xff\xff"))


def with_a_child_that_is_not_there(honest: Reply) -> Reply:
    return leaf(honest, content("Message", ["0" * 64], b""))


@pytest.mark.parametrize("made", [of_another_kind, garbage, with_a_child_that_is_not_there])
def test_a_reply_that_cannot_be_built_does_not_reach_the_run(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, made: Callable[[Reply], Reply]
) -> None:
    node = FirmNode.activate(coordinator, ash)
    sent, told = asked(run, node)
    node.push(told, made(node.reply(told)))
    assert_given_up(run, sent)
    node.leave()


def test_a_reply_whose_content_names_another_message_does_not_reach_the_run(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, birch: Firm
) -> None:
    """Announced as Ash's own; its content answers in Birch's place."""
    node, other = FirmNode.activate(coordinator, ash), FirmNode.activate(coordinator, birch)
    sent, told = asked(run, node)
    sent_to_other, told_other = asked(run, other)
    forged = node.reply(told_other, RecordDict({"m": MetricRecord({"loss": 666.0})}))
    honest = node.reply(told)
    node.push(told, sent_as(honest, forged.objects, forged.request.message_object_trees[0]))
    assert_given_up(run, sent)
    other.push(told_other, other.reply(told_other, RecordDict({"m": MetricRecord({"loss": 1.0})})))
    (heard,) = wait_for(lambda: list(run.grid.pull_messages([sent_to_other])))
    assert heard.content.metric_records["m"]["loss"] == 1.0
    node.leave()
    other.leave()


def test_an_object_announced_falsely_does_not_stop_the_run_from_sending_it(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, birch: Firm
) -> None:
    """Ash knows the model that everybody gets next, and says that it has a child."""
    node, other = FirmNode.activate(coordinator, ash), FirmNode.activate(coordinator, birch)
    _, told = asked(run, node)
    model = RecordDict({"model": ArrayRecord({"w": Array(zeros(1000))})})
    chunk = next(key for key, part in get_all_nested_objects(model).items() if not part.children)
    reply = node.reply(told, RecordDict({"c": ConfigRecord({"x": 1})}))
    tree = reply.request.message_object_trees[0]
    tree.children.append(ObjectTree(object_id=chunk, children=[ObjectTree(object_id="ab" * 32)]))
    assert chunk in node.client.PushMessages(reply.request).objects_to_push
    message = Message(model, other.node_id, "train")
    message.metadata.__dict__.update(_run_id=run.run_id, _src_node_id=1)
    (sent,) = run.grid.push_messages([message])
    got = other.pull()
    assert got is not None and got.message_id == sent
    assert all(other.read(got, part).object_available for part in got.object_ids)
    other.confirm(got)
    node.leave()
    other.leave()


def asked(run: PlayedRun, node: FirmNode) -> tuple[str, Told]:
    (sent,) = run.tell(node.node_id)
    told = node.pull()
    assert told is not None
    node.confirm(told)
    return sent, told


def assert_given_up(run: PlayedRun, sent: str) -> None:
    """The run hears that there is no reply, or nothing; never the reply, never an exception."""
    for _ in range(5):
        assert all(message.has_error() for message in run.grid.pull_messages([sent]))
