"""Watches what the run's own process sends over the loopback port, so that polls can be answered.

Requests and responses pass as they are, but for one: the run does not ask for replies that are
still being uploaded (see uploads.py), and where there is none it is kept waiting for the next (see
whole_replies.py). Before it pushes, what contradicts it is given up (see false_announcements.py).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable

from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullAppMessagesResponse,
    PushAppMessagesRequest,
    PushAppMessagesResponse,
)
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from google.protobuf.message import DecodeError
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from server.gateway.asgi import Reply, call, send_reply
from server.gateway.false_announcements import FalseAnnouncements
from server.gateway.long_poll import ArrivalBoard
from server.gateway.unread import UnreadBytes
from server.gateway.uploads import Uploads
from server.gateway.whole_replies import WholeReplies

_PULL_MESSAGES = "/v1/runtime/pull-messages"
_PUSH_MESSAGES = "/v1/runtime/push-messages"
_PUSH_OBJECT = "/v1/runtime/push-object"
_CONFIRM = "/v1/runtime/confirm-message-received"
_WATCHED = {_PUSH_OBJECT, _CONFIRM}
# How long a run's question is held at most; its round's deadline may pass by so much.
HOLD_SECONDS = 1.0
GATHER_SECONDS = 0.2


class RunWatch:
    """An ASGI app around SuperLink's."""

    def __init__(
        self,
        app: ASGIApp,
        board: ArrivalBoard,
        unread: UnreadBytes,
        uploads: Uploads,
        whole: WholeReplies,
        announcements: FalseAnnouncements,
        hold_seconds: float = HOLD_SECONDS,
        gather_seconds: float = GATHER_SECONDS,
    ) -> None:
        self._app = app
        self._announcements = announcements
        self._board = board
        self._unread = unread
        self._uploads = uploads
        self._whole = whole
        self._hold_seconds = hold_seconds
        self._gather_seconds = gather_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on and take note of what it did."""
        if scope["type"] == "http" and scope["path"] == _PULL_MESSAGES:
            body = await _whole_body(receive)
            await send_reply(send, await self._pull(scope, body))
            return
        if scope["type"] == "http" and scope["path"] == _PUSH_MESSAGES:
            body = await _whole_body(receive)
            async with self._uploads.settled:
                reply = await self._push(scope, body)
            await send_reply(send, reply)
            return
        if scope["type"] != "http" or scope["path"] not in _WATCHED:
            await self._app(scope, receive, send)
            return
        asked, answered = bytearray(), bytearray()
        status = 0

        async def noted_receive() -> Message:
            message = await receive()
            if message["type"] == "http.request":
                asked.extend(message.get("body", b""))
            return message

        async def noted_send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                answered.extend(message.get("body", b""))
            await send(message)

        await self._app(scope, noted_receive, noted_send)
        if status == 200:
            self._note(scope["path"], bytes(asked), bytes(answered))

    async def _pull(self, scope: Scope, body: bytes) -> Reply:
        """The replies that are there, or the first to come within the time that it is held."""
        async with self._uploads.settled:
            reply = await self._pull_once(scope, body)
        fetched = _answered(reply)
        if fetched == [] and await self._whole.wait(self._hold_seconds):
            await self._gather(PullAppMessagesRequest.FromString(body).message_ids)
            async with self._uploads.settled:
                reply = await self._pull_once(scope, body)
            fetched = _answered(reply)
        for message_id in fetched or ():
            self._whole.fetched(message_id)
        return reply

    async def _gather(self, message_ids: Iterable[str]) -> None:
        """Wait a moment for those on their way: each fetching of replies has a cost of its own."""
        asked, give_up = list(message_ids), time.monotonic() + self._gather_seconds
        while self._uploads.unfinished(asked):
            left = give_up - time.monotonic()
            if left <= 0 or not await self._whole.next(left):
                return

    async def _pull_once(self, scope: Scope, body: bytes) -> Reply:
        try:
            request = PullAppMessagesRequest.FromString(body)
        except DecodeError:
            return await call(self._app, scope, body)
        unfinished = self._uploads.unfinished(request.message_ids)
        if not unfinished:
            return await call(self._app, scope, body)
        finished = [one for one in request.message_ids if one not in unfinished]
        if not finished:
            empty = PullAppMessagesResponse().SerializeToString()
            return Reply(200, ((b"content-type", PROTOBUF_MEDIA_TYPE.encode()),), empty)
        del request.message_ids[:]
        request.message_ids.extend(finished)
        body = request.SerializeToString()
        headers = [header for header in scope["headers"] if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        return await call(self._app, {**scope, "headers": headers}, body)

    async def _push(self, scope: Scope, body: bytes) -> Reply:
        try:
            request = PushAppMessagesRequest.FromString(body)
        except DecodeError:
            return await call(self._app, scope, body)
        trees = list(request.message_object_trees)
        for session_id in await asyncio.to_thread(self._announcements.give_up, trees):
            self._uploads.over(session_id)
        reply = await call(self._app, scope, body)
        if reply.status == 200:
            self._note_messages(request, PushAppMessagesResponse.FromString(reply.body))
        return reply

    def _note(self, path: str, asked: bytes, answered: bytes) -> None:
        try:
            if path == _PUSH_OBJECT:
                if PushObjectResponse.FromString(answered).stored:
                    self._board.object_stored(PushObjectRequest.FromString(asked).object_id)
            else:
                request = ConfirmMessageReceivedRequest.FromString(asked)
                self._unread.taken(request.message_object_id)
        except DecodeError:
            # SuperLink took it, so this cannot be; a poll that is not woken only ends later.
            return

    def _note_messages(
        self, request: PushAppMessagesRequest, response: PushAppMessagesResponse
    ) -> None:
        missing = set(response.objects_to_push)
        pairs = zip(request.messages_list, request.message_object_trees, strict=True)
        for (message, tree), message_id in zip(pairs, response.message_ids, strict=True):
            if message_id:
                objects = {node.object_id for node in iterate_object_tree(tree)}
                node_id = message.metadata.dst_node_id
                self._board.announce(message_id, node_id, objects & missing)


def _answered(reply: Reply) -> list[str] | None:
    """The run's messages that these replies answer; None for what is no answer of that kind."""
    if reply.status != 200:
        return None
    try:
        response = PullAppMessagesResponse.FromString(reply.body)
    except DecodeError:
        return None
    return [message.metadata.reply_to_message_id for message in response.messages_list]


async def _whole_body(receive: Receive) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        body.extend(message.get("body", b""))
        if not message.get("more_body", False):
            return bytes(body)
