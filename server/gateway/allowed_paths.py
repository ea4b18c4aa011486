"""What the firms' port offers, by exact path; whatever is not here does not exist there."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from flwr.proto.fab_pb2 import GetFabRequest
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.proto.run_pb2 import GetRunRequest
from google.protobuf.message import Message
from starlette.types import Scope

ACTIVATE = "/v1/fleet/activate-node"
PULL_MESSAGES = "/v1/fleet/pull-messages"
PUSH_MESSAGES = "/v1/fleet/push-messages"
PUSH_OBJECT = "/v1/fleet/push-object"
PULL_OBJECT = "/v1/fleet/pull-object"
CONFIRM = "/v1/fleet/confirm-message-received"

# register-node and unregister-node are left out: who belongs is the roster's matter.
FLEET_REQUESTS: dict[str, type[Message]] = {
    ACTIVATE: ActivateNodeRequest,
    "/v1/fleet/deactivate-node": DeactivateNodeRequest,
    "/v1/fleet/send-node-heartbeat": SendNodeHeartbeatRequest,
    PULL_MESSAGES: PullMessagesRequest,
    PUSH_MESSAGES: PushMessagesRequest,
    "/v1/fleet/get-run": GetRunRequest,
    "/v1/fleet/get-fab": GetFabRequest,
    PUSH_OBJECT: PushObjectRequest,
    PULL_OBJECT: PullObjectRequest,
    CONFIRM: ConfirmMessageReceivedRequest,
}

MEMBER_API = "/v1/foedus/"


def fleet_path(scope: Scope) -> str | None:
    """The fleet path that is asked for, or None for anything but a plain POST to one of them.

    The decision is on the bytes as they came: nothing is decoded, joined or normalised, so an
    encoded, doubled, absolute or differently written path is simply another one.
    """
    if scope["http_version"] != "1.1" or scope["method"] != "POST" or scope["query_string"]:
        return None
    path = _plain_path(scope)
    return path if path in FLEET_REQUESTS else None


def member_path(scope: Scope, offered: Iterable[tuple[str, str]]) -> tuple[str, str] | None:
    """The (method, path) of the member API that is asked for, or None."""
    if scope["http_version"] != "1.1":
        return None
    asked = (scope["method"], _plain_path(scope) or "")
    return asked if asked in offered else None


def _plain_path(scope: Scope) -> str | None:
    raw: Any = scope.get("raw_path")
    try:
        return bytes(raw).decode("ascii")
    except (TypeError, UnicodeDecodeError):
        return None
