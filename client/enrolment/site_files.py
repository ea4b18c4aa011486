"""Where a site keeps what enrolment makes, and which of it waits for the coordinator."""

from __future__ import annotations

from pathlib import Path

IDENTITY = "identity.pem"
SUPERNODE_KEY = "supernode.pem"
INVITATION = "consortium.json"
ROSTER = "roster.jsonl"
REQUEST = "request.json"
SETTINGS = "site.yaml"
CONTRACTS = "contracts"
STATE = "state"


def pending(key_file: Path) -> Path:
    """Where the key lies that is to replace this one once the roster names it."""
    return key_file.with_name(f"{key_file.stem}-next{key_file.suffix}")


def set_aside(key_file: Path, version: int) -> Path:
    """Where a key goes that version `version` of the roster has replaced."""
    return key_file.with_name(f"{key_file.stem}-until-version-{version}{key_file.suffix}")
