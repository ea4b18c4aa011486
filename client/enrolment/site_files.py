"""Where a site keeps what enrolment makes, and which of it waits for the coordinator."""

from __future__ import annotations

import fcntl
import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from client.site import Site
from protocol.files import remove_leftovers

IDENTITY = "identity.pem"
SUPERNODE_KEY = "supernode.pem"
INVITATION = "consortium.json"
ROSTER = "roster.jsonl"
REQUEST = "request.json"
SETTINGS = "site.yaml"
CONTRACTS = "contracts"
STATE = "state"

_LOCK = "enrolment.lock"


@contextmanager
def enrolment_alone(site: Site) -> Iterator[None]:
    """Keep other processes of this site from changing its keys and its roster meanwhile.

    Keys that a process killed while writing them has left under temporary names are deleted.
    Errors: OSError.
    """
    site.state_folder.mkdir(parents=True, exist_ok=True)
    with (site.state_folder / _LOCK).open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        for key_file in (site.identity_file, site.supernode_key_file):
            if key_file:
                # Also of those that wait, and of those put aside.
                names = f"{glob.escape(key_file.stem)}*{glob.escape(key_file.suffix)}"
                remove_leftovers(key_file.parent, names)
        yield


def pending(key_file: Path) -> Path:
    """Where the key lies that is to replace this one once the roster names it."""
    return key_file.with_name(f"{key_file.stem}-next{key_file.suffix}")


def set_aside(key_file: Path, version: int) -> Path:
    """Where a key goes that version `version` of the roster has replaced."""
    return key_file.with_name(f"{key_file.stem}-until-version-{version}{key_file.suffix}")
