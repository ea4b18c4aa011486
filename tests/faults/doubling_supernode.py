"""A SuperNode that sends all of a reply twice, each request under a signature of its own.

Each announcement comes at once again, and a third time when its reply has long been there. The
command's words are those of `client.runner.supernode_process`, in whose place it stands.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeVar

from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import PushObjectRequest, PushObjectResponse
from flwr.supernode.fleet_http_client import FleetHttpClient

from client.runner import supernode_process

T = TypeVar("T")

_announce, _push = FleetHttpClient.PushMessages, FleetHttpClient.PushObject
_announced: list[PushMessagesRequest] = []


def _announce_twice(client: FleetHttpClient, request: PushMessagesRequest) -> PushMessagesResponse:
    for old in _announced:
        _again("An old announcement", partial(_announce, client, old))
    _announced[:] = [request]
    answer = _announce(client, request)
    # As after a broken connection: a new upload takes the first one's place.
    newest = _again("An announcement", partial(_announce, client, request))
    return newest if newest and newest.objects_to_push else answer


def _push_twice(client: FleetHttpClient, request: PushObjectRequest) -> PushObjectResponse:
    answer = _push(client, request)
    _again("An object", partial(_push, client, request))
    return answer


def _again(what: str, send: Callable[[], T]) -> T | None:
    answer = None
    try:
        answer = send()
        ending = "was taken"
    # Flower's clients raise much; whoever does this does not care.
    except Exception as error:
        ending = f"was refused: {error}"
    print(f"{what}, sent again, {ending}", flush=True)
    return answer


if __name__ == "__main__":
    FleetHttpClient.PushMessages = _announce_twice  # type: ignore[method-assign, assignment]
    FleetHttpClient.PushObject = _push_twice  # type: ignore[method-assign, assignment]
    supernode_process.main()
