"""Bringing a new version of the roster into force: signed, endorsed where needed, appended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.consortium.chain import (
    SignedRoster,
    append_version,
    expect_proposal,
    expect_successor,
    next_version,
    signatures_missing,
)
from protocol.consortium.endorsement import Endorsement
from protocol.consortium.identity import Identity, load_identity, save_identity
from protocol.errors import FoedusError
from protocol.files import write_atomically
from server.consortium.folder import ConsortiumFolder


@dataclass(frozen=True)
class Outcome:
    """proposal: the file that members are to sign; None where the version is in force."""

    version: SignedRoster
    missing: int = 0
    proposal: Path | None = None


def change_roster(
    folder: ConsortiumFolder, unsigned: SignedRoster, passphrase: bytes | None
) -> Outcome:
    """Sign a successor of the newest version, and append it where no members need to sign.

    Errors: FoedusError where the roster was changed by somebody else meanwhile, or the
    coordinator's key does not open.
    """
    with folder.locked():
        return _sign(folder, unsigned, [_coordinator(folder, passphrase)])


def rotate_coordinator_key(folder: ConsortiumFolder, passphrase: bytes | None, now: int) -> Outcome:
    """Make the coordinator a new key, named in a version that both keys sign.

    Once that version is in force the old key is kept aside and there is a new invitation.
    """
    with folder.locked():
        old, new = _coordinator(folder, passphrase), Identity.generate()
        # A proposal that names a key which is overwritten here must never come into force.
        _forget_proposals(folder)
        folder.next_coordinator_key.unlink(missing_ok=True)
        save_identity(folder.next_coordinator_key, new, passphrase)
        version = next_version(folder.chain()[-1], now)
        outcome = _sign(folder, replace(version, coordinator_key=new.public_key), [old, new])
        _take_up_new_key(folder, passphrase)
        return outcome


def adopt_proposal(
    folder: ConsortiumFolder, endorsements: Sequence[Endorsement], passphrase: bytes | None
) -> Outcome:
    """Add members' signatures to the proposal they are for; append it once they are enough.

    Errors: FoedusError where there is no such proposal, or a signature does not count.
    """
    with folder.locked():
        head = folder.chain()[-1]
        path, version = _proposal_of(folder, endorsements)
        known = {one.public_key for one in version.signatures}
        fresh = {e.signature.public_key: e.signature for e in endorsements}
        version = version.with_signatures(*(s for k, s in fresh.items() if k not in known))
        expect_proposal(head, version)
        if missing := signatures_missing(head, version):
            write_atomically(path, _text(version))
            return Outcome(version, missing, path)
        _expect_key_at_hand(folder, head, version, passphrase)
        _append(folder, head, version)
        _take_up_new_key(folder, passphrase)
        return Outcome(version)


def _sign(folder: ConsortiumFolder, unsigned: SignedRoster, signers: list[Identity]) -> Outcome:
    head = folder.chain()[-1]
    version = unsigned.signed_by(*signers)
    expect_proposal(head, version)
    if missing := signatures_missing(head, version):
        path = folder.proposals / f"version-{version.version}-{version.digest[:8]}.json"
        write_atomically(path, _text(version))
        return Outcome(version, missing, path)
    _append(folder, head, version)
    return Outcome(version)


def _append(folder: ConsortiumFolder, head: SignedRoster, version: SignedRoster) -> None:
    expect_successor(head, version)
    append_version(folder.roster, version)
    _forget_proposals(folder)


def _forget_proposals(folder: ConsortiumFolder) -> None:
    """They follow a version that is no longer the newest, and can never come into force."""
    for path in folder.proposals.glob("version-*.json"):
        path.unlink()


def _proposal_of(
    folder: ConsortiumFolder, endorsements: Sequence[Endorsement]
) -> tuple[Path, SignedRoster]:
    wanted = {endorsement.digest for endorsement in endorsements}
    for path in sorted(folder.proposals.glob("version-*.json")):
        version = SignedRoster.from_line(path.read_text(encoding="utf-8"), str(path))
        if wanted == {version.digest}:
            return path, version
    raise FoedusError(
        f"Expected endorsements of one proposal in {folder.proposals}, got some of others. "
        "Proposals end when another version comes into force; make it again."
    )


def _coordinator(folder: ConsortiumFolder, passphrase: bytes | None) -> Identity:
    """The key in force. A rotation that a crash cut short is finished first."""
    _take_up_new_key(folder, passphrase)
    return folder.coordinator(passphrase)


def _expect_key_at_hand(
    folder: ConsortiumFolder, head: SignedRoster, version: SignedRoster, passphrase: bytes | None
) -> None:
    if version.coordinator_key == head.coordinator_key:
        return
    if load_identity(folder.next_coordinator_key, passphrase).public_key != version.coordinator_key:
        raise FoedusError(
            f"The proposal names a coordinator's key that is not in {folder.next_coordinator_key}. "
            "Make it again: foedus server rotate-key."
        )


def _take_up_new_key(folder: ConsortiumFolder, passphrase: bytes | None) -> None:
    """Where the newest version names the key that lies ready, make it the coordinator's own."""
    if not folder.next_coordinator_key.exists():
        return
    head = folder.chain()[-1]
    new = load_identity(folder.next_coordinator_key, passphrase)
    if new.public_key != head.coordinator_key:
        return
    # The invitation first: as long as the key lies ready, all of this is done again.
    invitation = folder.read_invitation()
    if invitation.coordinator_key != new.public_key:
        replace(invitation, coordinator_key=new.public_key).signed(new).save(folder.invitation)
    aside = folder.coordinator_key.with_name(f"coordinator-until-version-{head.version}.pem")
    write_atomically(aside, folder.coordinator_key.read_bytes(), mode=0o600)
    folder.next_coordinator_key.replace(folder.coordinator_key)


def _text(version: SignedRoster) -> bytes:
    return version.to_line().encode() + b"\n"
