"""Replies of a form that fails Flower's Grid: the run is not told of them, and goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from os import urandom

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from numpy import frombuffer, uint8

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


def with_an_object_that_it_does_not_name(honest: Reply) -> Reply:
    extra = leaf(honest, content("ConfigRecord", [], urandom(8)))
    tree = honest.request.message_object_trees[0]
    tree.children.append(extra.request.message_object_trees[0])
    return sent_as(honest, honest.objects | extra.objects, tree)


@pytest.mark.parametrize(
    "made",
    [
        of_another_kind,
        garbage,
        with_a_child_that_is_not_there,
        with_an_object_that_it_does_not_name,
    ],
)
def test_a_reply_that_is_not_what_it_was_announced_as_does_not_reach_the_run(
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


@pytest.mark.parametrize("sends", ["nothing", "what is false", "everything"])
def test_an_object_announced_falsely_does_not_stop_the_run_from_sending_it(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, birch: Firm, sends: str
) -> None:
    """Ash knows the model that everybody gets next, and says that it has a child.

    The run has closed the round: it does not ask for the reply any more.
    """
    node, other = FirmNode.activate(coordinator, ash), FirmNode.activate(coordinator, birch)
    _, told = asked(run, node)
    model = RecordDict({"model": ArrayRecord({"w": Array(frombuffer(urandom(4000), uint8))})})
    parts = get_all_nested_objects(model)
    chunk = next(key for key, part in parts.items() if not part.children)
    child = content("ConfigRecord", [], urandom(8))
    false = {chunk: parts[chunk].deflate(), hashlib.sha256(child).hexdigest(): child}
    reply = node.reply(told, RecordDict({"c": ConfigRecord({"x": 1})}))
    tree = reply.request.message_object_trees[0]
    below = [ObjectTree(object_id=key) for key in false if key != chunk]
    tree.children.append(ObjectTree(object_id=chunk, children=below))
    announced = node.client.PushMessages(reply.request)
    assert set(false) <= set(announced.objects_to_push)
    sent = {"nothing": {}, "what is false": false, "everything": reply.objects | false}[sends]
    for key, made in sent.items():
        assert node.push_object(told, announced.session_id, key, made)
    message = Message(model, other.node_id, "train")
    message.metadata.__dict__.update(_run_id=run.run_id, _src_node_id=1)
    (message_id,) = run.grid.push_messages([message])
    got = other.pull()
    assert got is not None and got.message_id == message_id
    assert all(other.read(got, part).object_available for part in got.object_ids)
    other.confirm(got)
    node.leave()
    other.leave()


def test_a_reply_that_another_node_announces_as_its_own_part_is_thrown_away_too(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, birch: Firm
) -> None:
    """Flower would not delete what something else that was announced still names."""
    node, other = FirmNode.activate(coordinator, ash), FirmNode.activate(coordinator, birch)
    sent, told = asked(run, node)
    _, told_other = asked(run, other)
    hostile = garbage(node.reply(told))
    held = other.reply(told_other)
    held.request.message_object_trees[0].children.append(hostile.request.message_object_trees[0])
    assert set(hostile.objects) <= set(other.client.PushMessages(held.request).objects_to_push)
    node.push(told, hostile)
    assert_given_up(run, sent)
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
