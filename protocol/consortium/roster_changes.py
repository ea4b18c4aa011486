"""What a version of the roster changes, in sentences for whoever is to sign it."""

from __future__ import annotations

from collections.abc import Iterator

from protocol.consortium.documents import day_of
from protocol.consortium.enrolment import keys_fingerprint
from protocol.consortium.fingerprint import fingerprint
from protocol.consortium.signed_roster import MemberEntry, SignedRoster


def describe_changes(previous: SignedRoster, version: SignedRoster) -> list[str]:
    """Every difference between two versions; empty where only the version's number differs."""
    before = {entry.name: entry for entry in previous.members}
    after = {entry.name: entry for entry in version.members}
    lines = [f"expels {name}" for name in before if name not in after]
    for name, entry in after.items():
        lines += _entry_changes(before.get(name), entry)
    if version.coordinator_key != previous.coordinator_key:
        lines.append(f"gives the coordinator a new key: {fingerprint(version.coordinator_key)}")
    if version.signatures_needed != previous.signatures_needed:
        lines.append(
            f"asks for the signatures of {version.signatures_needed} members from then on, "
            f"instead of {previous.signatures_needed}"
        )
    return lines


def _entry_changes(before: MemberEntry | None, entry: MemberEntry) -> Iterator[str]:
    keys = keys_fingerprint(entry.public_key, entry.supernode_key)
    until = day_of(entry.expires)
    if before is None:
        yield f"admits {entry.name} until {until}, keys: {keys}"
        return
    keys_before = keys_fingerprint(before.public_key, before.supernode_key)
    if keys != keys_before:
        yield f"gives {entry.name} new keys until {until}: {keys}, instead of {keys_before}"
    elif (before.admitted, before.expires) != (entry.admitted, entry.expires):
        yield f"renews {entry.name} until {until}, instead of {day_of(before.expires)}"
