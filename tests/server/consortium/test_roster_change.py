"""A version comes into force whole: signed, endorsed, in the file; a crash leaves old or new."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from protocol.consortium.chain import SignedRoster, next_version, verify_chain
from protocol.consortium.endorsement import Endorsement
from protocol.errors import FoedusError
from server.consortium.admission import admit, expel
from server.consortium.folder import ConsortiumFolder
from server.consortium.roster_change import (
    adopt_proposal,
    change_roster,
    rotate_coordinator_key,
)
from tests.protocol.consortium.leagues import ANNE, BELL, COLE, NOW, Firm, firm
from tests.server.consortium.consortia import founded_in, request_of


def admitted(folder: ConsortiumFolder, *firms: Firm) -> SignedRoster:
    """The unsigned version that admits them."""
    versions = folder.chain()
    key = versions[-1].coordinator_key
    return admit(versions, [request_of(firm, key) for firm in firms], 365, NOW)


def with_two(path: Path, signatures_needed: int = 0) -> ConsortiumFolder:
    """Anne and Bell are members; the rule comes into force after that."""
    folder = founded_in(path)
    change_roster(folder, admitted(folder, ANNE, BELL), None)
    if signatures_needed:
        version = next_version(folder.chain()[-1], NOW)
        change_roster(folder, replace(version, signatures_needed=signatures_needed), None)
    return folder


def test_without_a_rule_a_change_is_in_force_at_once(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c")
    outcome = change_roster(folder, expel(folder.chain()[-1], BELL.name, NOW), None)
    assert outcome.proposal is None and outcome.missing == 0
    assert [entry.name for entry in folder.chain()[-1].members] == [ANNE.name]
    assert len(folder.chain()) == 3


def test_two_operators_at_once_cannot_fork_the_roster(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c")
    head = folder.chain()[-1]
    changes = [expel(head, ANNE.name, NOW), expel(head, BELL.name, NOW)]
    refused: list[FoedusError] = []

    def change(version: SignedRoster) -> None:
        try:
            change_roster(folder, version, None)
        except FoedusError as error:
            refused.append(error)

    threads = [threading.Thread(target=change, args=(version,)) for version in changes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(refused) == 1 and len(folder.chain()) == 3


def test_a_change_waits_for_as_many_members_as_the_rule_says(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c", signatures_needed=2)
    outcome = change_roster(folder, admitted(folder, COLE), None)
    assert outcome.missing == 2 and outcome.proposal is not None
    assert folder.chain()[-1].entry_named(COLE.name) is None
    proposal = SignedRoster.from_line(outcome.proposal.read_text(), "proposal")
    by_anne, by_bell = (Endorsement.of(proposal, f.identity) for f in (ANNE, BELL))
    again = adopt_proposal(folder, [by_anne], None)
    assert again.missing == 1 and folder.chain()[-1].entry_named(COLE.name) is None
    assert adopt_proposal(folder, [by_anne], None).missing == 1
    assert adopt_proposal(folder, [by_bell], None).missing == 0
    assert folder.chain()[-1].entry_named(COLE.name) is not None
    assert list(folder.proposals.iterdir()) == []


def test_strangers_signatures_and_those_of_other_proposals_do_not_count(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c", signatures_needed=1)
    outcome = change_roster(folder, admitted(folder, COLE), None)
    with pytest.raises(FoedusError, match="no member's"):
        adopt_proposal(folder, [Endorsement.of(outcome.version, COLE.identity)], None)
    other = expel(folder.chain()[-1], BELL.name, NOW)
    with pytest.raises(FoedusError, match="endorsements of one proposal"):
        adopt_proposal(folder, [Endorsement.of(other, ANNE.identity)], None)
    borrowed = replace(Endorsement.of(other, ANNE.identity), digest=outcome.version.digest)
    with pytest.raises(FoedusError, match="does not hold"):
        adopt_proposal(folder, [borrowed], None)
    assert folder.chain()[-1].entry_named(COLE.name) is None


def test_a_proposal_ends_when_another_version_comes_into_force(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c", signatures_needed=1)
    one = change_roster(folder, admitted(folder, COLE), None)
    other = change_roster(folder, expel(folder.chain()[-1], BELL.name, NOW), None)
    adopt_proposal(folder, [Endorsement.of(other.version, ANNE.identity)], None)
    with pytest.raises(FoedusError, match="make it again"):
        adopt_proposal(folder, [Endorsement.of(one.version, ANNE.identity)], None)


def test_a_new_coordinators_key_has_a_new_invitation_and_signs_from_then_on(
    tmp_path: Path,
) -> None:
    folder = with_two(tmp_path / "c")
    old = folder.read_invitation()
    rotate_coordinator_key(folder, None, NOW)
    new = folder.read_invitation()
    assert new.coordinator_key == folder.coordinator().public_key != old.coordinator_key
    change_roster(folder, admitted(folder, COLE), None)
    lines = folder.roster.read_text().splitlines()
    for invitation in (old, new):
        assert verify_chain(lines, invitation.coordinator_key)[-1].entry_named(COLE.name)
    assert not folder.next_coordinator_key.exists()
    assert (folder.path / "keys" / "coordinator-until-version-3.pem").exists()


def test_a_new_key_under_a_rule_is_taken_up_with_the_members_signatures(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c", signatures_needed=1)
    before = folder.coordinator().public_key
    abandoned = rotate_coordinator_key(folder, None, NOW)
    outcome = rotate_coordinator_key(folder, None, NOW)
    assert outcome.missing == 1 and folder.coordinator().public_key == before
    with pytest.raises(FoedusError, match="make it again"):
        adopt_proposal(folder, [Endorsement.of(abandoned.version, ANNE.identity)], None)
    adopt_proposal(folder, [Endorsement.of(outcome.version, ANNE.identity)], None)
    assert folder.coordinator().public_key == outcome.version.coordinator_key != before
    assert folder.read_invitation().coordinator_key == outcome.version.coordinator_key


def _roster_only(done: ConsortiumFolder, crashed: ConsortiumFolder) -> None:
    shutil.copy(done.roster, crashed.roster)


def _roster_and_invitation(done: ConsortiumFolder, crashed: ConsortiumFolder) -> None:
    _roster_only(done, crashed)
    shutil.copy(done.invitation, crashed.invitation)


def _and_the_old_key_copied(done: ConsortiumFolder, crashed: ConsortiumFolder) -> None:
    _roster_and_invitation(done, crashed)
    aside = crashed.coordinator_key.with_name("coordinator-until-version-3.pem")
    shutil.copy(crashed.coordinator_key, aside)


@pytest.mark.parametrize("got_to", [_roster_only, _roster_and_invitation, _and_the_old_key_copied])
def test_a_rotation_that_a_crash_cut_short_is_finished_by_the_next_command(
    tmp_path: Path, got_to: Callable[[ConsortiumFolder, ConsortiumFolder], None]
) -> None:
    crashed = with_two(tmp_path / "crashed")
    done = ConsortiumFolder(tmp_path / "done")
    shutil.copytree(crashed.path, done.path)
    rotate_coordinator_key(done, None, NOW)
    shutil.copy(done.coordinator_key, crashed.next_coordinator_key)
    got_to(done, crashed)
    change_roster(crashed, admitted(crashed, COLE), None)
    assert crashed.coordinator().public_key == done.coordinator().public_key
    assert crashed.read_invitation() == done.read_invitation()
    aside = "keys/coordinator-until-version-3.pem"
    assert (crashed.path / aside).read_bytes() == (done.path / aside).read_bytes()
    assert crashed.chain()[-1].entry_named(COLE.name) is not None


def test_a_damaged_roster_is_never_built_on(tmp_path: Path) -> None:
    folder = with_two(tmp_path / "c")
    version = admitted(folder, firm("Dale"))
    text = folder.roster.read_text()
    folder.roster.write_text(text.replace(BELL.name, "Bull LLP"))
    with pytest.raises(FoedusError, match="does not hold"):
        change_roster(folder, version, None)
    folder.roster.write_text("".join(text.splitlines(keepends=True)[:1]))
    with pytest.raises(FoedusError, match="Expected version 2"):
        change_roster(folder, version, None)
