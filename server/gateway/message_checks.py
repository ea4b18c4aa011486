"""The form of a node's fleet requests, checked before Flower's own handlers see them.

Flower's handler of push-messages takes the first message of the list as it is. One that answers
nothing and gives the coordinator as its sender would be stored as an instruction to another node.
Here a node can send one thing only: its own reply, to the coordinator, with one tree of objects.
"""

from __future__ import annotations

import math
import re

from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import ObjectTree
from google.protobuf.message import DecodeError, Message

from server.gateway.refused import Reason, Refused

# Flower names objects and messages by the SHA-256 of their content.
_OBJECT_ID = re.compile(r"[0-9a-f]{64}")


def parse(body: bytes, request_type: type[Message]) -> Message:
    """Errors: Refused MALFORMED."""
    message = request_type()
    try:
        message.ParseFromString(body)
    except (DecodeError, RecursionError) as error:
        raise Refused(Reason.MALFORMED, f"Expected a {request_type.__name__}.") from error
    return message


def check_object_id(object_id: str) -> None:
    """Errors: Refused MALFORMED."""
    if not _OBJECT_ID.fullmatch(object_id):
        raise Refused(Reason.MALFORMED, "Expected a SHA-256 in hex as the object's id.")


def check_pushed_reply(request: PushMessagesRequest, node_id: int, max_objects: int) -> None:
    """Errors: Refused: malformed, not the node's own, or too many objects."""
    counts = (len(request.messages_list), len(request.message_object_trees))
    if counts != (1, 1) or len(request.clientapp_runtime_list) > 1:
        text = f"Expected one message, one tree and at most one runtime, got {counts}."
        raise Refused(Reason.MALFORMED, text)
    if not all(math.isfinite(s) and s >= 0 for s in request.clientapp_runtime_list):
        raise Refused(Reason.MALFORMED, "Expected a finite number of seconds as runtime.")
    metadata = request.messages_list[0].metadata
    if metadata.src_node_id != node_id:
        text = f"Node {node_id} sent a message in the name of {metadata.src_node_id}."
        raise Refused(Reason.NOT_YOURS, text)
    if metadata.dst_node_id != SUPERLINK_NODE_ID or not metadata.reply_to_message_id:
        text = f"Node {node_id} sent a message that is no reply to the coordinator."
        raise Refused(Reason.NOT_YOURS, text)
    tree = request.message_object_trees[0]
    if tree.object_id != metadata.message_id:
        raise Refused(Reason.MALFORMED, "Expected the message itself at the root of its tree.")
    check_tree(tree, max_objects)


def check_tree(tree: ObjectTree, max_objects: int) -> None:
    """Errors: Refused: an id that is none, a child given twice, or too many objects."""
    waiting, count = [tree], 0
    while waiting:
        node = waiting.pop()
        count += 1
        if count > max_objects:
            text = f"Expected at most {max_objects} objects in one message."
            raise Refused(Reason.TREE_TOO_LARGE, text)
        check_object_id(node.object_id)
        children = [child.object_id for child in node.children]
        if len(children) != len(set(children)):
            raise Refused(Reason.MALFORMED, "Expected each child of an object once.")
        waiting.extend(node.children)
