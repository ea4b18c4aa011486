"""Signing a proposed version of the roster as a member, after seeing what it changes."""

from __future__ import annotations

from pathlib import Path

from client.enrolment.kept_roster import kept_versions
from client.site import Site
from protocol.consortium.chain import SignedRoster, expect_proposal
from protocol.consortium.documents import read_document
from protocol.consortium.endorsement import Endorsement
from protocol.consortium.identity import load_identity
from protocol.consortium.passphrase import read_passphrase
from protocol.consortium.roster_changes import describe_changes
from protocol.errors import FoedusError


def changes_of(site: Site, proposal: Path) -> tuple[SignedRoster, list[str]]:
    """The proposed version and, in sentences, how it differs from the newest one kept here.

    Errors: ChainError unless it follows from what this site keeps; FoedusError where it changes
    nothing or this site keeps no roster.
    """
    text = read_document(proposal, "a proposed version of the roster").strip()
    version = SignedRoster.from_line(text, str(proposal))
    versions = kept_versions(site)
    if not versions:
        raise FoedusError("Expected a kept roster, got none yet: foedus client roster fetches it.")
    expect_proposal(versions[-1], version)
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
