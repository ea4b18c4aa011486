"""The members' roster: who belongs to the consortium, by public key, the same file at every member.

The coordinator relays the sites' session keys, so a site must know by other means whose they are:
that is what the roster is for. Its digest is part of every session's context; two parties with
different rosters have no session together.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from protocol.consortium.identity import PUBLIC_KEY_BYTES, is_weak_key, member_id_of
from protocol.consortium.names import NAME_RULE, is_name, name_key
from protocol.errors import FoedusError, SettingsError, WireError
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.encoding import encode_fields

SCHEMA = 1


@dataclass(frozen=True)
class Member:
    """A firm: the name is for people, the key is who it is."""

    name: str
    public_key: bytes

    @property
    def member_id(self) -> str:
        """32 hex digits, see identity.member_id_of."""
        return member_id_of(self.public_key)


@dataclass(frozen=True)
class Roster:
    """All members of one consortium. version: raised by its keeper with every change.

    Errors: SettingsError listing everything wrong.
    """

    consortium: str
    version: int
    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        problems = _roster_problems(self)
        if problems:
            raise SettingsError("the roster", problems)

    @cached_property
    def digest(self) -> str:
        """SHA-256 in hex, over the content and not over the file's form or order."""
        members = sorted((member.public_key, member.name) for member in self.members)
        fields = [part for member in members for part in member]
        content = encode_fields("roster", self.consortium, self.version, *fields)
        return hashlib.sha256(content).hexdigest()

    @cached_property
    def _by_id(self) -> dict[str, Member]:
        return {member.member_id: member for member in self.members}

    def member(self, member_id: str) -> Member:
        """Errors: WireError UNKNOWN_MEMBER."""
        found = self._by_id.get(member_id)
        if found is None:
            raise WireError(
                RefusalReason.UNKNOWN_MEMBER,
                f"Expected one of the {len(self.members)} members of roster version "
                f"{self.version}, got {member_id[:32]!r}.",
            )
        return found

    def to_json(self) -> str:
        """The file's text."""
        members = [{"name": m.name, "public_key": m.public_key.hex()} for m in self.members]
        values = {
            "schema": SCHEMA,
            "consortium": self.consortium,
            "version": self.version,
            "members": members,
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the roster") -> Roster:
        """Errors: SettingsError listing everything wrong."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise SettingsError(where, [f"Expected JSON: {error}."]) from error
        problems: list[str] = []
        members = _parse(values, problems)
        if problems:
            raise SettingsError(where, problems)
        try:
            return cls(values["consortium"], values["version"], members)
        except SettingsError as error:
            raise SettingsError(where, error.problems) from error


def read_roster(path: Path) -> Roster:
    """Errors: FoedusError where it cannot be read, SettingsError listing everything wrong in it."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FoedusError(
            f"Expected the members' roster at {path}, got {type(error).__name__}. It is the JSON "
            "file that the consortium's keeper gives to every member and to the coordinator."
        ) from error
    return Roster.from_json(text, str(path))


def _parse(values: Any, problems: list[str]) -> tuple[Member, ...]:
    if not isinstance(values, dict):
        problems.append(f"Expected a JSON object, got {type(values).__name__}.")
        return ()
    _check_keys(values, {"schema", "consortium", "version", "members"}, "top level", problems)
    if values.get("schema") != SCHEMA:
        problems.append(f"schema: expected {SCHEMA}, got {values.get('schema')!r}.")
    if not isinstance(values.get("consortium"), str):
        problems.append(f"consortium: expected a name, got {values.get('consortium')!r}.")
    if not isinstance(values.get("version"), int) or isinstance(values.get("version"), bool):
        problems.append(f"version: expected a whole number, got {values.get('version')!r}.")
    entries = values.get("members")
    if not isinstance(entries, list):
        problems.append(f"members: expected a list, got {type(entries).__name__}.")
        return ()
    parsed = [_parse_member(entry, f"members[{i}]", problems) for i, entry in enumerate(entries)]
    return tuple(member for member in parsed if member is not None)


def _parse_member(entry: Any, where: str, problems: list[str]) -> Member | None:
    if not isinstance(entry, dict):
        problems.append(f"{where}: expected name and public_key, got {type(entry).__name__}.")
        return None
    _check_keys(entry, {"name", "public_key"}, where, problems)
    name, key = entry.get("name"), entry.get("public_key")
    if not isinstance(name, str):
        problems.append(f"{where}.name: expected a name, got {name!r}.")
        return None
    try:
        return Member(name, bytes.fromhex(str(key)))
    except ValueError:
        problems.append(
            f"{where}.public_key: expected {2 * PUBLIC_KEY_BYTES} hex digits, got {key!r}."
        )
        return None


def _check_keys(
    values: dict[str, Any], expected: set[str], where: str, problems: list[str]
) -> None:
    for key in sorted(values.keys() - expected):
        problems.append(f"{where}: unknown key {key!r}; expected {', '.join(sorted(expected))}.")
    for key in sorted(expected - values.keys()):
        problems.append(f"{where}: {key} is missing.")


def _roster_problems(roster: Roster) -> list[str]:
    problems = []
    if not is_name(roster.consortium):
        problems.append(f"consortium: expected {NAME_RULE}, got {roster.consortium!r}.")
    if roster.version < 1:
        problems.append(f"version: expected 1 or more, got {roster.version}.")
    if not roster.members:
        problems.append("members: expected at least one, got none.")
    for position, member in enumerate(roster.members):
        where = f"members[{position}] ({member.name!r})"
        if not is_name(member.name):
            problems.append(f"{where}: expected {NAME_RULE} as its name.")
        if len(member.public_key) != PUBLIC_KEY_BYTES:
            problems.append(
                f"{where}: expected a public key of {PUBLIC_KEY_BYTES} bytes, got "
                f"{len(member.public_key)}."
            )
        elif is_weak_key(member.public_key):
            problems.append(
                f"{where}: its public key is of low order, anyone can sign for it. Ask the member "
                "for the key that foedus made."
            )
    problems += _duplicates("name", (member.name for member in roster.members), name_key)
    problems += _duplicates("public key", (m.public_key.hex() for m in roster.members))
    return problems


def _duplicates(what: str, values: Iterable[str], alike: Callable[[str], str] = str) -> list[str]:
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault(alike(value), []).append(value)
    return [
        f"members: the {what} {' / '.join(map(repr, dict.fromkeys(group)))} stands {len(group)} "
        "times; expected each once."
        for group in groups.values()
        if len(group) > 1
    ]
