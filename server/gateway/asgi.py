"""Whole requests and whole replies over ASGI: bounded reading, calling an app, answering."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

Header = tuple[bytes, bytes]


@dataclass(frozen=True)
class Reply:
    """One HTTP response, whole."""

    status: int
    headers: tuple[Header, ...]
    body: bytes = field(repr=False)

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header by its lower-case name."""
        return next((value for key, value in self.headers if key == name), None)


async def send_reply(send: Send, reply: Reply, *, last: bool = True) -> None:
    """Send it; with last=False the response stays open although its bytes are complete."""
    headers = [header for header in reply.headers if header[0] != b"content-length"]
    headers.append((b"content-length", str(len(reply.body)).encode()))
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body, "more_body": not last})


async def call(app: ASGIApp, scope: Scope, body: bytes) -> Reply:
    """What `app` answers to this request; the whole response is kept in memory."""
    started: Mapping[str, Any] = {}
    chunks: list[bytes] = []
    requests: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        if requests:
            return requests.pop()
        # Starlette takes an answer here for a client that went away, and drops the response.
        await asyncio.Event().wait()
        raise AssertionError("never set")

    async def send(message: Message) -> None:
        nonlocal started
        if message["type"] == "http.response.start":
            started = message
        elif message["type"] == "http.response.body":
            chunks.append(message.get("body", b""))

    await app(scope, receive, send)
    return Reply(started["status"], tuple(_headers(started["headers"])), b"".join(chunks))


def post_scope(path: str, headers: Iterable[Header], client: object) -> Scope:
    """The scope of a POST to exactly `path`; nothing of the original target is in it."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode("ascii"),
        "root_path": "",
        "query_string": b"",
        "headers": list(headers),
        "client": client,
        "server": None,
        "state": {},
    }


async def wait_for_disconnect(receive: Receive) -> None:
    """Return when the client has gone; its body must have been read."""
    while (await receive())["type"] != "http.disconnect":
        pass


def _headers(pairs: Iterable[Iterable[bytes]]) -> list[Header]:
    return [(bytes(name).lower(), bytes(value)) for name, value in pairs]
