"""The signed roster: nothing of its history can be changed, and nothing added without consent."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.consortium.chain import (
    SignedRoster,
    append_version,
    expect_proposal,
    first_version,
    load_roster,
    next_version,
    refuse_rollback,
    signatures_missing,
    verify_chain,
)
from protocol.consortium.documents import LATEST_SECONDS, day_of
from protocol.consortium.identity import Identity
from protocol.consortium.signed_roster import RosterSignature
from protocol.errors import FoedusError
from tests.protocol.consortium.leagues import (
    ANNE,
    BELL,
    COLE,
    COORDINATOR,
    LEAGUE,
    NOW,
    YEAR,
    Firm,
    founded,
    lines_of,
    three_versions,
    with_members,
)
from tests.protocol.consortium.tampering import tampered

KEY = COORDINATOR.public_key


def checked(*versions: SignedRoster, key: bytes = KEY) -> tuple[SignedRoster, ...]:
    return verify_chain(lines_of(*versions), key)


def test_a_sound_chain_reads_back_equal_with_its_members() -> None:
    versions = three_versions()
    read = checked(*versions)
    assert list(read) == versions
    roster = read[-1].roster()
    assert [member.name for member in roster.members] == [ANNE.name, BELL.name]
    assert roster.version == 3 and roster.consortium == LEAGUE


@pytest.mark.parametrize("place", [0, 1, 2])
def test_every_change_of_any_field_of_any_version_is_refused(place: int) -> None:
    lines = lines_of(*three_versions())
    accepted = []
    for what, changed in tampered(lines[place]):
        try:
            verify_chain([*lines[:place], changed, *lines[place + 1 :]], KEY)
        except FoedusError:
            continue
        accepted.append(what)
    assert accepted == []


@pytest.mark.parametrize("order", [(1, 2), (0, 2), (1, 0, 2), (0, 2, 1), (0, 0, 1, 2), (0, 1, 1)])
def test_versions_left_out_doubled_or_reordered_are_refused(order: Sequence[int]) -> None:
    versions = three_versions()
    with pytest.raises(FoedusError):
        checked(*(versions[place] for place in order))


def test_a_cut_tail_is_a_sound_chain_and_a_rollback() -> None:
    versions = three_versions()
    shorter = checked(*versions[:2])
    with pytest.raises(FoedusError, match="lost versions or holds them back"):
        refuse_rollback(versions[2], shorter)
    refuse_rollback(versions[1], checked(*versions))


def test_a_fork_is_refused_by_who_has_seen_the_other_branch() -> None:
    first, second, third = three_versions()
    other = with_members(second, ANNE.entry(), COLE.entry())
    other = other.signed_by(COORDINATOR, ANNE.identity)
    with pytest.raises(FoedusError, match="two histories"):
        refuse_rollback(third, checked(first, second, other))
    after = next_version(other, NOW).signed_by(COORDINATOR, ANNE.identity)
    with pytest.raises(FoedusError, match="forked"):
        checked(first, second, third, after)


def test_an_empty_chain_and_a_first_version_with_members_are_refused() -> None:
    with pytest.raises(FoedusError, match="at least one"):
        verify_chain([], KEY)
    full = replace(founded(), members=(ANNE.entry(),), signatures=()).signed_by(COORDINATOR)
    with pytest.raises(FoedusError, match="no members"):
        checked(full)


def test_a_chain_of_another_coordinator_is_refused() -> None:
    stranger = Identity.generate()
    with pytest.raises(FoedusError, match="other keys"):
        checked(first_version(LEAGUE, stranger, 0, NOW))
    forged = with_members(founded(), COLE.entry()).signed_by(stranger)
    with pytest.raises(FoedusError, match="coordinator's signature is missing"):
        checked(founded(), forged)


class TestMembersSignatures:
    """With K = 1 from the first version on, and Anne the only member."""

    first, second, _ = three_versions()
    proposal = with_members(second, ANNE.entry(), BELL.entry())

    def refused(self, version: SignedRoster, match: str) -> None:
        with pytest.raises(FoedusError, match=match):
            checked(self.first, self.second, version)

    def test_without_them_nothing_follows(self) -> None:
        version = self.proposal.signed_by(COORDINATOR)
        assert signatures_missing(self.second, version) == 1
        expect_proposal(self.second, version)
        self.refused(version, "1 more signatures")

    def test_a_stranger_cannot_give_them(self) -> None:
        self.refused(self.proposal.signed_by(COORDINATOR, COLE.identity), "no member's")

    def test_who_is_only_admitted_by_the_version_cannot_give_them(self) -> None:
        self.refused(self.proposal.signed_by(COORDINATOR, BELL.identity), "no member's")

    def test_nobody_counts_twice(self) -> None:
        version = self.proposal.signed_by(COORDINATOR, ANNE.identity, ANNE.identity)
        self.refused(version, "signed it twice")

    def test_the_coordinator_cannot_stand_in_for_a_member(self) -> None:
        self.refused(self.proposal.signed_by(COORDINATOR, COORDINATOR), "signed it twice")

    def test_the_coordinators_own_is_needed_beside_them(self) -> None:
        self.refused(self.proposal.signed_by(ANNE.identity), "coordinator's signature is missing")

    def test_the_number_cannot_be_lowered_without_them(self) -> None:
        lowered = replace(next_version(self.second, NOW), signatures_needed=0)
        self.refused(lowered.signed_by(COORDINATOR), "1 more signatures")
        checked(self.first, self.second, lowered.signed_by(COORDINATOR, ANNE.identity))

    def test_a_signature_of_another_version_does_not_hold(self) -> None:
        other = with_members(self.second, ANNE.entry(), COLE.entry()).signed_by(ANNE.identity)
        version = self.proposal.signed_by(COORDINATOR).with_signatures(*other.signatures)
        self.refused(version, "does not hold")

    def test_a_member_whose_admission_has_ended_cannot_give_them(self) -> None:
        late = with_members(self.second, ANNE.entry(), BELL.entry(), issued=NOW + YEAR)
        self.refused(late.signed_by(COORDINATOR, ANNE.identity), "had expired")

    def test_a_clock_set_back_cannot_revive_an_expired_member(self) -> None:
        checked(self.first, self.second, self.proposal.signed_by(COORDINATOR, ANNE.identity))
        earlier = replace(self.proposal, issued=NOW - 1)
        self.refused(earlier.signed_by(COORDINATOR, ANNE.identity), "issued before")


def test_more_members_must_sign_only_where_there_are_more() -> None:
    first = founded(signatures_needed=2)
    second = with_members(first, ANNE.entry()).signed_by(COORDINATOR)
    third = with_members(second, ANNE.entry(), BELL.entry()).signed_by(COORDINATOR, ANNE.identity)
    fourth = with_members(third, ANNE.entry(), BELL.entry(), COLE.entry())
    with pytest.raises(FoedusError, match="1 more"):
        checked(first, second, third, fourth.signed_by(COORDINATOR, ANNE.identity))
    checked(first, second, third, fourth.signed_by(COORDINATOR, ANNE.identity, BELL.identity))


class TestACoordinatorsNewKey:
    """Named in version 2, signed by both, and by the new one alone after that."""

    new = Identity.generate()
    first = founded()
    named = replace(next_version(first, NOW), coordinator_key=new.public_key)
    second = named.signed_by(COORDINATOR, new)
    third = with_members(second, ANNE.entry()).signed_by(new)

    def test_those_who_know_the_old_key_and_those_who_know_the_new_one_follow(self) -> None:
        for key in (KEY, self.new.public_key):
            assert len(checked(self.first, self.second, self.third, key=key)) == 3

    def test_it_must_have_signed_something_to_be_believed(self) -> None:
        with pytest.raises(FoedusError, match="missing"):
            checked(self.first, self.named.signed_by(COORDINATOR), key=self.new.public_key)
        with pytest.raises(FoedusError, match="other keys"):
            checked(self.first, key=self.new.public_key)

    def test_it_cannot_name_itself(self) -> None:
        with pytest.raises(FoedusError, match="missing"):
            checked(self.first, self.named.signed_by(self.new))

    def test_the_old_key_is_worth_nothing_after_it(self) -> None:
        forged = with_members(self.second, COLE.entry()).signed_by(COORDINATOR)
        with pytest.raises(FoedusError, match="missing"):
            checked(self.first, self.second, forged)

    def test_it_cannot_be_a_members(self) -> None:
        second = with_members(self.first, ANNE.entry()).signed_by(COORDINATOR)
        key = ANNE.identity.public_key
        third = replace(with_members(second), coordinator_key=key)
        with pytest.raises(FoedusError, match="cannot become"):
            checked(self.first, second, third.signed_by(COORDINATOR, ANNE.identity))
        with pytest.raises(FoedusError, match="coordinator's own"):
            with_members(second, replace(ANNE.entry(), public_key=KEY))


def test_one_key_or_name_cannot_be_two_members() -> None:
    anne = ANNE.entry()
    for twin in (
        replace(BELL.entry(), name=ANNE.name),
        replace(BELL.entry(), public_key=anne.public_key),
        replace(BELL.entry(), supernode_key=anne.supernode_key),
    ):
        with pytest.raises(FoedusError, match="stands 2 times"):
            with_members(founded(), anne, twin)


def test_weak_malformed_and_pointless_entries_are_refused_all_at_once() -> None:
    from cryptography.hazmat.primitives.asymmetric import ec

    from protocol.consortium.supernode_key import public_pem

    weak = replace(ANNE.entry(), public_key=bytes.fromhex("01" + "00" * 31))
    small = replace(BELL.entry(), supernode_key=public_pem(ec.generate_private_key(ec.SECP256R1())))
    over = replace(COLE.entry(), name=" Cole", expires=NOW)
    with pytest.raises(FoedusError) as refused:
        with_members(founded(), weak, small, over)
    for said in ("of low order", "expected a P-384", "expected 1 to 100", "after it was admitted"):
        assert said in str(refused.value), said


@pytest.mark.parametrize("seconds", [LATEST_SECONDS + 1, 10**17, 10**30])
def test_a_time_that_has_no_day_is_refused_where_it_is_made_and_where_it_is_read(
    seconds: int,
) -> None:
    latest = with_members(founded(), ANNE.entry(expires=LATEST_SECONDS), issued=LATEST_SECONDS)
    line = latest.to_line()
    assert day_of(SignedRoster.from_line(line, "line 1").members[0].expires) == "9999-12-31"
    for name in ("issued", "expires"):
        changed = line.replace(f'"{name}":{LATEST_SECONDS}', f'"{name}":{seconds}')
        with pytest.raises(FoedusError, match=f"{name}: expected a time before the year 10000"):
            SignedRoster.from_line(changed, "line 1")
    with pytest.raises(FoedusError, match="expires: expected a time before the year 10000"):
        with_members(founded(), ANNE.entry(expires=seconds))


def test_a_signature_by_a_weak_key_is_worth_nothing() -> None:
    version = founded().with_signatures(RosterSignature(b"\x01" + bytes(31), bytes(64)))
    with pytest.raises(FoedusError):
        checked(version)


def test_the_chain_and_a_plain_roster_are_both_loaded(tmp_path: Path) -> None:
    chain, plain = tmp_path / "roster.jsonl", tmp_path / "roster.json"
    versions = three_versions()
    for version in versions:
        append_version(chain, version)
    roster = versions[-1].roster()
    plain.write_text(roster.to_json(), encoding="utf-8")
    for path, key in ((chain, KEY), (chain, None), (plain, None), (plain, KEY)):
        assert load_roster(path, key) == roster
        assert load_roster(path, key).digest == roster.digest
    with pytest.raises(FoedusError, match="other keys"):
        load_roster(chain, Identity.generate().public_key)
    chain.write_text("", encoding="utf-8")
    with pytest.raises(FoedusError):
        load_roster(chain)
    with pytest.raises(FoedusError, match="Expected the signed roster at"):
        load_roster(tmp_path / "none.jsonl", KEY)


@pytest.mark.parametrize("firm", [ANNE, BELL], ids=lambda firm: firm.name)
def test_members_are_found_by_name_and_key(firm: Firm) -> None:
    newest = three_versions()[-1]
    entry = newest.entry_named(firm.name)
    assert entry is not None and entry == newest.entry_of(firm.identity.public_key)
    assert entry.member_id == firm.identity.member_id
    assert not entry.expired(NOW + YEAR - 1) and entry.expired(NOW + YEAR)
    assert newest.entry_named(COLE.name) is None
    assert newest.entry_of(COLE.identity.public_key) is None
