"""What a version changes is said in full, and members sign exactly that version."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from protocol.consortium.chain import next_version, verify_chain
from protocol.consortium.endorsement import Endorsement
from protocol.consortium.enrolment import keys_fingerprint
from protocol.consortium.fingerprint import fingerprint
from protocol.consortium.roster_changes import describe_changes
from protocol.errors import FoedusError
from tests.protocol.consortium.leagues import (
    ANNE,
    BELL,
    COLE,
    COORDINATOR,
    NOW,
    YEAR,
    lines_of,
    three_versions,
    with_members,
)

FIRST, SECOND, THIRD = three_versions()


def test_an_endorsement_makes_a_proposal_follow(tmp_path: Path) -> None:
    proposal = with_members(THIRD, BELL.entry()).signed_by(COORDINATOR)
    path = tmp_path / "endorsement.json"
    path.write_text(Endorsement.of(proposal, ANNE.identity).to_json(), encoding="utf-8")
    endorsement = Endorsement.read(path)
    assert endorsement.digest == proposal.digest
    complete = proposal.with_signatures(endorsement.signature)
    assert len(verify_chain(lines_of(FIRST, SECOND, THIRD, complete), COORDINATOR.public_key)) == 4


@pytest.mark.parametrize("text", ["", "{}", '{"schema": 1, "digest": ""}'])
def test_what_is_no_endorsement_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "endorsement.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(FoedusError, match=r"endorsement\.json"):
        Endorsement.read(path)


def test_every_kind_of_change_is_said() -> None:
    keys = {
        f.name: keys_fingerprint(f.entry().public_key, f.entry().supernode_key)
        for f in (ANNE, BELL, COLE)
    }
    renewed = ANNE.entry(admitted=NOW + 1, expires=NOW + 2 * YEAR)
    rekeyed = replace(COLE.entry(), name=BELL.name)
    other = replace(
        next_version(THIRD, NOW), coordinator_key=COLE.identity.public_key, signatures_needed=0
    )
    assert describe_changes(SECOND, THIRD) == [
        f"admits {BELL.name} until 2028-01-15, keys: {keys[BELL.name]}"
    ]
    assert describe_changes(THIRD, with_members(THIRD, BELL.entry())) == [f"expels {ANNE.name}"]
    assert describe_changes(THIRD, with_members(THIRD, renewed, BELL.entry())) == [
        f"renews {ANNE.name} until 2029-01-14, instead of 2028-01-15"
    ]
    (said,) = describe_changes(THIRD, with_members(THIRD, ANNE.entry(), rekeyed))
    assert keys[BELL.name] in said and keys[COLE.name] in said and "new keys" in said
    new_key, fewer = describe_changes(THIRD, other)
    assert fingerprint(COLE.identity.public_key) in new_key
    assert "signatures of 0 members" in fewer and "instead of 1" in fewer
    assert describe_changes(THIRD, next_version(THIRD, NOW)) == []
