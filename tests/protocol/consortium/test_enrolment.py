"""A request to join proves that its sender holds its keys, and nothing of it can be changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from protocol.consortium import supernode_key
from protocol.consortium.documents import LATEST_SECONDS
from protocol.consortium.enrolment import EnrolmentRequest, Proofs, keys_fingerprint
from protocol.errors import FoedusError
from tests.protocol.consortium.leagues import ANNE, BELL, COORDINATOR, LEAGUE, NOW, Firm
from tests.protocol.consortium.tampering import tampered

KEY = COORDINATOR.public_key


def unsigned(firm: Firm, previous: bytes | None = None) -> EnrolmentRequest:
    pem = supernode_key.public_pem(firm.supernode)
    return EnrolmentRequest(firm.name, firm.identity.public_key, pem, LEAGUE, KEY, NOW, previous)


def joins(firm: Firm) -> EnrolmentRequest:
    return unsigned(firm).proven(firm.identity, firm.supernode)


def rotates(firm: Firm, old: Firm) -> EnrolmentRequest:
    request = unsigned(firm, old.identity.public_key)
    return request.proven(firm.identity, firm.supernode, old.identity)


@pytest.mark.parametrize("request_", [joins(ANNE), rotates(ANNE, BELL)], ids=["join", "rotate"])
def test_a_request_reads_back_equal_and_no_field_of_it_can_change(
    request_: EnrolmentRequest,
) -> None:
    text = request_.to_json()
    assert EnrolmentRequest.from_json(text) == request_
    accepted = []
    for what, changed in tampered(text):
        try:
            EnrolmentRequest.from_json(changed)
        except FoedusError:
            continue
        accepted.append(what)
    assert accepted == []


def test_each_proof_must_be_made_by_its_own_key() -> None:
    with pytest.raises(FoedusError, match="identity_signature"):
        unsigned(ANNE).proven(BELL.identity, ANNE.supernode)
    with pytest.raises(FoedusError, match="supernode_signature"):
        unsigned(ANNE).proven(ANNE.identity, BELL.supernode)
    rotation = unsigned(ANNE, BELL.identity.public_key)
    with pytest.raises(FoedusError, match="previous_signature"):
        rotation.proven(ANNE.identity, ANNE.supernode, ANNE.identity)
    with pytest.raises(FoedusError, match="previous_signature"):
        rotation.proven(ANNE.identity, ANNE.supernode)


def test_a_proof_of_one_request_is_none_for_another() -> None:
    first, later = joins(ANNE), replace(joins(ANNE), created=NOW + 1)
    with pytest.raises(FoedusError) as refused:
        EnrolmentRequest.from_json(replace(later, proofs=first.proofs).to_json())
    assert "identity_signature" in str(refused.value)
    assert "supernode_signature" in str(refused.value)


def test_new_keys_that_are_the_old_ones_are_no_rotation() -> None:
    with pytest.raises(FoedusError, match="previous_signature"):
        rotates(ANNE, ANNE)


def test_other_curves_and_weak_keys_are_refused() -> None:
    p256 = ec.generate_private_key(ec.SECP256R1())
    request = replace(unsigned(ANNE), supernode_key=supernode_key.public_pem(p256))
    with pytest.raises(FoedusError, match="expected a P-384"):
        request.proven(ANNE.identity, p256)
    values = json.loads(joins(ANNE).to_json()) | {"identity_key": "01" + "00" * 31}
    with pytest.raises(FoedusError, match="low order"):
        EnrolmentRequest.from_json(json.dumps(values))


def test_another_spelling_of_the_supernodes_key_is_refused() -> None:
    spaced = unsigned(ANNE).supernode_key + b"\n"
    with pytest.raises(FoedusError, match="supernode_key"):
        replace(unsigned(ANNE), supernode_key=spaced).proven(ANNE.identity, ANNE.supernode)


@pytest.mark.parametrize("name", ["", " Anne", "a\nb", "\u202eesrever", "x" * 101])
def test_names_that_could_mislead_are_refused(name: str) -> None:
    with pytest.raises(FoedusError, match="name: expected 1 to 100 characters"):
        replace(unsigned(ANNE), name=name).proven(ANNE.identity, ANNE.supernode)


def test_a_request_is_for_one_consortium_and_coordinator() -> None:
    request = joins(ANNE)
    request.expect_meant_for(LEAGUE, {KEY, BELL.identity.public_key})
    for consortium, keys in (("Other", {KEY}), (LEAGUE, {BELL.identity.public_key})):
        with pytest.raises(FoedusError, match="Expected a request to join"):
            request.expect_meant_for(consortium, keys)


def test_the_fingerprint_changes_with_either_key_and_nothing_else() -> None:
    request = joins(ANNE)
    assert replace(request, name="Other", proofs=Proofs()).fingerprint == request.fingerprint
    other = joins(BELL)
    mixed = {
        request.fingerprint,
        keys_fingerprint(request.identity_key, other.supernode_key),
        keys_fingerprint(other.identity_key, request.supernode_key),
        other.fingerprint,
    }
    assert len(mixed) == 4


def test_a_request_of_a_time_that_has_no_day_is_refused() -> None:
    values = json.loads(joins(ANNE).to_json()) | {"created": LATEST_SECONDS + 1}
    with pytest.raises(FoedusError, match=f"created: expected at most {LATEST_SECONDS}"):
        EnrolmentRequest.from_json(json.dumps(values))


def test_what_is_no_request_is_refused_without_a_traceback() -> None:
    for text in ("", "[]", "null", "{", "[" * 100_000, '{"schema": 1}', '"' + "x" * 10 + '"'):
        with pytest.raises(FoedusError):
            EnrolmentRequest.from_json(text)
    doubled = joins(ANNE).to_json().replace('"name":', '"name": "Bell LLP", "name":', 1)
    with pytest.raises(FoedusError, match="a key stands twice"):
        EnrolmentRequest.from_json(doubled)
