"""Sites that have joined, for tests of what they do as members."""

from __future__ import annotations

import time
from pathlib import Path

from client.enrolment.joining import join
from client.enrolment.keys import load_supernode_key
from client.site import Site
from protocol.consortium.identity import load_identity
from protocol.consortium.invitation import Invitation
from tests.protocol.consortium.leagues import Firm


def joined(folder: Path, invitation: Invitation, name: str) -> tuple[Site, Firm]:
    """A new site in the folder, and the keys it made."""
    join(folder, invitation, name, None, int(time.time()))
    site = Site.from_file(folder / "site.yaml")
    return site, firm_of(folder, name)


def firm_of(folder: Path, name: str) -> Firm:
    """The keys of a site that are in force."""
    identity = load_identity(folder / "identity.pem")
    return Firm(name, identity, load_supernode_key(folder / "supernode.pem", None))
