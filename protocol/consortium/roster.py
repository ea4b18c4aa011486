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

from protocol.codec import setting
from protocol.consortium.documents import from_hex, parse_form
from protocol.consortium.identity import PUBLIC_KEY_BYTES, is_weak_key, member_id_of
from protocol.consortium.names import NAME_RULE, is_name, name_key
from protocol.errors import FoedusError, SettingsError, WireError, shown
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
        form = parse_form(_Form, text, where)
        problems: list[str] = []
        members = tuple(
            Member(
                one.name,
                from_hex(one.public_key, PUBLIC_KEY_BYTES, f"members[{i}].public_key", problems),
            )
            for i, one in enumerate(form.members)
        )
        if problems:
            raise SettingsError(where, problems)
        try:
            return cls(form.consortium, form.version, members)
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


@dataclass(frozen=True)
class _MemberForm:
    name: str = setting(doc="the firm")
    public_key: str = setting(doc="Ed25519, hex")


@dataclass(frozen=True)
class _Form:
    schema: int = setting(doc="form of this file", choices=(SCHEMA,))
    consortium: str = setting(doc="name")
    version: int = setting(doc="1 or more")
    members: tuple[_MemberForm, ...] = setting(doc="firms")


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
    problems += duplicates("name", (member.name for member in roster.members), name_key)
    problems += duplicates("public key", (m.public_key.hex() for m in roster.members))
    return problems


def duplicates(what: str, values: Iterable[str], alike: Callable[[str], str] = str) -> list[str]:
    """A problem for each value of a roster's members that several have.

    alike: two values that it maps to the same are the same.
    """
    groups: dict[str, list[str]] = {}
    for value in values:
        groups.setdefault(alike(value), []).append(value)
    return [
        f"members: the {what} {' / '.join(map(shown, dict.fromkeys(group)))} stands {len(group)} "
        "times; expected each once."
        for group in groups.values()
        if len(group) > 1
    ]
