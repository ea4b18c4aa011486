"""An invitation is the coordinator's as a whole or not at all."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.consortium.fingerprint import fingerprint
from protocol.consortium.identity import Identity
from protocol.consortium.invitation import Invitation, split_address
from protocol.errors import FoedusError
from server.consortium.certificates import make_authority
from tests.protocol.consortium.leagues import COORDINATOR, LEAGUE
from tests.protocol.consortium.tampering import tampered

CA = make_authority(LEAGUE, datetime.datetime.now(datetime.UTC)).certificate_pem.decode()
# Of 32 zero bytes; computed with Python's integers and hashlib alone.
KNOWN = "68279 54695 90533 70046 29080 69356 87091 33385"
UNSIGNED = Invitation(LEAGUE, "foedus.example.org:9443", COORDINATOR.public_key, CA)


def test_it_reads_back_equal_and_no_field_of_it_can_change(tmp_path: Path) -> None:
    invitation = UNSIGNED.signed(COORDINATOR)
    invitation.save(tmp_path / "invitation.json")
    assert Invitation.read(tmp_path / "invitation.json") == invitation
    accepted = []
    for what, changed in tampered(invitation.to_json()):
        try:
            Invitation.from_json(changed)
        except FoedusError:
            continue
        accepted.append(what)
    assert accepted == []


def test_it_is_signed_by_the_key_it_carries() -> None:
    with pytest.raises(FoedusError, match="signature"):
        UNSIGNED.signed(Identity.generate())


def test_who_swaps_the_key_and_signs_anew_changes_the_fingerprint() -> None:
    mallory = Identity.generate()
    forged = replace(UNSIGNED, coordinator_key=mallory.public_key).signed(mallory)
    assert Invitation.from_json(forged.to_json()).fingerprint == fingerprint(mallory.public_key)
    assert forged.fingerprint != UNSIGNED.fingerprint


def test_everything_wrong_is_told_at_once() -> None:
    wrong = replace(UNSIGNED, consortium="", address="nowhere", ca_certificate_pem="none")
    with pytest.raises(FoedusError) as refused:
        wrong.signed(COORDINATOR)
    for said in ("consortium:", "address:", "ca_certificate_pem:"):
        assert said in str(refused.value), said


@pytest.mark.parametrize(
    ("address", "parts"),
    [
        ("foedus.example.org:9443", ("foedus.example.org", 9443)),
        ("127.0.0.1:1", ("127.0.0.1", 1)),
        ("[::1]:65535", ("::1", 65535)),
    ],
)
def test_addresses_are_split(address: str, parts: tuple[str, int]) -> None:
    assert split_address(address) == parts


@pytest.mark.parametrize(
    "address",
    [
        "",
        "host",
        "host:",
        ":1",
        "host:0",
        "host:65536",
        "host:x",
        "a b:1",
        "::1:1",
        "h/x:1",
        "[a]:1",
        "user@host:1",
        "host:1\n",
        "höst:1",
        "host:²",
    ],
)
def test_what_is_no_address_is_refused(address: str) -> None:
    with pytest.raises(ValueError):
        split_address(address)


def test_a_fingerprint_is_8_groups_of_5_digits_and_stays_the_same() -> None:
    assert fingerprint(bytes(32)) == KNOWN
    groups = fingerprint(COORDINATOR.public_key).split(" ")
    assert len(groups) == 8 and all(len(g) == 5 and g.isdecimal() for g in groups)
    assert len({fingerprint(bytes([byte] * 32)) for byte in range(256)}) == 256
