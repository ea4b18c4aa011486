"""foedus' own requests on the firms' port: what a member asks beside Flower's fleet API.

Every request but health is signed with the member's identity (protocol.consortium.signed_request).
A nonce is taken once while the process lives; after a restart it could be taken again, which is why
every handler must give the same result however often it is asked.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import parse_qsl

from starlette.types import Receive, Scope

from protocol.consortium.signed_request import (
    MEMBER_HEADER,
    NONCE_HEADER,
    TOLERANCE_SECONDS,
    RequestRefused,
    verify_request,
)
from protocol.consortium.signed_roster import MemberEntry, SignedRoster
from protocol.errors import FoedusError
from server.gateway.asgi import Header, Reply
from server.gateway.body import read_body
from server.gateway.limits import Limits
from server.gateway.refused import Reason, Refused
from server.gateway.replay import ReplayMemory
from server.lasting_problems import LastingProblems

log = logging.getLogger("foedus.gateway")

HEALTH = ("GET", "/v1/foedus/health")
ROSTER = ("GET", "/v1/foedus/roster")
PUSH_RECEIPTS = ("POST", "/v1/foedus/receipts")
PULL_RECEIPTS = ("GET", "/v1/foedus/receipts")

# A firm asks for the rest; it takes answers of 4 MiB at most.
_ROSTER_PAGE_BYTES = 1 << 20

_MEMBER = MEMBER_HEADER.lower().encode()
_NONCE = NONCE_HEADER.lower().encode()

# (who asks, the query, the body as JSON) -> the answer as JSON. May block. Errors: WrongRequest
# where the member asked what cannot be answered; OSError and any other FoedusError are about the
# coordinator's own files.
Handler = Callable[[MemberEntry, Mapping[str, str], Any], Mapping[str, Any]]


class WrongRequest(FoedusError):
    """What a member sent is not what the request takes. The words may quote it."""


class MemberApi:
    """chain: the newest verified versions of the roster, oldest first; the last one decides."""

    def __init__(
        self,
        chain: Callable[[], Sequence[SignedRoster]],
        handlers: Mapping[tuple[str, str], Handler],
        limits: Limits,
    ) -> None:
        self._chain = chain
        self._limits = limits
        self._handlers = {ROSTER: self._roster, **handlers}
        self._used = ReplayMemory(2 * TOLERANCE_SECONDS)
        self._problems = LastingProblems(log)
        self.offered = frozenset({HEALTH, *self._handlers})

    async def answer(
        self, asked: tuple[str, str], scope: Scope, receive: Receive, now_seconds: float
    ) -> tuple[str, Reply]:
        """Who asked (the firm's name) and what it gets. Errors: Refused, ClientGone."""
        if asked == HEALTH:
            # Closed, so that strangers cannot keep the places of the members.
            return "", json_reply({"status": "ok"}, (b"connection", b"close"))
        headers = {bytes(name): bytes(value) for name, value in scope["headers"]}
        members = self._chain()[-1].members
        if headers.get(_MEMBER, b"").decode("ascii", "replace") not in {
            entry.member_id for entry in members
        }:
            raise Refused(Reason.UNAUTHENTICATED, "The request names no member.")
        body = await read_body(
            receive,
            headers,
            max_bytes=self._limits.member_body_bytes,
            idle_seconds=self._limits.body_idle_seconds,
            total_seconds=self._limits.transfer_seconds,
        )
        member = self._authenticate(asked, scope, headers, body, now_seconds)
        answer = await asyncio.to_thread(self._handle, asked, member, scope, body)
        return member.name, json_reply(answer)

    def _authenticate(
        self,
        asked: tuple[str, str],
        scope: Scope,
        headers: Mapping[bytes, bytes],
        body: bytes,
        now_seconds: float,
    ) -> MemberEntry:
        method, path = asked
        query = bytes(scope["query_string"]).decode("ascii", "replace")
        text = {name.decode("latin-1"): value.decode("latin-1") for name, value in headers.items()}
        newest = self._chain()[-1]
        try:
            member = verify_request(
                text,
                newest.consortium,
                method,
                f"{path}?{query}" if query else path,
                body,
                newest.members,
                now_seconds,
            )
        except RequestRefused as error:
            raise Refused(Reason.UNAUTHENTICATED, str(error)) from error
        if not self._used.first_use(member.public_key + headers[_NONCE], now_seconds):
            raise Refused(Reason.REPLAYED, f"A request of {member.name!r} came again.")
        return member

    def _handle(
        self, asked: tuple[str, str], member: MemberEntry, scope: Scope, body: bytes
    ) -> Mapping[str, Any]:
        try:
            query = dict(parse_qsl(scope["query_string"].decode("ascii"), strict_parsing=True))
        except ValueError:
            query = {}
        try:
            value = json.loads(body) if body else None
        except (ValueError, RecursionError) as error:
            raise Refused(Reason.MALFORMED, f"{member.name!r} sent no JSON.") from error
        about = f"{member.name!r} gets no answer to {' '.join(asked)}"
        try:
            answer = self._handlers[asked](member, query, value)
        except WrongRequest as error:
            # The error's words may quote what came; the log holds nothing of that.
            raise Refused(
                Reason.MALFORMED, f"{member.name!r} sent what cannot be answered."
            ) from error
        except (FoedusError, OSError) as error:
            self._problems.tell(about, str(error))
            raise Refused(Reason.UNAVAILABLE, f"{about}.") from error
        self._problems.over(about)
        return answer

    def _roster(self, member: MemberEntry, query: Mapping[str, str], body: Any) -> dict[str, Any]:
        after, chain = whole_number(query, "after"), self._chain()
        lines: list[str] = []
        num_bytes = 0
        for version in (one for one in chain if one.version > after):
            if num_bytes >= _ROSTER_PAGE_BYTES:
                break
            lines.append(version.to_line())
            num_bytes += len(lines[-1])
        return {"lines": lines, "newest": chain[-1].version}


def whole_number(query: Mapping[str, str], name: str) -> int:
    """A number of 0 or more from the query; 0 where it is not given. Errors: WrongRequest."""
    text = query.get(name, "0")
    if not (text.isascii() and text.isdigit() and len(text) < 16):
        raise WrongRequest(f"Expected a whole number as {name!r}.")
    return int(text)


def json_reply(value: Mapping[str, Any], *more_headers: Header) -> Reply:
    """200 with this body."""
    headers = ((b"content-type", b"application/json"), *more_headers)
    return Reply(200, headers, json.dumps(value).encode())
