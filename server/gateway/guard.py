"""What stands on the firms' port: it lets a member's node do its work and nothing else.

A request goes through: exact path, signed headers (once), body within bounds, form, what belongs
to the node. Then a request made anew, with a fixed path and only the headers that Flower needs,
goes to SuperLink's app, which authenticates it once more.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.supercore.protobuf.constants import PROTOBUF_MEDIA_TYPE
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp, Receive, Scope, Send

from server.gateway import allowed_paths as paths
from server.gateway.asgi import Reply, call, post_scope, send_reply
from server.gateway.body import ClientGone, Incoming, discard_rest, read_body
from server.gateway.fleet_rules import Done, FleetRules
from server.gateway.limits import Limits
from server.gateway.long_poll import ArrivalBoard, HeldPoll
from server.gateway.member_api import MemberApi
from server.gateway.message_checks import parse
from server.gateway.node_identity import NodeGate, claimed_node
from server.gateway.observing import CLIENT_GONE, Observer, Served
from server.gateway.redelivery import Redelivery
from server.gateway.refused import Reason, Refused

_PROTOBUF = PROTOBUF_MEDIA_TYPE.encode()

# Passed on; every other header of a firm ends here.
_PASSED_HEADERS = frozenset(
    {
        b"content-type",
        b"accept",
        b"flwr-public-key",
        b"flwr-signature",
        b"flwr-timestamp",
        b"flwr-package-name",
        b"flwr-package-version",
        b"flwr-component-name",
    }
)


@dataclass
class _Account:
    """What becomes known of a request while it is served."""

    path: str = "other"
    who: str = ""
    bytes_in: int = 0
    bytes_out: int = 0


class Guard:
    """An ASGI app for HTTP only."""

    def __init__(
        self,
        superlink: ASGIApp,
        gate: NodeGate,
        rules: FleetRules,
        redelivery: Redelivery,
        board: ArrivalBoard,
        members: MemberApi,
        limits: Limits,
        observer: Observer,
    ) -> None:
        self._superlink = superlink
        self._gate = gate
        self._rules = rules
        self._redelivery = redelivery
        self._board = board
        self._members = members
        self._limits = limits
        self._observer = observer
        # One whole reply in memory at a time.
        self._settling = asyncio.Lock()
        self._turns: defaultdict[int, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(limits.bodies_at_a_time)
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever it is."""
        started, account, incoming = time.monotonic(), _Account(), Incoming(receive)
        reason = text = ""
        try:
            reply = await self._answer(scope, incoming, account)
        except Refused as refused:
            reply, reason, text = refused.reply(), refused.reason.value, str(refused)
        except ClientGone:
            reply, reason = Reply(499, (), b""), CLIENT_GONE
        account.bytes_out = len(reply.body)
        if reason != CLIENT_GONE:
            await self._send(incoming, send, reply)
        self._observer.served(
            Served(
                scope["method"] if account.path != "other" else "other",
                account.path,
                reply.status,
                reason,
                text,
                account.who,
                scope["client"][0] if scope.get("client") else "",
                account.bytes_in,
                account.bytes_out,
                time.monotonic() - started,
            )
        )

    async def _answer(self, scope: Scope, receive: Receive, account: _Account) -> Reply:
        if member := paths.member_path(scope, self._members.offered):
            account.path = member[1]
            account.who, reply = await self._members.answer(member, scope, receive, time.time())
            return reply
        path = paths.fleet_path(scope)
        if path is None:
            raise Refused(Reason.NOT_OFFERED, "Not a path that firms are offered.")
        account.path = path
        try:
            return await self._fleet(path, scope, receive, account)
        except SQLAlchemyError as error:
            # Such as "database is locked", or a full disk, which people have to see to. A SuperNode
            # asks again after 503, and ends after 500.
            why = getattr(error, "orig", None) or type(error).__name__
            text = f"The database does not answer: {why}."
            raise Refused(Reason.UNAVAILABLE, text) from error

    async def _fleet(self, path: str, scope: Scope, receive: Receive, account: _Account) -> Reply:
        headers = _single_headers(scope)
        if headers.get(b"content-type") != _PROTOBUF:
            raise Refused(Reason.WRONG_MEDIA_TYPE, "Expected a protobuf message.")
        now = datetime.datetime.now(datetime.UTC)
        node_id = await asyncio.to_thread(self._gate.admit, headers, now)
        account.who = str(node_id)
        onward = post_scope(
            path,
            ((name, value) for name, value in headers.items() if name in _PASSED_HEADERS),
            scope.get("client"),
        )
        async with self._turn(node_id, headers):
            body = await read_body(
                receive,
                headers,
                max_bytes=self._max_bytes(path),
                idle_seconds=self._limits.body_idle_seconds,
                total_seconds=self._limits.transfer_seconds,
            )
            account.bytes_in = len(body)
            message = parse(body, paths.FLEET_REQUESTS[path])
            if claimed_node(message) not in (None, node_id):
                raise Refused(Reason.NOT_YOURS, f"Node {node_id} named another as the sender.")
            pushed_to = await asyncio.to_thread(self._rules.check, path, message, node_id)
            if path != paths.PULL_MESSAGES:
                async with self._rules.turn(path):
                    reply = await self._pass_on(onward, headers, body)
                    done = self._rules.note(path, message, node_id, pushed_to, reply)
                    if done.message_id:
                        await self._settle(done)
                return reply
        await asyncio.to_thread(self._redelivery.before_question, node_id)
        poll = HeldPoll(self._board, node_id, self._limits.long_poll_seconds)
        return await poll.answer(lambda: self._pass_on(onward, headers, body), receive)

    async def _pass_on(self, onward: Scope, headers: Mapping[bytes, bytes], body: bytes) -> Reply:
        """What SuperLink answers. Bodies and held questions take long: whose member was expelled
        meanwhile is refused."""
        self._gate.check_again(headers, datetime.datetime.now(datetime.UTC))
        return await call(self._superlink, onward, body)

    async def _settle(self, done: Done) -> None:
        async with self._settling:
            try:
                await asyncio.to_thread(self._rules.settle, done)
            finally:
                self._rules.show(done)

    def _turn(
        self, node_id: int, headers: Mapping[bytes, bytes]
    ) -> contextlib.AbstractAsyncContextManager[None]:
        """Large bodies wait for each other; a heartbeat does not wait for them."""
        length = headers.get(b"content-length", b"")
        declared = length.isdigit() and b"transfer-encoding" not in headers
        if declared and int(length) <= self._limits.small_body_bytes:
            return contextlib.nullcontext()
        return self._turns[node_id]

    def _max_bytes(self, path: str) -> int:
        """Only objects are large; the other requests are parsed, and grow by it."""
        if path == paths.PUSH_OBJECT:
            return self._limits.max_body_bytes
        if path == paths.PUSH_MESSAGES:
            return min(self._limits.max_announcement_bytes, self._limits.max_body_bytes)
        return self._limits.small_body_bytes

    async def _send(self, incoming: Incoming, send: Send, reply: Reply) -> None:
        """Whoever does not read its answer loses the connection: uvicorn closes unfinished ones."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.transfer_seconds):
                await send_reply(send, reply, last=incoming.complete)
                if not incoming.complete:
                    await discard_rest(incoming)
                    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _single_headers(scope: Scope) -> Mapping[bytes, bytes]:
    """Errors: Refused MALFORMED where one that matters stands twice."""
    headers: dict[bytes, bytes] = {}
    for name, value in scope["headers"]:
        if name in headers and (name in _PASSED_HEADERS or name == b"content-length"):
            raise Refused(Reason.MALFORMED, "A header stands twice.")
        headers[bytes(name)] = bytes(value)
    return headers
