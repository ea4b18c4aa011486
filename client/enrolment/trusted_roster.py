"""Whom this site goes into a session of secure aggregation with: the roster as it trusts it now."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from protocol.consortium.chain import read_chain
from protocol.consortium.invitation import Invitation
from protocol.consortium.roster import Member, Roster, read_roster
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason


@dataclass(frozen=True)
class TrustedRoster:
    """roster: the members of the newest version that have not expired; only their keys count.

    digests: those of the rosters a session may be held under. A run keeps the roster it started
    with, so any version of this site's own chain will do: it says what all parties agree on, and
    who may take part is decided by `roster` alone.
    """

    roster: Roster
    digests: frozenset[str]


def trusted_roster(roster_file: Path, invitation_file: Path | None, now: float) -> TrustedRoster:
    """Read and check what the site keeps. now: Unix seconds.

    Errors: Refusal(UNKNOWN_MEMBER) where no membership holds any more; FoedusError where the files
    are missing or the chain does not hold.
    """
    if roster_file.suffix != ".jsonl":
        plain = read_roster(roster_file)
        return TrustedRoster(plain, frozenset({plain.digest}))
    versions = read_chain(roster_file, pinned_key(invitation_file))
    newest = versions[-1]
    valid = tuple(
        Member(entry.name, entry.public_key) for entry in newest.members if not entry.expired(now)
    )
    if not valid:
        raise Refusal(
            RefusalReason.UNKNOWN_MEMBER,
            f"Expected members in version {newest.version} of the roster whose admission has not "
            "ended, got none. Ask the coordinator's operator to renew them.",
        )
    digests = frozenset(version.roster().digest for version in versions if version.members)
    return TrustedRoster(Roster(newest.consortium, newest.version, valid), digests)


def pinned_key(invitation_file: Path | None) -> bytes:
    """The coordinator's key as this site was given it. Errors: FoedusError without a file."""
    if invitation_file is None:
        raise FoedusError(
            "Expected `consortium` in site.yaml, the invitation's file, as the roster is a signed "
            "one, got none."
        )
    return Invitation.read(invitation_file).coordinator_key
