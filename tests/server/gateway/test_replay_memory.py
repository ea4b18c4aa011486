"""A used signature is known for as long as it could be used."""

from __future__ import annotations

import datetime
from base64 import b64decode

import pytest

from server.gateway.node_identity import REPLAY_WINDOW_SECONDS, NodeGate, read_signed_time
from server.gateway.refused import Reason, Refused
from server.gateway.replay import ReplayMemory
from tests.server.gateway.little_coordinator import Firm
from tests.server.gateway.signed_headers import headers

ASH = Firm("Ash")
NOW = datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC)
LONG_AGO = datetime.datetime(2029, 1, 1, tzinfo=datetime.UTC)


def seconds(number: float) -> datetime.timedelta:
    return datetime.timedelta(seconds=number)


def signed(at: datetime.datetime, firm: Firm = ASH) -> dict[bytes, bytes]:
    made = headers(firm, at.isoformat())
    return {name.encode(): value.encode() for name, value in made.items()}


def gate(opened_at: datetime.datetime = LONG_AGO) -> NodeGate:
    return NodeGate(lambda key, now: True, {ASH.public_key: 7}.get, opened_at)


def reason(work: NodeGate, given: dict[bytes, bytes], now: datetime.datetime) -> Reason:
    with pytest.raises(Refused) as refused:
        work.admit(given, now)
    return refused.value.reason


def test_a_key_is_used_once_within_the_window_and_forgotten_after_it() -> None:
    memory = ReplayMemory(10.0)
    assert memory.first_use(b"a", 0.0)
    assert memory.first_use(b"b", 5.0)
    assert not memory.first_use(b"a", 9.9)
    assert memory.first_use(b"c", 10.0)
    assert len(memory) == 2
    assert not memory.first_use(b"b", 14.9)


@pytest.mark.parametrize("signed_ahead", [-300.0, 0.0, 4.9])
def test_a_signature_is_remembered_until_its_time_is_too_old(signed_ahead: float) -> None:
    """From the earliest moment at which it is taken to the last: never twice."""
    work, given = gate(), signed(NOW + seconds(signed_ahead))
    assert work.admit(given, NOW) == 7
    for later in range(0, int(REPLAY_WINDOW_SECONDS) + 20):
        assert reason(work, given, NOW + seconds(later)) in (
            Reason.REPLAYED,
            Reason.UNAUTHENTICATED,
        )


def test_what_an_earlier_process_may_have_seen_is_not_taken() -> None:
    work = gate(opened_at=NOW)
    for before in (-1.0, 4.9):
        assert reason(work, signed(NOW + seconds(before)), NOW + seconds(5)) is Reason.UNAVAILABLE
    assert work.admit(signed(NOW + seconds(5.1)), NOW + seconds(5.2)) == 7


@pytest.mark.parametrize("age", [-6.0, 306.0, 10**6])
def test_a_time_outside_of_flowers_window_is_refused(age: float) -> None:
    assert reason(gate(), signed(NOW - seconds(age)), NOW) is Reason.UNAUTHENTICATED


def test_a_key_that_is_not_registered_is_refused_and_takes_no_memory() -> None:
    work = gate()
    for _ in range(3):
        assert reason(work, signed(NOW, Firm("Other")), NOW) is Reason.UNAUTHENTICATED
    assert len(work._used) == 0


def test_the_claim_is_the_key_of_the_signature() -> None:
    given = signed(NOW)
    read = read_signed_time(given, NOW)
    assert read.public_key == ASH.public_key == b64decode(given[b"flwr-public-key"])
    assert read.signed_at == NOW
