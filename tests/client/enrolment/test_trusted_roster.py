"""Who is in a session: members of the newest roster whose admission holds; a run may be older."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from client.enrolment.trusted_roster import TrustedRoster, trusted_roster
from client.secure_aggregation.memory import RunMemory
from client.secure_aggregation.session import SitePart
from protocol.consortium.chain import SignedRoster, append_version
from protocol.errors import FoedusError, Refusal, WireError
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.keys import Advertisement
from protocol.secure_aggregation.messages import AdvertiseRequest, ShareRequest
from protocol.secure_aggregation.wire import Terms
from tests.client.enrolment.test_joining import INVITATION
from tests.protocol.consortium.leagues import (
    ANNE,
    BELL,
    COLE,
    COORDINATOR,
    NOW,
    YEAR,
    Firm,
    firm,
    founded,
    with_members,
)
from tests.secure_sessions import SESSION, terms_for

DALE = firm("Dale")
FIRST = founded()
OF_THREE = with_members(FIRST, *(f.entry() for f in (ANNE, BELL, COLE))).signed_by(COORDINATOR)
OF_FOUR = with_members(OF_THREE, *OF_THREE.members, DALE.entry()).signed_by(COORDINATOR)
WITHOUT_COLE = with_members(OF_FOUR, *(f.entry() for f in (ANNE, BELL, DALE))).signed_by(
    COORDINATOR
)


def trusted(folder: Path, versions: Sequence[SignedRoster], now: float = NOW) -> TrustedRoster:
    """What a site that keeps these versions goes by."""
    folder.mkdir(exist_ok=True)
    roster, invitation = folder / "roster.jsonl", folder / "consortium.json"
    for version in versions:
        append_version(roster, version)
    INVITATION.save(invitation)
    return trusted_roster(roster, invitation, now)


def terms_of(version: SignedRoster) -> Terms:
    """Of a run that started with this version."""
    return replace(terms_for(3), roster_digest=version.roster().digest)


def part_of(member: Firm, by: TrustedRoster) -> SitePart:
    return SitePart(member.identity, by.roster, 2, by.digests)


def advertised(member: Firm, by: TrustedRoster, terms: Terms) -> tuple[RunMemory, Advertisement]:
    memory, reply = part_of(member, by).advertise(RunMemory(), AdvertiseRequest(SESSION, terms))
    return memory, reply.advertisement


def shared(site: Firm, by: TrustedRoster, others: Sequence[Firm], terms: Terms) -> None:
    """The site hands out its shares to others that are still at the run's own version."""
    memory, own = advertised(site, by, terms)
    at_start = TrustedRoster(OF_THREE.roster(), frozenset())
    rows = [own, *(advertised(other, at_start, terms)[1] for other in others)]
    ordered = tuple(sorted(rows, key=lambda each: each.member_id))
    part_of(site, by).share(memory, ShareRequest(SESSION, ordered))


def test_a_run_goes_on_under_the_roster_it_started_with(tmp_path: Path) -> None:
    newer = trusted(tmp_path, [FIRST, OF_THREE, OF_FOUR])
    assert newer.roster.version == 3
    shared(ANNE, newer, [BELL, COLE], terms_of(OF_THREE))


def test_whoever_was_expelled_since_is_not_shared_with(tmp_path: Path) -> None:
    newest = trusted(tmp_path, [FIRST, OF_THREE, OF_FOUR, WITHOUT_COLE])
    shared(ANNE, newest, [BELL], terms_of(OF_THREE))
    with pytest.raises(WireError) as refused:
        shared(ANNE, newest, [BELL, COLE], terms_of(OF_THREE))
    assert refused.value.code == RefusalReason.UNKNOWN_MEMBER


def test_whose_admission_has_ended_is_not_shared_with(tmp_path: Path) -> None:
    ended = replace(COLE.entry(), expires=NOW + 10)
    version = with_members(FIRST, ANNE.entry(), BELL.entry(), ended).signed_by(COORDINATOR)
    before = trusted(tmp_path / "before", [FIRST, version], NOW + 9)
    assert len(before.roster.members) == 3
    after = trusted(tmp_path / "after", [FIRST, version], NOW + 10)
    assert [member.name for member in after.roster.members] == [ANNE.name, BELL.name]
    with pytest.raises(WireError):
        shared(ANNE, after, [BELL, COLE], terms_of(version))
    advertised(ANNE, after, terms_of(version))


def test_a_version_that_this_site_does_not_know_is_not_gone_under(tmp_path: Path) -> None:
    older = trusted(tmp_path, [FIRST, OF_THREE])
    for unknown in (OF_FOUR, with_members(FIRST, COLE.entry()).signed_by(COORDINATOR)):
        with pytest.raises(Refusal) as refused:
            advertised(ANNE, older, terms_of(unknown))
        assert refused.value.code == RefusalReason.UNKNOWN_MEMBER


def test_a_site_that_was_itself_expelled_makes_no_keys(tmp_path: Path) -> None:
    newest = trusted(tmp_path, [FIRST, OF_THREE, OF_FOUR, WITHOUT_COLE])
    with pytest.raises(WireError):
        advertised(COLE, newest, terms_of(OF_THREE))


def test_where_nobodys_admission_holds_there_is_no_session(tmp_path: Path) -> None:
    for folder, versions, now in (
        ("expired", [FIRST, OF_THREE], NOW + YEAR),
        ("empty", [FIRST], NOW),
    ):
        with pytest.raises(Refusal) as refused:
            trusted(tmp_path / folder, versions, now)
        assert refused.value.code == RefusalReason.UNKNOWN_MEMBER


def test_a_plain_roster_is_taken_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    path.write_text(OF_THREE.roster().to_json(), encoding="utf-8")
    plain = trusted_roster(path, None, NOW + 2 * YEAR)
    assert plain.roster == OF_THREE.roster()
    assert plain.digests == {OF_THREE.roster().digest}


def test_a_signed_roster_is_not_believed_without_the_invitation(tmp_path: Path) -> None:
    append_version(tmp_path / "roster.jsonl", FIRST)
    with pytest.raises(FoedusError, match=r"Expected `consortium` in site\.yaml"):
        trusted_roster(tmp_path / "roster.jsonl", None, NOW)
