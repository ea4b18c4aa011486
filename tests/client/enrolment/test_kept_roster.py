"""A site keeps a roster that goes on from what it has seen, and from its own coordinator only."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from client.enrolment.coordinator_api import NotAdmitted, Unreachable
from client.enrolment.joining import rotate
from client.enrolment.kept_roster import kept_versions, refresh_roster, take_up_new_keys
from client.enrolment.keys import load_supernode_key
from client.site import Site
from protocol.consortium.chain import ChainError, MemberEntry, SignedRoster, next_version
from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.identity import Identity, load_identity
from protocol.errors import FoedusError
from server.consortium.certificates import make_authority
from tests.client.enrolment.coordinators import STARTED, Coordinator, coordinating
from tests.client.enrolment.sites import firm_of, joined
from tests.protocol.consortium.leagues import (
    BELL,
    COLE,
    COORDINATOR,
    LEAGUE,
    YEAR,
    Firm,
    founded,
    with_members,
)
from tests.protocol.consortium.leagues import firm as a_firm

NAME = "Vane & Alder"


@pytest.fixture
def coordinator(tmp_path: Path) -> Iterator[Coordinator]:
    with coordinating(tmp_path, [founded()]) as running:
        yield running


def entry(firm: Firm) -> MemberEntry:
    """Admitted an hour ago, for a year, by the clock of this machine."""
    now = int(time.time())
    return firm.entry(now - 3600, now + YEAR)


def follow(versions: list[SignedRoster], *firms: Firm) -> list[SignedRoster]:
    """One version more, with these members."""
    after = with_members(versions[-1], *map(entry, firms), issued=versions[-1].issued)
    return [*versions, after.signed_by(COORDINATOR)]


@pytest.fixture
def admitted(tmp_path: Path, coordinator: Coordinator) -> tuple[Site, Firm]:
    """A site that the coordinator's newest version admits, and its keys."""
    site, firm = joined(tmp_path / "site", coordinator.invitation(), NAME)
    coordinator.chain = follow([founded()], firm)
    return site, firm


def kept_text(site: Site) -> str:
    assert site.roster_file is not None
    return site.roster_file.read_text() if site.roster_file.exists() else ""


def test_the_first_fetch_keeps_all_versions_and_later_ones_are_added(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, firm = admitted
    assert kept_versions(site) == ()
    assert refresh_roster(site) == coordinator.chain[-1]
    assert list(kept_versions(site)) == list(coordinator.chain)
    coordinator.chain = follow(follow(list(coordinator.chain), firm, BELL), firm, BELL, COLE)
    assert refresh_roster(site).version == 4
    assert list(kept_versions(site)) == list(coordinator.chain)
    before = kept_text(site)
    assert refresh_roster(site).version == 4 and kept_text(site) == before


def test_a_roster_of_more_than_one_answer_is_fetched_whole(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, firm = admitted
    others = [a_firm(f"Firm {number}") for number in range(99)]
    versions = list(coordinator.chain)
    for _ in range(60):
        versions = follow(versions, firm, *others)
    coordinator.chain = versions
    assert sum(len(version.to_line()) for version in versions) > 2 << 20
    assert refresh_roster(site) == versions[-1]
    assert len(kept_versions(site)) == 62


def test_an_answer_that_would_fill_the_memory_is_not_taken_apart(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    coordinator.body = b"[" + b"[]," * (2 << 20) + b"[]]"
    with pytest.raises(FoedusError, match="at most 4 MiB"):
        refresh_roster(admitted[0])


@pytest.mark.parametrize(
    "body", [b'{"lines": []}', b'{"lines": [], "newest": "2"}', b'{"lines": [7], "newest": 1}']
)
def test_an_answer_that_is_no_roster_is_not_taken_for_one(
    admitted: tuple[Site, Firm], coordinator: Coordinator, body: bytes
) -> None:
    coordinator.body = body
    with pytest.raises(ChainError, match="got something else"):
        refresh_roster(admitted[0])


def test_a_coordinator_that_promises_more_than_it_sends_is_not_asked_for_ever(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    coordinator.body = b'{"lines": [], "newest": 1000000}'
    with pytest.raises(ChainError, match="at least one version"):
        refresh_roster(admitted[0])


def test_a_coordinator_that_shows_less_than_before_is_not_followed(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, firm = admitted
    complete = follow(follow(list(coordinator.chain), firm, BELL), firm)
    coordinator.chain = complete
    refresh_roster(site)
    before = kept_text(site)
    for fewer in (complete[:3], complete[:2]):
        coordinator.chain = fewer
        with pytest.raises(ChainError, match="lost versions or holds them back"):
            refresh_roster(site)
    assert kept_text(site) == before


def test_a_slow_answer_does_not_put_an_older_roster_in_the_place_of_a_newer_one(
    admitted: tuple[Site, Firm], coordinator: Coordinator, tmp_path: Path
) -> None:
    site, firm = admitted
    other = Site.from_file(tmp_path / "site" / "site.yaml")

    def fetched_by_another() -> None:
        coordinator.chain = follow(list(coordinator.chain), firm, BELL)
        assert refresh_roster(other).version == 3

    coordinator.meanwhile = fetched_by_another
    assert refresh_roster(site).version == 3
    assert list(kept_versions(site)) == list(coordinator.chain)


def test_of_two_histories_that_come_at_once_one_is_kept(
    admitted: tuple[Site, Firm], coordinator: Coordinator, tmp_path: Path
) -> None:
    site, firm = admitted
    refresh_roster(site)
    other, common = Site.from_file(tmp_path / "site" / "site.yaml"), list(coordinator.chain)
    before: list[str] = []

    def fetched_by_another() -> None:
        coordinator.chain = follow(common, firm, COLE)
        refresh_roster(other)
        before.append(kept_text(site))

    coordinator.chain = follow(common, firm, BELL)
    coordinator.meanwhile = fetched_by_another
    with pytest.raises(ChainError, match="two histories"):
        refresh_roster(site)
    assert [kept_text(site)] == before


def test_another_history_is_not_followed(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, firm = admitted
    common = list(coordinator.chain)
    coordinator.chain = follow(common, firm, BELL)
    refresh_roster(site)
    before = kept_text(site)
    forked = follow(common, firm, COLE)
    longer = follow(follow(forked, firm), firm, COLE)
    # Its second version differs, so that its fourth does not follow from what is kept.
    earlier = follow(follow(follow([founded()], firm, COLE), firm), firm, COLE)
    for other in (forked, longer, earlier):
        coordinator.chain = other
        with pytest.raises(ChainError, match=r"two histories|forked"):
            refresh_roster(site)
        assert kept_text(site) == before


def test_a_roster_of_another_key_is_not_kept(
    admitted: tuple[Site, Firm], coordinator: Coordinator, tmp_path: Path
) -> None:
    site, _ = admitted
    assert site.invitation_file is not None
    coordinator.invitation(Identity.generate()).save(site.invitation_file)
    with pytest.raises(ChainError, match="other keys"):
        refresh_roster(site)
    assert kept_text(site) == ""


def test_a_site_that_is_not_admitted_gets_nothing(tmp_path: Path, coordinator: Coordinator) -> None:
    site, firm = joined(tmp_path / "site", coordinator.invitation(), NAME)
    with pytest.raises(NotAdmitted, match="not admitted"):
        refresh_roster(site)
    expired = replace(entry(firm), admitted=1, expires=2)
    coordinator.chain = [
        founded(),
        with_members(founded(), expired).signed_by(COORDINATOR),
    ]
    with pytest.raises(NotAdmitted):
        refresh_roster(site)
    assert kept_text(site) == ""


def test_a_coordinator_of_another_authority_is_not_spoken_to(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, _ = admitted
    assert site.invitation_file is not None
    other = make_authority(LEAGUE, STARTED)
    coordinator.invitation(authority=other).save(site.invitation_file)
    with pytest.raises(Unreachable, match="CERTIFICATE_VERIFY_FAILED"):
        refresh_roster(site)


def test_a_coordinator_that_is_down_is_said_to_be(tmp_path: Path) -> None:
    down = Coordinator([founded()])
    down.address = "127.0.0.1:1"
    site, _ = joined(tmp_path / "site", down.invitation(), NAME)
    with pytest.raises(Unreachable, match=r"Expected the coordinator at 127\.0\.0\.1:1"):
        refresh_roster(site)


def test_a_damaged_file_is_not_built_on(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, firm = admitted
    coordinator.chain = follow(list(coordinator.chain), firm, BELL)
    refresh_roster(site)
    assert site.roster_file is not None
    site.roster_file.write_text(kept_text(site).replace(BELL.name, "Bull LLP"))
    with pytest.raises(ChainError, match="does not hold"):
        refresh_roster(site)


def test_new_keys_are_used_once_the_roster_names_them_and_not_before(
    admitted: tuple[Site, Firm], coordinator: Coordinator, tmp_path: Path
) -> None:
    site, old = admitted
    folder = tmp_path / "site"
    refresh_roster(site)
    rotate(folder, int(time.time()))
    request = EnrolmentRequest.read(folder / "request.json")
    assert request.previous_identity_key == old.identity.public_key
    assert take_up_new_keys(site, refresh_roster(site)) == []
    assert load_identity(folder / "identity.pem").public_key == old.identity.public_key

    now = int(time.time())
    renamed = MemberEntry(NAME, request.identity_key, request.supernode_key, now, now + YEAR)
    head = coordinator.chain[-1]
    coordinator.chain = [*coordinator.chain, with_members(head, renamed).signed_by(COORDINATOR)]
    changed = take_up_new_keys(site, refresh_roster(site))
    assert {path.name for path in changed} == {"identity.pem", "supernode.pem"}
    assert firm_of(folder, NAME).entry(now, now + YEAR) == renamed
    assert load_identity(folder / "identity-until-version-3.pem").public_key == (
        old.identity.public_key
    )
    assert refresh_roster(site).version == 3
    assert take_up_new_keys(site, refresh_roster(site)) == []


def test_of_two_that_take_up_new_keys_at_once_one_does(
    admitted: tuple[Site, Firm], coordinator: Coordinator, tmp_path: Path
) -> None:
    folder = tmp_path / "site"
    rotate(folder, int(time.time()))
    request = EnrolmentRequest.read(folder / "request.json")
    now = int(time.time())
    renamed = MemberEntry(NAME, request.identity_key, request.supernode_key, now, now + YEAR)
    newest = with_members(coordinator.chain[-1], renamed).signed_by(COORDINATOR)

    def take_up(_: int) -> list[Path]:
        return take_up_new_keys(Site.from_file(folder / "site.yaml"), newest)

    with ThreadPoolExecutor(4) as threads:
        changed = [path.name for paths in threads.map(take_up, range(4)) for path in paths]
    assert sorted(changed) == ["identity.pem", "supernode.pem"]
    assert firm_of(folder, NAME).entry(now, now + YEAR) == renamed


def test_keys_that_a_crash_left_under_temporary_names_are_deleted(
    admitted: tuple[Site, Firm], tmp_path: Path
) -> None:
    site, _ = admitted
    folder = tmp_path / "site"
    left = [
        ".identity.pem.a1b2c3d_",
        ".identity-next.pem.abcdefgh",
        ".identity-until-version-3.pem.12345678",
        ".supernode.pem.zzzzzzzz",
    ]
    others = [".identity.pem.mine", "identity.pem.a1b2c3d4", ".site.yaml.abcdefgh"]
    for name in left + others:
        (folder / name).write_text("secret")
    refresh_roster(site)
    names = {path.name for path in folder.iterdir()}
    assert not names & set(left)
    assert names >= {*others, "identity.pem", "supernode.pem"}


def test_taking_up_new_keys_goes_on_where_a_crash_left_it(
    admitted: tuple[Site, Firm], coordinator: Coordinator, tmp_path: Path
) -> None:
    site, old = admitted
    folder = tmp_path / "site"
    rotate(folder, int(time.time()))
    request = EnrolmentRequest.read(folder / "request.json")
    now = int(time.time())
    renamed = MemberEntry(NAME, request.identity_key, request.supernode_key, now, now + YEAR)
    newest = with_members(coordinator.chain[-1], renamed).signed_by(COORDINATOR)
    # The identity was replaced, of the SuperNode's key only a copy put aside.
    aside = folder / "identity-until-version-3.pem"
    shutil.copy(folder / "identity.pem", aside)
    (folder / "identity-next.pem").replace(folder / "identity.pem")
    shutil.copy(folder / "supernode.pem", folder / "supernode-until-version-3.pem")
    assert [path.name for path in take_up_new_keys(site, newest)] == ["supernode.pem"]
    assert firm_of(folder, NAME).entry(now, now + YEAR) == renamed
    assert load_identity(aside).public_key == old.identity.public_key
    aside_key = load_supernode_key(folder / "supernode-until-version-3.pem", None)
    assert aside_key.private_numbers() == old.supernode.private_numbers()


def test_a_members_keys_can_be_new_while_the_coordinators_are_too(
    admitted: tuple[Site, Firm], coordinator: Coordinator
) -> None:
    site, firm = admitted
    refresh_roster(site)
    new = Identity.generate()
    named = replace(next_version(coordinator.chain[-1], 0), coordinator_key=new.public_key)
    second = named.signed_by(COORDINATOR, new)
    third = with_members(second, entry(firm), entry(BELL)).signed_by(new)
    coordinator.chain = [*coordinator.chain, second, third]
    assert refresh_roster(site).entry_named(BELL.name) is not None


@pytest.mark.parametrize("setting", ["consortium", "roster"])
def test_what_a_site_needs_for_this_is_said(
    admitted: tuple[Site, Firm], tmp_path: Path, setting: str
) -> None:
    settings = tmp_path / "site" / "site.yaml"
    lines = settings.read_text().splitlines()
    settings.write_text("\n".join(line for line in lines if not line.startswith(f"{setting}:")))
    with pytest.raises(FoedusError, match="foedus client join"):
        refresh_roster(Site.from_file(settings))
