"""Who may speak for a node, and what a node may do with what is another's."""

from __future__ import annotations

import datetime
import threading
from collections.abc import Callable, Iterator
from functools import partial

import httpx
import pytest
from flwr.app import ConfigRecord, MetricRecord, RecordDict
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supernode.fleet_http_client import FleetHttpClient

from tests.server.gateway.little_coordinator import (
    Coordinator,
    Firm,
    FirmNode,
    PlayedRun,
    Told,
    wait_for,
)
from tests.server.gateway.signed_headers import headers, mirrored, signature_of

pytestmark = pytest.mark.slow

HEARTBEAT = "/v1/fleet/send-node-heartbeat"


def refusal(work: Callable[[], object]) -> tuple[int, bytes]:
    """Status and body of what `work` is refused with."""
    with pytest.raises(httpx.HTTPStatusError) as refused:
        work()
    return refused.value.response.status_code, refused.value.response.content


NOT_YOURS = (409, b'{"refused": "not_yours"}')


@pytest.fixture(scope="module")
def ash_node(coordinator: Coordinator, ash: Firm) -> Iterator[FirmNode]:
    node = FirmNode.activate(coordinator, ash)
    yield node
    node.leave()


@pytest.fixture(scope="module")
def birch_node(coordinator: Coordinator, birch: Firm) -> Iterator[FirmNode]:
    node = FirmNode.activate(coordinator, birch)
    yield node
    node.leave()


def told(run: PlayedRun, node: FirmNode) -> Told:
    """A message that the node has received: Flower then deletes it and expects the answer."""
    message = handed(run, node)
    node.confirm(message)
    return message


def handed(run: PlayedRun, node: FirmNode) -> Told:
    """A message whose objects the node has yet to read."""
    run.tell(node.node_id)
    message = node.pull()
    assert message is not None
    return message


def beat(node: FirmNode) -> bytes:
    request = SendNodeHeartbeatRequest(node=node.node, heartbeat_interval=30.0)
    return bytes(request.SerializeToString())


def test_a_member_works_as_with_flowers_own_superlink(
    coordinator: Coordinator, run: PlayedRun, ash: Firm
) -> None:
    run.serves(coordinator, ash)


def test_a_node_that_died_without_a_word_is_let_in_again_at_once(
    coordinator: Coordinator, cedar: Firm
) -> None:
    dead = FirmNode.activate(coordinator, cedar)
    dead.client.close()
    alive = FirmNode.activate(coordinator, cedar)
    assert alive.node_id == dead.node_id
    alive.leave()


def test_a_node_that_is_on_its_way_back_is_not_answered_for(
    coordinator: Coordinator, run: PlayedRun, cedar: Firm
) -> None:
    """It was told a message and started anew; the run asks before SuperLink has activated it."""
    node = FirmNode.activate(coordinator, cedar)
    (sent,) = run.tell(node.node_id)
    begun = ActivateNodeRequest(public_key=cedar.public_key, heartbeat_interval=-1.0)
    assert refusal(lambda: node.client.ActivateNode(begun))[0] != 409
    assert node.node_id not in set(run.grid.get_node_ids())
    assert list(run.grid.pull_messages([sent])) == []
    back = FirmNode.activate(coordinator, cedar)
    told = back.pull()
    assert told is not None and told.message_id == sent
    back.push(told, back.reply(told, RecordDict({"m": MetricRecord({"loss": 0.5})})))
    (heard,) = wait_for(lambda: list(run.grid.pull_messages([sent])))
    assert heard.content["m"]["loss"] == 0.5
    back.leave()


def test_a_node_that_asks_for_messages_is_online_whatever_its_heartbeats_do(
    coordinator: Coordinator, run: PlayedRun, cedar: Firm
) -> None:
    node = FirmNode.activate(coordinator, cedar)
    node.client.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id))
    assert node.node_id not in set(run.grid.get_node_ids())
    node.pull()
    assert node.node_id in set(run.grid.get_node_ids())
    node.leave()
    assert node.node_id not in set(run.grid.get_node_ids())


def test_a_key_of_no_member_is_refused(coordinator: Coordinator) -> None:
    stranger = Firm("Stranger")
    with coordinator.fleet(stranger) as fleet:
        request = ActivateNodeRequest(public_key=stranger.public_key, heartbeat_interval=30.0)
        assert refusal(lambda: fleet.ActivateNode(request)) == (401, b"")
        pull = PullMessagesRequest(node=Node(node_id=1))
        assert refusal(lambda: fleet.PullMessages(pull)) == (401, b"")


def test_a_request_without_or_with_broken_signature_is_refused(
    coordinator: Coordinator, ash: Firm, birch: Firm, ash_node: FirmNode
) -> None:
    good = headers(ash)
    ancient = datetime.datetime.now(datetime.UTC) - datetime.timedelta(seconds=400)
    future = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=60)
    now = datetime.datetime.now(datetime.UTC).isoformat()
    broken = [
        {name: value for name, value in good.items() if name != left_out}
        for left_out in ("flwr-public-key", "flwr-timestamp", "flwr-signature")
    ]
    broken += [
        {**good, "flwr-signature": "AAAA"},
        {**good, "flwr-signature": "not base64"},
        {**good, "flwr-public-key": "AAAA"},
        {**good, "flwr-timestamp": now},
        {**good, "flwr-timestamp": "yesterday"},
        headers(ash, now.removesuffix("+00:00")),
        headers(ash, ancient.isoformat()),
        headers(ash, future.isoformat()),
        headers(ash, now, signature_of(birch, now)),
    ]
    with coordinator.outside() as client:
        for wrong in broken:
            answer = client.post(HEARTBEAT, headers=wrong, content=beat(ash_node))
            assert (answer.status_code, answer.content) == (401, b""), wrong


@pytest.mark.parametrize(
    "work",
    [
        lambda fleet, node: fleet.PullMessages(PullMessagesRequest(node=node)),
        lambda fleet, node: fleet.DeactivateNode(DeactivateNodeRequest(node_id=node.node_id)),
        lambda fleet, node: fleet.SendNodeHeartbeat(
            SendNodeHeartbeatRequest(node=node, heartbeat_interval=30.0)
        ),
    ],
    ids=["pull", "deactivate", "heartbeat"],
)
def test_a_member_cannot_use_another_members_node_id(
    coordinator: Coordinator,
    birch: Firm,
    ash_node: FirmNode,
    work: Callable[[FleetHttpClient, Node], object],
) -> None:
    with coordinator.fleet(birch) as fleet:
        assert refusal(lambda: work(fleet, ash_node.node)) == NOT_YOURS


def test_a_signed_request_is_good_for_one_use(
    coordinator: Coordinator, ash: Firm, ash_node: FirmNode
) -> None:
    once = headers(ash)
    with coordinator.outside() as client:
        first = client.post(HEARTBEAT, headers=once, content=beat(ash_node))
        again = client.post(HEARTBEAT, headers=once, content=beat(ash_node))
        elsewhere = client.post("/v1/fleet/pull-messages", headers=once, content=beat(ash_node))
    assert [first.status_code, again.status_code, elsewhere.status_code] == [200, 401, 401]


def test_a_signature_that_was_altered_into_another_valid_one_is_still_used_up(
    coordinator: Coordinator, ash: Firm, ash_node: FirmNode
) -> None:
    timestamp = datetime.datetime.now(datetime.UTC).isoformat()
    signature = signature_of(ash, timestamp)
    with coordinator.outside() as client:
        for one, status in ((signature, 200), (mirrored(signature), 401)):
            answer = client.post(
                HEARTBEAT, headers=headers(ash, timestamp, one), content=beat(ash_node)
            )
            assert answer.status_code == status


def test_of_requests_at_once_with_one_signature_one_is_answered(
    coordinator: Coordinator, ash: Firm, ash_node: FirmNode
) -> None:
    once, answers = headers(ash), []
    together = threading.Barrier(8)

    def ask() -> None:
        with coordinator.outside() as client:
            client.get("/v1/foedus/health")
            together.wait()
            answers.append(client.post(HEARTBEAT, headers=once, content=beat(ash_node)).status_code)

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(answers) == [200] + [401] * 7


def forged_instruction(run: PlayedRun, sender: FirmNode, victim: FirmNode) -> PushMessagesRequest:
    """A message that answers nothing, in the coordinator's name."""
    order = sender.reply(told(run, sender), RecordDict({"c": ConfigRecord({"do": "train"})}))
    metadata = order.request.messages_list[0].metadata
    metadata.src_node_id, metadata.dst_node_id = 1, victim.node_id
    metadata.reply_to_message_id = ""
    return order.request


def test_a_node_cannot_send_an_instruction_to_another(
    run: PlayedRun, ash_node: FirmNode, birch_node: FirmNode
) -> None:
    forged = forged_instruction(run, ash_node, birch_node)
    assert refusal(lambda: ash_node.client.PushMessages(forged)) == NOT_YOURS
    assert birch_node.pull() is None


def test_flower_alone_would_hand_such_an_instruction_on(
    coordinator: Coordinator, run: PlayedRun, ash: Firm, ash_node: FirmNode, birch_node: FirmNode
) -> None:
    """Why the guard is there: on the loopback port, where it does not stand, it goes through."""
    forged = forged_instruction(run, ash_node, birch_node)
    with coordinator.fleet(ash, coordinator.state.control_address) as fleet:
        fleet.PushMessages(forged)
    order = birch_node.pull()
    assert order is not None and order.message.metadata.src_node_id == 1
    birch_node.confirm(order)


@pytest.mark.parametrize(
    "alter",
    [
        lambda request, other: request.messages_list[0].metadata.MergeFrom(
            type(request.messages_list[0].metadata)(src_node_id=other)
        ),
        lambda request, other: request.messages_list[0].metadata.MergeFrom(
            type(request.messages_list[0].metadata)(dst_node_id=other)
        ),
        lambda request, other: request.messages_list[0].metadata.ClearField("reply_to_message_id"),
    ],
    ids=["in another's name", "to another", "answering nothing"],
)
def test_a_node_sends_its_own_reply_to_the_coordinator_and_nothing_else(
    run: PlayedRun,
    ash_node: FirmNode,
    birch_node: FirmNode,
    alter: Callable[[PushMessagesRequest, int], None],
) -> None:
    request = ash_node.reply(told(run, ash_node)).request
    alter(request, birch_node.node_id)
    assert refusal(lambda: ash_node.client.PushMessages(request)) == NOT_YOURS


def test_a_node_cannot_answer_for_another(
    run: PlayedRun, ash_node: FirmNode, birch_node: FirmNode
) -> None:
    to_birch = told(run, birch_node)
    reply = ash_node.reply(to_birch)
    metadata = reply.request.messages_list[0].metadata
    metadata.src_node_id = ash_node.node_id
    assert refusal(lambda: ash_node.client.PushMessages(reply.request)) == NOT_YOURS
    birch_node.push(to_birch, birch_node.reply(to_birch))


def test_a_node_cannot_read_or_delete_what_was_sent_to_another(
    run: PlayedRun, ash_node: FirmNode, birch_node: FirmNode
) -> None:
    to_birch = handed(run, birch_node)
    assert refusal(lambda: ash_node.read(to_birch, to_birch.message_id)) == NOT_YOURS
    assert refusal(lambda: ash_node.confirm(to_birch)) == NOT_YOURS
    assert birch_node.read(to_birch, to_birch.message_id).object_available
    birch_node.confirm(to_birch)


def test_a_node_cannot_read_what_another_answered(
    run: PlayedRun, ash_node: FirmNode, birch_node: FirmNode
) -> None:
    to_birch = told(run, birch_node)
    reply = birch_node.reply(to_birch, RecordDict({"m": MetricRecord({"loss": 0.25})}))
    birch_node.push(to_birch, reply)
    for object_id in reply.objects:
        assert refusal(partial(ash_node.read, to_birch, object_id)) == NOT_YOURS


def test_a_node_cannot_push_into_anothers_upload(
    run: PlayedRun, ash_node: FirmNode, birch_node: FirmNode
) -> None:
    to_birch = told(run, birch_node)
    reply = birch_node.reply(to_birch, RecordDict({"m": MetricRecord({"loss": 0.75})}))
    begun = birch_node.client.PushMessages(reply.request)
    object_id = begun.objects_to_push[0]
    content = reply.objects[object_id]
    assert (
        refusal(lambda: ash_node.push_object(to_birch, begun.session_id, object_id, content))
        == NOT_YOURS
    )
    assert refusal(lambda: ash_node.push_object(to_birch, "", object_id, content))[0] == 400
    for missing in begun.objects_to_push:
        assert birch_node.push_object(to_birch, begun.session_id, missing, reply.objects[missing])


@pytest.mark.parametrize(
    "alter",
    [
        lambda request: request.ClearField("messages_list"),
        lambda request: request.ClearField("message_object_trees"),
        lambda request: request.messages_list.append(request.messages_list[0]),
        lambda request: request.clientapp_runtime_list.append(1.0),
        lambda request: request.clientapp_runtime_list.__setitem__(0, float("nan")),
        lambda request: request.message_object_trees[0].children.append(ObjectTree(object_id="x")),
        lambda request: request.message_object_trees[0].children.extend(
            [ObjectTree(object_id="0" * 64)] * 2
        ),
        lambda request: request.message_object_trees[0].MergeFrom(ObjectTree(object_id="0" * 64)),
    ],
    ids=[
        "no message", "no tree", "two messages", "two runtimes", "no number", "no id", "twice one",
        "another root",
    ],
)  # fmt: skip
def test_a_reply_of_another_form_is_refused(
    run: PlayedRun, ash_node: FirmNode, alter: Callable[[PushMessagesRequest], None]
) -> None:
    request = ash_node.reply(told(run, ash_node)).request
    alter(request)
    assert refusal(lambda: ash_node.client.PushMessages(request)) == (
        400,
        b'{"refused": "malformed"}',
    )


def test_a_tree_of_too_many_objects_is_refused(run: PlayedRun, ash_node: FirmNode) -> None:
    request = ash_node.reply(told(run, ash_node)).request
    leaves = [ObjectTree(object_id=f"{number:064x}") for number in range(9000)]
    request.message_object_trees[0].children.extend(leaves)
    assert refusal(lambda: ash_node.client.PushMessages(request)) == (
        413,
        b'{"refused": "tree_too_large"}',
    )


def test_an_expelled_member_is_refused_within_seconds(
    coordinator: Coordinator, ash: Firm, birch: Firm, cedar: Firm
) -> None:
    """With it a member whose time ends while the coordinator is up."""
    expelled, brief = Firm("Dogwood"), Firm("Elm")
    others = [ash.entry(), birch.entry(), cedar.entry()]
    coordinator.set_members([*others, expelled.entry(), brief.entry(expires_in_seconds=15)])
    nodes = [wait_for(partial(admitted, coordinator, firm)) for firm in (expelled, brief)]
    coordinator.set_members([*others, brief.entry(expires_in_seconds=10)])
    for node in nodes:
        wait_for(partial(is_refused, node))


def admitted(coordinator: Coordinator, firm: Firm) -> FirmNode | None:
    """The firm's node, once it is let in."""
    try:
        return FirmNode.activate(coordinator, firm)
    except httpx.HTTPStatusError as error:
        assert error.response.status_code == 401
        return None


def is_refused(node: FirmNode) -> bool:
    try:
        node.client.SendNodeHeartbeat(
            SendNodeHeartbeatRequest(node=node.node, heartbeat_interval=30.0)
        )
    except httpx.HTTPStatusError as error:
        return error.response.status_code == 401
    return False
