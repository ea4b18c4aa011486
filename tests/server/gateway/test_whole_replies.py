"""A run that asks for replies too early is answered when the first one comes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, cast

from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import Metadata
from flwr.proto.runtime_pb2 import PullAppMessagesRequest, PullAppMessagesResponse
from starlette.types import Message, Receive, Scope, Send

from server.gateway.false_announcements import FalseAnnouncements
from server.gateway.long_poll import ArrivalBoard
from server.gateway.run_watch import RunWatch
from server.gateway.unread import UnreadBytes
from server.gateway.uploads import Uploads
from server.gateway.whole_replies import WholeReplies

# Whoever waits that long waits for ever.
LONG_SECONDS = 60.0


class Superlink:
    """Answers pulls in Flower's place: `replies` are the messages that have been answered."""

    def __init__(self) -> None:
        self.replies: list[str] = []
        self.asked = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = (await receive())["body"]
        wanted = set(PullAppMessagesRequest.FromString(body).message_ids)
        found = [one for one in self.replies if one in wanted]
        self.replies = [one for one in self.replies if one not in wanted]
        self.asked += 1
        answer = PullAppMessagesResponse(
            messages_list=[
                ProtoMessage(metadata=Metadata(reply_to_message_id=one)) for one in found
            ]
        )
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": answer.SerializeToString()})


class Scene:
    def __init__(
        self, hold_seconds: float = LONG_SECONDS, gather_seconds: float = LONG_SECONDS
    ) -> None:
        self.superlink, self.whole = Superlink(), WholeReplies()
        self.uploads = Uploads(self.whole)
        self.watch = RunWatch(
            self.superlink,
            ArrivalBoard(),
            # Only a confirmation asks it.
            cast(UnreadBytes, None),
            self.uploads,
            self.whole,
            # Only a push asks it.
            cast(FalseAnnouncements, None),
            hold_seconds,
            gather_seconds,
        )

    async def pull(self, *message_ids: str) -> list[str]:
        """The run's question; the messages whose replies it got."""
        body = PullAppMessagesRequest(message_ids=message_ids).SerializeToString()
        answered = bytearray()

        async def receive() -> Message:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Message) -> None:
            answered.extend(message.get("body", b""))

        scope = {
            "type": "http", "method": "POST", "path": "/v1/runtime/pull-messages", "headers": [],
        }  # fmt: skip
        await self.watch(scope, receive, send)
        response = PullAppMessagesResponse.FromString(bytes(answered))
        return [one.metadata.reply_to_message_id for one in response.messages_list]

    def upload(self, message_id: str) -> None:
        """A site's reply comes, whole."""
        self.uploads.begun(f"session of {message_id}", message_id, ["object"])
        self.superlink.replies.append(message_id)
        assert self.uploads.object_stored(f"session of {message_id}", "object")
        self.uploads.over(f"session of {message_id}")


def within_patience(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, LONG_SECONDS / 2))


def test_a_question_is_held_until_a_reply_has_come() -> None:
    async def work() -> None:
        scene = Scene()
        asking = asyncio.create_task(scene.pull("a", "b"))
        while scene.superlink.asked == 0:
            await asyncio.sleep(0)
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done() and scene.superlink.asked == 1
        scene.upload("b")
        assert await asking == ["b"]

    within_patience(work())


def test_replies_that_arrive_together_are_fetched_together() -> None:
    async def work() -> None:
        scene = Scene()
        asking = asyncio.create_task(scene.pull("a", "b"))
        while scene.superlink.asked == 0:
            await asyncio.sleep(0)
        scene.uploads.begun("announced", "a", ["object"])
        scene.upload("b")
        for _ in range(20):
            await asyncio.sleep(0)
        assert not asking.done()
        scene.superlink.replies.append("a")
        scene.uploads.over("announced")
        assert sorted(await asking) == ["a", "b"]

    within_patience(work())


def test_a_reply_does_not_wait_long_for_another_that_is_on_its_way() -> None:
    async def work() -> None:
        scene = Scene(gather_seconds=0.01)
        asking = asyncio.create_task(scene.pull("a", "b"))
        while scene.superlink.asked == 0:
            await asyncio.sleep(0)
        scene.uploads.begun("announced", "a", ["object"])
        scene.upload("b")
        assert await asking == ["b"]

    within_patience(work())


def test_a_question_is_not_held_while_the_reply_to_another_waits_to_be_fetched() -> None:
    async def work() -> None:
        scene = Scene()
        scene.upload("c")
        assert await scene.pull("a") == []
        assert await scene.pull("b") == []
        assert await scene.pull("c") == ["c"]

    within_patience(work())


def test_a_question_ends_when_its_time_is_up() -> None:
    async def work() -> None:
        assert await Scene(hold_seconds=0.01).pull("a") == []

    within_patience(work())
