"""Reading a request's body within bounds of size and time."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from starlette.types import Message, Receive

from server.gateway.refused import Reason, Refused

# After a refusal: how long, and how much, is still read so that the client sees the answer and
# not a reset connection.
LINGER_SECONDS = 2.0
LINGER_BYTES = 32 << 20


class ClientGone(Exception):
    """The client closed the connection; there is nobody to answer."""


class Incoming:
    """A request's `receive` that knows whether the body is complete."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self.complete = False

    async def __call__(self) -> Message:
        """The next part of the body, or the disconnection."""
        message = await self._receive()
        if not message.get("more_body", False):
            self.complete = True
        return message


async def read_body(
    receive: Receive,
    headers: Mapping[bytes, bytes],
    *,
    max_bytes: int,
    idle_seconds: float,
    total_seconds: float,
) -> bytes:
    """The whole body. A declared length over the bound is refused before a byte is read.

    Errors: Refused (too large, too slow, malformed length or two of them), ClientGone.
    """
    if b"content-length" in headers and b"transfer-encoding" in headers:
        raise Refused(Reason.MALFORMED, "Expected one of content-length and transfer-encoding.")
    declared = headers.get(b"content-length", b"0")
    if not declared.isdigit():
        raise Refused(Reason.MALFORMED, "Expected digits as content-length.")
    if int(declared) > max_bytes:
        text = f"Expected a body of at most {max_bytes} bytes, {int(declared)} are announced."
        raise Refused(Reason.BODY_TOO_LARGE, text)
    body = bytearray()
    try:
        async with asyncio.timeout(total_seconds):
            while True:
                # Not wait_for: Python 3.11 drops the outer timeout where both are over at once.
                async with asyncio.timeout(idle_seconds):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > max_bytes:
                    text = f"Expected a body of at most {max_bytes} bytes, more came."
                    raise Refused(Reason.BODY_TOO_LARGE, text)
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError as error:
        text = f"The body paused for {idle_seconds} s, or took more than {total_seconds} s."
        raise Refused(Reason.BODY_TOO_SLOW, text) from error


async def discard_rest(receive: Receive) -> None:
    """Read on for a moment without keeping anything, after the answer was sent."""
    discarded = 0
    try:
        async with asyncio.timeout(LINGER_SECONDS):
            while discarded < LINGER_BYTES:
                message = await receive()
                discarded += len(message.get("body", b""))
                if message["type"] == "http.disconnect" or not message.get("more_body", False):
                    return
    except TimeoutError:
        return
