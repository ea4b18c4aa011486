"""What a node may do with what is not its own: nothing. One question for each fleet request."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass
from typing import cast

from flwr.proto.fleet_pb2 import PushMessagesRequest, PushMessagesResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    PullObjectRequest,
    PushObjectRequest,
    PushObjectResponse,
)
from google.protobuf.message import Message

from server.gateway import allowed_paths as paths
from server.gateway.asgi import Reply
from server.gateway.belongings import Belongings
from server.gateway.limits import Limits
from server.gateway.message_checks import check_object_id, check_pushed_reply
from server.gateway.presence import Presence
from server.gateway.refused import Reason, Refused
from server.gateway.reply_check import ReplyCheck
from server.gateway.unread import UnreadBytes
from server.gateway.uploads import Uploads


@dataclass(frozen=True)
class Done:
    """A reply of which everything has come; empty where there is none."""

    message_id: str = ""
    session_id: str = ""


class FleetRules:
    """Blocks on the database; not for the event loop, except `note` and `show`."""

    def __init__(
        self,
        belongings: Belongings,
        uploads: Uploads,
        unread: UnreadBytes,
        replies: ReplyCheck,
        limits: Limits,
        presence: Presence,
    ) -> None:
        self._presence = presence
        self._belongings = belongings
        self._uploads = uploads
        self._unread = unread
        self._replies = replies
        self._limits = limits

    def check(self, path: str, message: Message, node_id: int) -> str:
        """Where an object is pushed, the id of the node's message it belongs to; else "".

        Errors: Refused.
        """
        if path == paths.ACTIVATE:
            self._presence.comes_back(node_id)
        elif path == paths.PULL_MESSAGES:
            self._presence.asks(node_id)
        elif path == paths.PUSH_MESSAGES:
            self._check_reply(cast(PushMessagesRequest, message), node_id)
        elif path == paths.PUSH_OBJECT:
            return self._check_push(cast(PushObjectRequest, message), node_id)
        elif path == paths.PULL_OBJECT:
            object_id = cast(PullObjectRequest, message).object_id
            check_object_id(object_id)
            if not self._belongings.may_read(node_id, object_id):
                text = f"Node {node_id} asked for an object of no message to it."
                raise Refused(Reason.NOT_YOURS, text)
        elif path == paths.CONFIRM:
            message_id = cast(ConfirmMessageReceivedRequest, message).message_object_id
            check_object_id(message_id)
            if not self._belongings.was_instructed(node_id, message_id):
                text = f"Node {node_id} confirmed a message that was not to it."
                raise Refused(Reason.NOT_YOURS, text)
        return ""

    def turn(self, path: str) -> AbstractAsyncContextManager[object]:
        """To be held from before a request is handed on until it is noted."""
        return self._uploads.settled if path == paths.PUSH_MESSAGES else nullcontext()

    def note(self, path: str, message: Message, node_id: int, pushed_to: str, reply: Reply) -> Done:
        """Take note of an upload that began and of what was stored."""
        if reply.status != 200:
            return Done()
        if path == paths.PUSH_MESSAGES:
            metadata = cast(PushMessagesRequest, message).messages_list[0].metadata
            begun = PushMessagesResponse.FromString(reply.body)
            missing = begun.objects_to_push
            self._uploads.begun(begun.session_id, metadata.reply_to_message_id, missing)
            return Done() if missing else Done(metadata.message_id, begun.session_id)
        if path == paths.PUSH_OBJECT and PushObjectResponse.FromString(reply.body).stored:
            request = cast(PushObjectRequest, message)
            self._unread.add(node_id, pushed_to, len(request.object_content))
            if self._uploads.object_stored(request.session_id, request.object_id):
                return Done(pushed_to, request.session_id)
        return Done()

    def settle(self, done: Done) -> None:
        """Look at a reply that has wholly come. The caller then calls `show`."""
        if not self._replies.settle(done.message_id):
            self._unread.taken(done.message_id)

    def show(self, done: Done) -> None:
        """Hide the reply from the run no more."""
        self._uploads.over(done.session_id)

    def _check_reply(self, request: PushMessagesRequest, node_id: int) -> None:
        check_pushed_reply(request, node_id, self._limits.max_tree_objects)
        answers = request.messages_list[0].metadata.reply_to_message_id
        if not self._belongings.was_instructed(node_id, answers):
            text = f"Node {node_id} answered a message that was not to it, or is settled."
            raise Refused(Reason.NOT_YOURS, text)

    def _check_push(self, request: PushObjectRequest, node_id: int) -> str:
        check_object_id(request.object_id)
        if not request.session_id:
            raise Refused(Reason.MALFORMED, "Expected the upload's session.")
        message_id = self._belongings.uploaded_message(node_id, request.session_id)
        if message_id is None:
            text = f"Node {node_id} pushed an object into another's upload."
            raise Refused(Reason.NOT_YOURS, text)
        room = self._limits.max_unread_bytes - len(request.object_content)
        if self._unread.of(node_id) > room:
            self._unread.review(node_id, message_id)
        if (unread := self._unread.of(node_id)) > room:
            text = f"Node {node_id} has {unread} bytes unread already."
            raise Refused(Reason.TOO_MUCH_UNREAD, text)
        return message_id
