"""A site that answers every request with small numbers, over Flower's Fleet API as a SuperNode."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Message, RecordDict
from flwr.common.serde import message_from_proto
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.proto.node_pb2 import Node
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from protocol.consortium.supernode_key import public_pem
from protocol.messages import Request
from server.runs.lifecycle import Runs
from tests.little_sites import good_reply
from tests.server.gateway.little_coordinator import FirmNode, Told

_PAUSE_SECONDS = 0.05


@contextmanager
def answering_site(runs: Runs) -> Iterator[None]:
    """One node, registered and online, as long as the block runs."""
    address, ca = f"127.0.0.1:{runs.settings.control_port}", str(runs.folder.ca)
    key = ec.generate_private_key(ec.SECP384R1())
    with runs.control() as control:
        control.register(public_pem(key))
    signer = NodeAuthHttpInterceptor(key, key.public_key())
    client = FleetHttpClient.from_server_address(address, False, ca, [signer])
    request = ActivateNodeRequest(public_key=public_pem(key), heartbeat_interval=300)
    node = FirmNode(client, Node(node_id=client.ActivateNode(request).node_id))
    enough = threading.Event()
    thread = threading.Thread(target=_answer, args=(node, enough))
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
        node.leave()


def _answer(node: FirmNode, enough: threading.Event) -> None:
    while not enough.wait(_PAUSE_SECONDS):
        if (told := node.pull()) is not None:
            content = _content(node, told)
            node.confirm(told)
            node.push(told, node.reply(told, content))


def _content(node: FirmNode, told: Told) -> RecordDict:
    objects = {part: _object(node, told, part) for part in told.object_ids}
    message = inflate_object_from_contents(told.message_id, objects)
    assert isinstance(message, Message)
    trains = message_from_proto(told.message).metadata.message_type == "train"
    return good_reply(1, Request.from_content(message.content, "train" if trains else "evaluate"))


def _object(node: FirmNode, told: Told, object_id: str) -> bytes:
    """SuperLink tells of a message before all its objects are there."""
    while not (answer := node.read(told, object_id)).object_available:
        time.sleep(_PAUSE_SECONDS)
    return bytes(answer.object_content)
