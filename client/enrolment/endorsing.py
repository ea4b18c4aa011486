"""Signing a proposed version of the roster as a member, after seeing what it changes."""

from __future__ import annotations

import time
from pathlib import Path

from client.enrolment.kept_roster import kept_versions
from client.site import Site
from protocol.consortium.chain import SignedRoster, expect_proposal
from protocol.consortium.documents import day_of, read_document
from protocol.consortium.endorsement import Endorsement
from protocol.consortium.identity import load_identity
from protocol.consortium.passphrase import read_passphrase
from protocol.consortium.roster_changes import describe_changes
from protocol.errors import FoedusError

# Long enough to collect signatures in. The date decides whose membership has ended, and the
# coordinator chooses it: a version that is dated back lets a key sign that no longer may.
MOST_DAYS_APART = 7
_DAY_SECONDS = 86_400


def changes_of(site: Site, proposal: Path) -> tuple[SignedRoster, list[str]]:
    """The proposed version and, in sentences, how it differs from the newest one kept here.

    Errors: ChainError unless it follows from what this site keeps; FoedusError where it changes
    nothing, is dated more than 7 days from now, or this site keeps no roster.
    """
    text = read_document(proposal, "a proposed version of the roster").strip()
    version = SignedRoster.from_line(text, str(proposal))
    versions = kept_versions(site)
    if not versions:
        raise FoedusError("Expected a kept roster, got none yet: foedus client roster fetches it.")
    expect_proposal(versions[-1], version)
    _expect_dated_now(version, proposal)
    changes = describe_changes(versions[-1], version)
    if not changes:
        raise FoedusError(f"Expected a change of the roster in {proposal}, it changes nothing.")
    return version, changes


def sign_proposal(site: Site, version: SignedRoster) -> Endorsement:
    """This site's signature under it. Errors: FoedusError without an identity that opens."""
    if site.identity_file is None:
        raise FoedusError("Expected `identity` in site.yaml, this site's private key, got none.")
    own = load_identity(site.identity_file, read_passphrase(site.passphrase_file))
    return Endorsement.of(version, own)


def _expect_dated_now(version: SignedRoster, proposal: Path) -> None:
    days = (version.issued - time.time()) / _DAY_SECONDS
    if abs(days) > MOST_DAYS_APART:
        where = f"{abs(days):.0f} days {'ahead' if days > 0 else 'ago'}"
        raise FoedusError(
            f"Expected a proposal dated within {MOST_DAYS_APART} days of today, {proposal} is "
            f"dated {day_of(version.issued)}, {where}. Have the coordinator make it again; if it "
            "was made just now, one of the two clocks is wrong."
        )
