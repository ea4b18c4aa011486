"""Consortium folders on disk, and firms that join them, for tests of the commands."""

from __future__ import annotations

import datetime
from pathlib import Path

from protocol.consortium.enrolment import EnrolmentRequest
from protocol.consortium.supernode_key import public_pem
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import found_consortium
from server.consortium.settings import ConsortiumSettings
from tests.protocol.consortium.leagues import LEAGUE, NOW, Firm

MOMENT = datetime.datetime.fromtimestamp(NOW, datetime.UTC)


def founded_in(
    path: Path, signatures_needed: int = 0, passphrase: bytes | None = None
) -> ConsortiumFolder:
    settings = ConsortiumSettings(LEAGUE, "foedus.example.org:9443")
    found_consortium(path, settings, signatures_needed, (), passphrase, MOMENT)
    return ConsortiumFolder(path)


def request_of(
    firm: Firm,
    coordinator_key: bytes,
    *,
    name: str = "",
    created: int = NOW,
    previous: Firm | None = None,
    consortium: str = LEAGUE,
) -> EnrolmentRequest:
    """What `foedus client join` writes for the firm; with `previous`, as `--rotate` does."""
    unsigned = EnrolmentRequest(
        name or firm.name,
        firm.identity.public_key,
        public_pem(firm.supernode),
        consortium,
        coordinator_key,
        created,
        previous.identity.public_key if previous else None,
    )
    old = previous.identity if previous else None
    return unsigned.proven(firm.identity, firm.supernode, old)
