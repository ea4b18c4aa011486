"""The signed roster as this site keeps it: fetched, checked from the pinned key, never rolled back.

The site believes the key of its invitation, and through it each later version. What the coordinator
sends is written only if it goes on from what is kept; so is a key rotation of this site's own. The
supervisor and `foedus client roster` may do both at the same time.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from client.enrolment.coordinator_api import CoordinatorApi, NotAdmitted
from client.enrolment.keys import load_supernode_key
from client.enrolment.site_files import enrolment_alone, pending, set_aside
from client.site import Site
from protocol.consortium import supernode_key
from protocol.consortium.chain import (
    ChainError,
    SignedRoster,
    read_chain,
    refuse_rollback,
    verify_chain,
)
from protocol.consortium.identity import Identity, load_identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.passphrase import read_passphrase
from protocol.errors import FoedusError
from protocol.files import write_atomically

log = logging.getLogger("foedus.client")

_PATH = "/v1/foedus/roster"
# About 800 versions of 100 members each.
_MAX_OFFERED_BYTES = 32 << 20


def refresh_roster(site: Site) -> SignedRoster:
    """Ask the coordinator for newer versions, keep them, and return the newest.

    Errors: ChainError where they do not follow from what is kept: nothing is written then;
    Unreachable, NotAdmitted; FoedusError where the site's own files are incomplete.
    """
    invitation, roster_file = _files(site)
    kept = kept_versions(site)
    after = kept[-1].version - 1 if kept else 0
    offered = _offered_lines(site, invitation, after)
    # The newest version kept here is asked for again, to see that it is the coordinator's too.
    lines = [version.to_line() for version in kept[:-1]] + offered
    versions = verify_chain(lines, invitation.coordinator_key)
    if kept:
        refuse_rollback(kept[-1], versions)
    with enrolment_alone(site):
        # While the coordinator answered, another process may have kept a newer version.
        kept = kept_versions(site)
        shared = min(len(kept), len(versions))
        if shared:
            refuse_rollback(kept[shared - 1], versions)
        if shared == len(versions):
            return kept[-1]
        write_atomically(roster_file, "".join(f"{line}\n" for line in lines).encode())
    log.info("The roster is now version %d.", versions[-1].version)
    return versions[-1]


def kept_versions(site: Site) -> Sequence[SignedRoster]:
    """The versions this site has, checked; none before the first fetch.

    Errors: ChainError where the file does not hold; FoedusError.
    """
    invitation, roster_file = _files(site)
    if not roster_file.exists():
        return ()
    return read_chain(roster_file, invitation.coordinator_key)


def take_up_new_keys(site: Site, newest: SignedRoster) -> list[Path]:
    """Put keys that wait for their admission in the place of the old ones, which are kept aside.

    Returns the files that changed; the SuperNode and the runner must be started again for them.
    Errors: FoedusError where a key does not open.
    """
    with enrolment_alone(site):
        return _taken_up(site, newest)


def _taken_up(site: Site, newest: SignedRoster) -> list[Path]:
    passphrase = read_passphrase(site.passphrase_file)
    changed = []
    if site.identity_file and pending(site.identity_file).exists():
        waiting = load_identity(pending(site.identity_file), passphrase).public_key
        if newest.entry_of(waiting) is not None:
            changed.append(_replace(site.identity_file, newest.version))
    if site.supernode_key_file and pending(site.supernode_key_file).exists():
        waiting = supernode_key.public_pem(
            load_supernode_key(pending(site.supernode_key_file), passphrase)
        )
        if any(entry.supernode_key == waiting for entry in newest.members):
            changed.append(_replace(site.supernode_key_file, newest.version))
    return changed


def _replace(key_file: Path, version: int) -> Path:
    # Copied and not moved, so that a crash leaves no moment without a key.
    write_atomically(set_aside(key_file, version), key_file.read_bytes(), mode=0o600)
    pending(key_file).replace(key_file)
    return key_file


def _fetch(site: Site, invitation: Invitation, path: str) -> Any:
    """Signed with the identity in force; where that is replaced already, with the one to come."""
    identities = _identities(site)
    for identity in identities[:-1]:
        try:
            return CoordinatorApi(invitation, identity).get(path)
        except NotAdmitted:
            continue
    return CoordinatorApi(invitation, identities[-1]).get(path)


def _identities(site: Site) -> list[Identity]:
    if site.identity_file is None:
        raise FoedusError("Expected `identity` in site.yaml, this site's private key, got none.")
    passphrase = read_passphrase(site.passphrase_file)
    identities = [load_identity(site.identity_file, passphrase)]
    if (waiting := pending(site.identity_file)).exists():
        identities.append(load_identity(waiting, passphrase))
    return identities


def _files(site: Site) -> tuple[Invitation, Path]:
    if site.invitation_file is None or site.roster_file is None:
        raise FoedusError(
            "Expected `consortium` (the invitation) and `roster` in site.yaml, got none. "
            "`foedus client join` writes both."
        )
    if site.roster_file.suffix != ".jsonl":
        raise FoedusError(
            f"Expected a signed roster (*.jsonl) as `roster` in site.yaml, got {site.roster_file}: "
            "a plain roster is exchanged by hand."
        )
    return Invitation.read(site.invitation_file), site.roster_file


def _offered_lines(site: Site, invitation: Invitation, after: int) -> list[str]:
    """The versions after this one, which the coordinator sends in pages."""
    lines: list[str] = []
    num_bytes, newest = 0, after + 1
    while after + len(lines) < newest:
        answer = _fetch(site, invitation, f"{_PATH}?after={after + len(lines)}")
        page, newest = _page(answer)
        lines += page
        num_bytes += sum(map(len, page))
        if not page:
            break
        if num_bytes > _MAX_OFFERED_BYTES:
            raise ChainError(
                f"Expected a roster of at most {_MAX_OFFERED_BYTES >> 20} MiB, got a larger one."
            )
    return lines


def _page(answer: Any) -> tuple[list[str], int]:
    """Versions, and the number of the newest that there is."""
    lines = answer.get("lines") if isinstance(answer, dict) else None
    newest = answer.get("newest") if isinstance(answer, dict) else None
    if (
        not isinstance(lines, list)
        or not all(isinstance(line, str) for line in lines)
        or not isinstance(newest, int)
    ):
        raise ChainError("Expected the roster's versions from the coordinator, got something else.")
    if any(not line.isascii() or not line.isprintable() for line in lines):
        raise ChainError("Expected each version of the roster on one line of ASCII, got others.")
    return lines, newest
