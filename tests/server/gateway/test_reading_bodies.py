"""Bodies are read within their bounds, and not at all where they are announced too large."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from starlette.types import Message

from server.gateway.body import ClientGone, Incoming, read_body
from server.gateway.refused import Reason, Refused


class Sender:
    """A client that sends these parts; None = a pause without end."""

    def __init__(
        self, parts: Sequence[bytes | None], ends: bool = True, pause_seconds: float = 0.0
    ) -> None:
        self._parts = list(parts)
        self._ends = ends
        self._pause_seconds = pause_seconds
        self.asked = 0

    async def receive(self) -> Message:
        self.asked += 1
        await asyncio.sleep(self._pause_seconds)
        if not self._parts:
            return {"type": "http.disconnect"}
        part = self._parts.pop(0)
        if part is None:
            await asyncio.Event().wait()
        more = bool(self._parts) or not self._ends
        return {"type": "http.request", "body": part, "more_body": more}


def read(sender: Sender, length: str = "", max_bytes: int = 10, total: float = 60.0) -> bytes:
    headers = {b"content-length": length.encode()} if length else {}
    return asyncio.run(
        read_body(
            sender.receive, headers, max_bytes=max_bytes, idle_seconds=0.05, total_seconds=total
        )
    )


def reason(sender: Sender, length: str = "", total: float = 60.0) -> Reason:
    with pytest.raises(Refused) as refused:
        read(sender, length, total=total)
    return refused.value.reason


def test_parts_are_put_together_up_to_the_bound() -> None:
    assert read(Sender([b"01234", b"56789"])) == b"0123456789"
    assert read(Sender([b""])) == b""


def test_one_byte_more_is_refused() -> None:
    assert reason(Sender([b"01234", b"567890"])) is Reason.BODY_TOO_LARGE


def test_an_announced_length_over_the_bound_is_refused_before_reading() -> None:
    sender = Sender([b"0"])
    assert reason(sender, "11") is Reason.BODY_TOO_LARGE
    assert sender.asked == 0


@pytest.mark.parametrize("length", ["-1", "+5", "1_0", "0x5", "5 ", "٣"])
def test_a_length_that_is_no_number_is_refused(length: str) -> None:
    assert reason(Sender([b"0"]), length) is Reason.MALFORMED


def test_a_length_beside_a_transfer_encoding_is_refused_before_reading() -> None:
    """Else the small length counts for what may be in memory, and the other one comes."""
    sender = Sender([b"0"])
    headers = {b"content-length": b"1", b"transfer-encoding": b"chunked"}
    with pytest.raises(Refused) as refused:
        asyncio.run(
            read_body(sender.receive, headers, max_bytes=10, idle_seconds=0.05, total_seconds=1.0)
        )
    assert refused.value.reason is Reason.MALFORMED
    assert sender.asked == 0


def test_a_pause_and_a_body_without_end_are_refused() -> None:
    assert reason(Sender([b"0", None])) is Reason.BODY_TOO_SLOW
    endless = Sender([b""] * 100_000, pause_seconds=0.01)
    assert reason(endless, total=0.1) is Reason.BODY_TOO_SLOW
    assert endless.asked < 100


def test_the_time_for_a_body_ends_although_a_part_comes_at_that_very_moment() -> None:
    for _ in range(20):
        assert reason(Sender([b""] * 20_000), total=0.01) is Reason.BODY_TOO_SLOW


def test_a_client_that_leaves_is_not_answered() -> None:
    with pytest.raises(ClientGone):
        read(Sender([b"0"], ends=False))


def test_a_body_is_known_to_be_complete_once_its_last_part_was_read() -> None:
    incoming = Incoming(Sender([b"0", b"1"]).receive)

    async def read_both() -> list[bool]:
        known = [incoming.complete]
        for _ in range(2):
            await incoming()
            known.append(incoming.complete)
        return known

    assert asyncio.run(read_both()) == [False, False, True]
