"""The signed history of a consortium's roster: each version follows from the one before.

Guarantee: whoever holds the coordinator's key as it was at any version, and a chain that
`verify_chain` accepts, knows that every later change was signed by the coordinator of its time and
by min(K, members before) members of the version before, K as that version says, and that nothing
before was altered, left out or reordered.

What it leaves open: a coordinator that shows different firms different chains from the start, or,
with K = 0, at any time. Members see that by comparing the newest version's digest. Whether a
signer's membership had ended is judged at the version's own date, which the coordinator writes, not
before its predecessor's: a key that was not expelled signs what is dated back. A firm that
still trusts a key the coordinator has replaced can be given another history by who has stolen it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from protocol.consortium.identity import Identity, verify
from protocol.consortium.roster import Roster, read_roster
from protocol.consortium.signed_roster import MemberEntry, RosterSignature, SignedRoster
from protocol.errors import FoedusError
from protocol.files import write_atomically

__all__ = [
    "ChainError",
    "MemberEntry",
    "RosterSignature",
    "SignedRoster",
    "append_version",
    "coordinator_keys",
    "expect_proposal",
    "expect_successor",
    "first_version",
    "load_newest",
    "load_roster",
    "next_version",
    "read_chain",
    "refuse_rollback",
    "signatures_missing",
    "verify_chain",
]


class ChainError(FoedusError):
    """The signed roster does not hold: altered, cut, reordered, forked or wrongly signed."""


def first_version(
    consortium: str, coordinator: Identity, signatures_needed: int, issued: int
) -> SignedRoster:
    """The empty roster that a consortium starts with."""
    empty = SignedRoster(consortium, 1, "", issued, (), coordinator.public_key, signatures_needed)
    return empty.signed_by(coordinator)


def next_version(head: SignedRoster, issued: int) -> SignedRoster:
    """The successor of `head` with nothing changed and nobody's signature; replace what changes.

    issued: Unix seconds; where the clock was set back, the time of the version before is kept.
    """
    return replace(
        head,
        version=head.version + 1,
        previous_digest=head.digest,
        issued=max(issued, head.issued),
        signatures=(),
    )


def verify_chain(lines: Sequence[str], coordinator_key: bytes) -> tuple[SignedRoster, ...]:
    """All versions, oldest first, checked. coordinator_key: one that signed a version of them.

    Errors: ChainError saying which version is wrong and how; SettingsError where one is malformed.
    """
    versions = tuple(
        SignedRoster.from_line(line, f"line {number} of the signed roster")
        for number, line in enumerate(lines, 1)
    )
    if not versions:
        raise ChainError("Expected at least one version of the signed roster, got none.")
    _expect_first(versions[0])
    for previous, version in itertools.pairwise(versions):
        expect_successor(previous, version)
    # A version's coordinator has signed it, or it would not have passed.
    if coordinator_key not in {version.coordinator_key for version in versions}:
        raise ChainError(
            "Expected a roster signed by the coordinator of the invitation, got one of other keys. "
            "Compare the coordinator's fingerprint by telephone before trusting either."
        )
    return versions


def expect_successor(previous: SignedRoster, version: SignedRoster) -> None:
    """Errors: ChainError unless `version` may follow `previous` as it is."""
    expect_proposal(previous, version)
    if missing := signatures_missing(previous, version):
        raise ChainError(
            f"version {version.version} of the roster: expected {missing} more signatures by "
            f"members of version {previous.version}, which asks for {_needed(previous)}."
        )


def expect_proposal(previous: SignedRoster, version: SignedRoster) -> None:
    """Errors: ChainError unless `version` may follow `previous` once enough members sign it."""
    where = f"version {version.version} of the roster"
    if version.version != previous.version + 1:
        raise ChainError(f"Expected version {previous.version + 1} of the roster, got {where}.")
    if version.previous_digest != previous.digest:
        raise ChainError(
            f"Expected {where} to follow version {previous.version} with digest "
            f"{previous.digest[:12]}…, it follows {version.previous_digest[:12]}…: one of them was "
            "altered, or the history was forked."
        )
    if version.consortium != previous.consortium:
        raise ChainError(f"{where}: it names another consortium.")
    if version.issued < previous.issued:
        raise ChainError(f"{where}: it was issued before the version it follows.")
    _expect_sound_signatures(version, previous)


def signatures_missing(previous: SignedRoster, version: SignedRoster) -> int:
    """How many members of `previous` must still sign `version`."""
    members = {entry.public_key for entry in previous.members}
    endorsed = sum(one.public_key in members for one in version.signatures)
    return max(0, _needed(previous) - endorsed)


def coordinator_keys(versions: Sequence[SignedRoster]) -> frozenset[bytes]:
    """The keys by which the coordinator has ever signed; the newest version's is in force."""
    return frozenset(version.coordinator_key for version in versions)


def refuse_rollback(kept: SignedRoster, offered: Sequence[SignedRoster]) -> None:
    """Errors: ChainError unless the verified chain `offered` has the version that is kept here."""
    newest = offered[-1].version
    if newest < kept.version:
        raise ChainError(
            f"Expected version {kept.version} of the roster or a newer one, the coordinator shows "
            f"{newest} as its newest: it lost versions or holds them back. Ask its operator."
        )
    at_version = offered[kept.version - 1]
    if at_version.digest != kept.digest:
        raise ChainError(
            f"Version {kept.version} of the roster is {kept.digest[:12]}… here and "
            f"{at_version.digest[:12]}… at the coordinator: there are two histories. Compare with "
            "the other members before going on."
        )


def read_chain(path: Path, coordinator_key: bytes) -> tuple[SignedRoster, ...]:
    """The file's versions, checked. Errors: as verify_chain; FoedusError where it is missing."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FoedusError(
            f"Expected the signed roster at {path}, got {type(error).__name__}."
        ) from error
    try:
        return verify_chain(lines, coordinator_key)
    except FoedusError as error:
        raise ChainError(f"{path}: {error}") from error


def append_version(path: Path, version: SignedRoster) -> None:
    """Add a checked version to the file; a crash leaves the old file or the new one."""
    before = path.read_bytes() if path.exists() else b""
    write_atomically(path, before + version.to_line().encode() + b"\n")


def load_roster(path: Path, coordinator_key: bytes | None = None) -> Roster:
    """The newest roster of a signed chain (`*.jsonl`), or a plain roster in JSON.

    coordinator_key: that of the invitation. None takes the chain's first key on trust: only for the
    coordinator, whose own file it is. Errors: FoedusError, see read_chain and read_roster.
    """
    if path.suffix != ".jsonl":
        return read_roster(path)
    return load_newest(path, coordinator_key).roster()


def load_newest(path: Path, coordinator_key: bytes | None = None) -> SignedRoster:
    """The newest version of a signed chain. coordinator_key, errors: as load_roster."""
    if coordinator_key is None:
        coordinator_key = _first_key(path)
    return read_chain(path, coordinator_key)[-1]


def _first_key(path: Path) -> bytes:
    try:
        with path.open(encoding="utf-8") as stream:
            line = stream.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise FoedusError(
            f"Expected the signed roster at {path}, got {type(error).__name__}."
        ) from error
    return SignedRoster.from_line(line, f"line 1 of {path}").coordinator_key


def _expect_first(first: SignedRoster) -> None:
    if first.version != 1 or first.members:
        raise ChainError(
            "Expected the signed roster to begin with version 1 and no members, got version "
            f"{first.version} with {len(first.members)}."
        )
    _expect_sound_signatures(first, None)


def _expect_sound_signatures(version: SignedRoster, previous: SignedRoster | None) -> None:
    """Every signature is by somebody who may sign, once, and holds; coordinators' are all there."""
    where = f"version {version.version} of the roster"
    coordinators = {version.coordinator_key}
    endorsers: tuple[MemberEntry, ...] = ()
    if previous is not None:
        coordinators.add(previous.coordinator_key)
        endorsers = previous.members
    signers = [one.public_key for one in version.signatures]
    if len(set(signers)) != len(signers):
        raise ChainError(f"{where}: somebody signed it twice; expected each signer once.")
    if not coordinators <= set(signers):
        raise ChainError(f"{where}: the coordinator's signature is missing.")
    by_key = {entry.public_key: entry for entry in endorsers}
    if coordinators & set(by_key):
        raise ChainError(f"{where}: a member's key cannot become the coordinator's.")
    for one in version.signatures:
        entry = by_key.get(one.public_key)
        if entry is None and one.public_key not in coordinators:
            raise ChainError(f"{where}: signed by a key that is no member's of the version before.")
        if entry is not None and entry.expired(version.issued):
            raise ChainError(f"{where}: signed by {entry.name!r}, whose membership had expired.")
        if not verify(one.public_key, version.statement, one.signature):
            raise ChainError(f"{where}: a signature does not hold.")


def _needed(previous: SignedRoster) -> int:
    return min(previous.signatures_needed, len(previous.members))
