"""Which requests change the roster: fresh ones, of firms whose keys are their own and new."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.consortium.chain import SignedRoster, next_version
from protocol.consortium.identity import Identity
from protocol.errors import FoedusError
from server.consortium.admission import DAY_SECONDS, admit, expel
from tests.protocol.consortium.leagues import (
    ANNE,
    BELL,
    COLE,
    COORDINATOR,
    NOW,
    firm,
    founded,
    with_members,
)
from tests.server.consortium.consortia import request_of

KEY = COORDINATOR.public_key
LATER = NOW + 10 * DAY_SECONDS
FIRST = founded()
SECOND = with_members(FIRST, ANNE.entry(), BELL.entry()).signed_by(COORDINATOR)
WITHOUT_BELL = with_members(SECOND, ANNE.entry()).signed_by(COORDINATOR)


def names(version: SignedRoster) -> list[str]:
    return [entry.name for entry in version.members]


def test_new_firms_are_admitted_until_member_days_from_now() -> None:
    version = admit([FIRST], [request_of(ANNE, KEY), request_of(BELL, KEY)], 100, LATER)
    assert names(version) == [ANNE.name, BELL.name] and version.version == 2
    for entry in version.members:
        assert (entry.admitted, entry.expires) == (LATER, LATER + 100 * DAY_SECONDS)


def test_a_rotation_replaces_both_keys_and_nobody_else() -> None:
    new = replace(firm("Anne's next keys"), name=ANNE.name)
    request = request_of(new, KEY, previous=ANNE, created=LATER)
    version = admit([FIRST, SECOND], [request], 100, LATER)
    entry = version.entry_named(ANNE.name)
    assert entry is not None and entry.public_key == new.identity.public_key
    assert version.entry_of(ANNE.identity.public_key) is None
    assert version.entry_named(BELL.name) == BELL.entry()


def test_a_renewal_moves_the_end_and_keeps_the_keys() -> None:
    request = request_of(ANNE, KEY, created=LATER)
    version = admit([FIRST, SECOND], [request], 100, LATER)
    entry = version.entry_named(ANNE.name)
    assert entry is not None and entry.public_key == ANNE.identity.public_key
    assert entry.expires == LATER + 100 * DAY_SECONDS and len(version.members) == 2


def test_the_request_of_an_admission_cannot_be_used_again() -> None:
    with pytest.raises(FoedusError, match="granted already"):
        admit([FIRST, SECOND], [request_of(ANNE, KEY, created=NOW)], 100, LATER)


def test_a_members_name_cannot_be_taken_over() -> None:
    with pytest.raises(FoedusError, match="does not show that it holds them"):
        admit([FIRST, SECOND], [request_of(COLE, KEY, name=ANNE.name)], 100, LATER)
    stolen = request_of(COLE, KEY, name=ANNE.name, previous=BELL)
    with pytest.raises(FoedusError, match="does not show that it holds them"):
        admit([FIRST, SECOND], [stolen], 100, LATER)


def test_a_members_key_cannot_come_under_another_name() -> None:
    for request in (
        request_of(ANNE, KEY, name="Anne again", created=LATER),
        request_of(replace(COLE, identity=ANNE.identity), KEY, created=LATER),
        request_of(replace(COLE, supernode=ANNE.supernode), KEY, created=LATER),
        request_of(replace(ANNE, supernode=BELL.supernode), KEY, created=LATER),
    ):
        with pytest.raises(FoedusError, match="a key that a member had before"):
            admit([FIRST, SECOND], [request], 100, LATER)


def test_the_expelled_come_back_with_new_keys_only() -> None:
    versions = [FIRST, SECOND, WITHOUT_BELL]
    with pytest.raises(FoedusError, match="a key that a member had before"):
        admit(versions, [request_of(BELL, KEY, created=LATER)], 100, LATER)
    back = replace(firm("Bell's next keys"), name=BELL.name)
    with pytest.raises(FoedusError, match="no member"):
        admit(versions, [request_of(back, KEY, previous=BELL, created=LATER)], 100, LATER)
    assert names(admit(versions, [request_of(back, KEY, created=LATER)], 100, LATER)) == [
        ANNE.name,
        BELL.name,
    ]


def test_after_its_end_a_membership_needs_new_keys() -> None:
    ended = replace(ANNE.entry(), expires=LATER)
    versions = [FIRST, with_members(FIRST, ended).signed_by(COORDINATOR)]
    with pytest.raises(FoedusError, match="join --rotate"):
        admit(versions, [request_of(ANNE, KEY, created=LATER)], 100, LATER)
    new = replace(firm("Anne's next keys"), name=ANNE.name)
    admit(versions, [request_of(new, KEY, previous=ANNE, created=LATER)], 100, LATER)


@pytest.mark.parametrize(
    ("age_days", "said"), [(30.1, "30 days old"), (-1.1, "1 days in the future")]
)
def test_stale_and_future_requests_are_refused(age_days: float, said: str) -> None:
    request = request_of(ANNE, KEY, created=NOW)
    with pytest.raises(FoedusError, match=said):
        admit([FIRST], [request], 100, NOW + int(age_days * DAY_SECONDS))


def test_requests_for_other_consortia_and_coordinators_are_refused() -> None:
    stranger = Identity.generate().public_key
    for request in (request_of(ANNE, stranger), request_of(ANNE, KEY, consortium="Other")):
        with pytest.raises(FoedusError, match="Expected a request to join"):
            admit([FIRST], [request], 100, NOW)


def test_a_request_under_a_coordinators_earlier_key_is_still_good() -> None:
    new = Identity.generate()
    renamed = replace(next_version(FIRST, NOW), coordinator_key=new.public_key)
    versions = [FIRST, renamed.signed_by(COORDINATOR, new)]
    assert names(admit(versions, [request_of(ANNE, KEY)], 100, NOW)) == [ANNE.name]


def test_one_firm_asks_once() -> None:
    with pytest.raises(FoedusError, match="two of one"):
        admit([FIRST], [request_of(ANNE, KEY), request_of(BELL, KEY, name=ANNE.name)], 100, NOW)


@pytest.mark.parametrize("name", ["anne & co", "Anne Co.", "ANNE & CO"])
def test_a_name_that_looks_like_a_members_is_refused(name: str) -> None:
    with pytest.raises(FoedusError, match="looks like that of the member 'Anne & Co'"):
        admit([FIRST, SECOND], [request_of(COLE, KEY, name=name)], 100, LATER)
    two = [request_of(COLE, KEY), request_of(firm("Dune"), KEY, name="COLE")]
    with pytest.raises(FoedusError, match="two of one"):
        admit([FIRST, SECOND], two, 100, LATER)


def test_expelling_takes_out_one_member_and_knows_who_is_none() -> None:
    assert names(expel(SECOND, BELL.name, LATER)) == [ANNE.name]
    with pytest.raises(FoedusError, match=r"got 'Nobody'. Members are: 'Anne & Co', 'Bell LLP'"):
        expel(SECOND, "Nobody", LATER)
