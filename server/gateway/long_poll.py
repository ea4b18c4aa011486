"""Which messages are complete, and which nodes wait for one: SuperNodes' polls are held open.

A stock SuperNode that gets no message sleeps for 3 s before it asks again. The guard therefore
keeps its question until a message has wholly arrived. It learns of messages from the run's own
requests, which pass through the same process, so that nobody who waits reads the database.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from flwr.proto.fleet_pb2 import PullMessagesResponse
from starlette.types import Receive

from server.gateway.asgi import Reply, wait_for_disconnect
from server.gateway.body import ClientGone
from server.gateway.refused import Reason, Refused

# A message whose objects stop coming is taken for abandoned; SuperLink itself gives it 180 s.
STALLED_SECONDS = 30.0


@dataclass
class _Arriving:
    node_id: int
    missing: set[str]
    progress_at: float


class Waiting:
    """One node's question. bell: set when there may be something to answer."""

    def __init__(self) -> None:
        self.bell = asyncio.Event()
        self.superseded = False


class ArrivalBoard:
    """Lives in one event loop; none of its methods blocks. A node has one question at a time."""

    def __init__(self) -> None:
        self._arriving: dict[str, _Arriving] = {}
        self._waiting: dict[int, Waiting] = {}
        self.closing = False

    def announce(self, message_id: str, node_id: int, missing: Iterable[str]) -> None:
        """A message for a node was registered; `missing` are the objects still to be pushed."""
        arriving = _Arriving(node_id, set(missing), time.monotonic())
        if arriving.missing:
            self._arriving[message_id] = arriving
        else:
            self._ring(node_id)

    def object_stored(self, object_id: str) -> None:
        """An object came; whoever's message it completes is woken."""
        complete = []
        for message_id, arriving in self._arriving.items():
            if object_id in arriving.missing:
                arriving.missing.discard(object_id)
                arriving.progress_at = time.monotonic()
                if not arriving.missing:
                    complete.append(message_id)
        for message_id in complete:
            self._ring(self._arriving.pop(message_id).node_id)

    def is_arriving(self, node_id: int) -> bool:
        """True while a message for the node is on its way and its objects keep coming."""
        stalled_before = time.monotonic() - STALLED_SECONDS
        stalled = [key for key, a in self._arriving.items() if a.progress_at < stalled_before]
        for message_id in stalled:
            del self._arriving[message_id]
        return any(arriving.node_id == node_id for arriving in self._arriving.values())

    @contextmanager
    def waiting(self, node_id: int) -> Iterator[Waiting]:
        """Rung whenever a message for the node is complete, at closing, and when the node asks
        again: then the connection of the older question is most likely dead."""
        waiting = Waiting()
        if older := self._waiting.get(node_id):
            older.superseded = True
            older.bell.set()
        self._waiting[node_id] = waiting
        if self.closing:
            waiting.bell.set()
        try:
            yield waiting
        finally:
            if self._waiting.get(node_id) is waiting:
                del self._waiting[node_id]

    @property
    def held(self) -> int:
        """How many polls wait now."""
        return len(self._waiting)

    def close(self) -> None:
        """Wake everyone; from now on nobody waits."""
        self.closing = True
        for waiting in self._waiting.values():
            waiting.bell.set()

    def _ring(self, node_id: int) -> None:
        if waiting := self._waiting.get(node_id):
            waiting.bell.set()


class HeldPoll:
    """One node's question for messages, kept for at most `hold_seconds`."""

    def __init__(self, board: ArrivalBoard, node_id: int, hold_seconds: float) -> None:
        self._board = board
        self._node_id = node_id
        self._hold_seconds = hold_seconds

    async def answer(self, ask: Callable[[], Awaitable[Reply]], receive: Receive) -> Reply:
        """What SuperLink answers once there is a message, or what it answered when time is up.

        `ask` puts the question to SuperLink, which then counts the message as delivered; so it is
        put only while the client is there. Errors: ClientGone; Refused where the node asked again
        while a message was arriving.
        """
        gone = asyncio.ensure_future(wait_for_disconnect(receive))
        until = time.monotonic() + self._hold_seconds
        reply: Reply | None = None
        try:
            with self._board.waiting(self._node_id) as waiting:
                if not self._board.is_arriving(self._node_id):
                    reply = await ask()
                while reply is None or _is_empty(reply):
                    rung = await _rings(waiting.bell, gone, until - time.monotonic())
                    if reply is not None and (waiting.superseded or not rung):
                        break
                    if waiting.superseded:
                        raise Refused(Reason.UNAVAILABLE, "The node asked again.")
                    waiting.bell.clear()
                    reply = await ask()
                    if not rung or self._board.closing:
                        break
        finally:
            gone.cancel()
        return reply


async def _rings(bell: asyncio.Event, gone: asyncio.Future[None], seconds: float) -> bool:
    """False when the time is up. Errors: ClientGone."""
    ringing = asyncio.ensure_future(bell.wait())
    try:
        await asyncio.wait((ringing, gone), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        if gone.done():
            raise ClientGone
        return ringing.done()
    finally:
        ringing.cancel()


def _is_empty(reply: Reply) -> bool:
    """True for a good answer without a message; anything else goes to the node as it is."""
    return reply.status == 200 and not PullMessagesResponse.FromString(reply.body).messages_list
