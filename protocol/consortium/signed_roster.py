"""One version of a consortium's roster, as the coordinator and members sign it."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from functools import cached_property

from protocol.codec import setting
from protocol.consortium import supernode_key
from protocol.consortium.documents import (
    LATEST_SECONDS,
    SCHEMA,
    from_hex,
    parse_form,
)
from protocol.consortium.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    is_weak_key,
    member_id_of,
)
from protocol.consortium.names import NAME_RULE, is_name, name_key
from protocol.consortium.roster import Member, Roster, duplicates
from protocol.errors import SettingsError
from protocol.secure_aggregation.encoding import Field, encode_fields

_DIGEST_BYTES = 32
_TOO_LATE = "expected a time before the year 10000."


@dataclass(frozen=True)
class MemberEntry:
    """A firm as the coordinator admitted it. admitted, expires: Unix seconds.

    public_key: Ed25519, 32 bytes. supernode_key: P-384 in PEM, as SuperLink registers it.
    """

    name: str
    public_key: bytes
    supernode_key: bytes
    admitted: int
    expires: int

    @property
    def member_id(self) -> str:
        """32 hex digits, see identity.member_id_of."""
        return member_id_of(self.public_key)

    def expired(self, now: float) -> bool:
        """True from the second on at which the admission ends. now: Unix seconds."""
        return now >= self.expires

    def _fields(self) -> tuple[Field, ...]:
        return (self.name, self.public_key, self.supernode_key, self.admitted, self.expires)


@dataclass(frozen=True)
class RosterSignature:
    """Who signed a version, by Ed25519 public key, and the 64 bytes."""

    public_key: bytes
    signature: bytes


@dataclass(frozen=True)
class SignedRoster:
    """A version, which binds all before it by `previous_digest` ("" in the first).

    coordinator_key and signatures_needed are in force from this version on: the next one must be
    signed by that key and by so many members. issued: Unix seconds, by the coordinator's clock.
    What the signatures must be is checked over whole chains, see protocol.consortium.chain.

    Errors: SettingsError listing everything malformed.
    """

    consortium: str
    version: int
    previous_digest: str
    issued: int
    members: tuple[MemberEntry, ...]
    coordinator_key: bytes
    signatures_needed: int
    signatures: tuple[RosterSignature, ...] = ()

    def __post_init__(self) -> None:
        if problems := _problems(self):
            raise SettingsError(f"version {self.version} of the roster", problems)

    @cached_property
    def statement(self) -> bytes:
        """What is signed: everything but the signatures."""
        fields = [field for member in self.members for field in member._fields()]
        return encode_fields(
            "roster version",
            SCHEMA,
            self.consortium,
            self.version,
            self.previous_digest,
            self.issued,
            self.coordinator_key,
            self.signatures_needed,
            *fields,
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the statement, 64 hex digits. Members compare it to know they see the same."""
        return hashlib.sha256(self.statement).hexdigest()

    def signed_by(self, *signers: Identity) -> SignedRoster:
        """With these signatures added."""
        made = (RosterSignature(s.public_key, s.sign(self.statement)) for s in signers)
        return self.with_signatures(*made)

    def with_signatures(self, *signatures: RosterSignature) -> SignedRoster:
        """With signatures that were made elsewhere added."""
        return replace(self, signatures=(*self.signatures, *signatures))

    def roster(self) -> Roster:
        """The members as a run needs them. Errors: SettingsError where there are none."""
        members = tuple(Member(entry.name, entry.public_key) for entry in self.members)
        return Roster(self.consortium, self.version, members)

    def entry_of(self, public_key: bytes) -> MemberEntry | None:
        """The member with this identity key, if there is one."""
        return next((m for m in self.members if m.public_key == public_key), None)

    def entry_named(self, name: str) -> MemberEntry | None:
        """The member with this name, if there is one."""
        return next((m for m in self.members if m.name == name), None)

    def to_line(self) -> str:
        """One line of JSON, without its end."""
        values = {
            "schema": SCHEMA,
            "consortium": self.consortium,
            "version": self.version,
            "previous_digest": self.previous_digest,
            "issued": self.issued,
            "members": [
                {
                    "name": entry.name,
                    "public_key": entry.public_key.hex(),
                    "supernode_key": entry.supernode_key.decode(),
                    "admitted": entry.admitted,
                    "expires": entry.expires,
                }
                for entry in self.members
            ],
            "coordinator_key": self.coordinator_key.hex(),
            "signatures_needed": self.signatures_needed,
            "signatures": [
                {"public_key": one.public_key.hex(), "signature": one.signature.hex()}
                for one in self.signatures
            ],
        }
        return json.dumps(values, separators=(",", ":"))

    @classmethod
    def from_line(cls, line: str, where: str) -> SignedRoster:
        """Errors: SettingsError listing everything malformed; signatures are not checked here."""
        form = parse_form(_Form, line, where)
        problems: list[str] = []
        members = tuple(
            _entry(entry, f"members[{i}]", problems) for i, entry in enumerate(form.members)
        )
        key = from_hex(form.coordinator_key, PUBLIC_KEY_BYTES, "coordinator_key", problems)
        signatures = tuple(
            _signature(one, f"signatures[{i}]", problems) for i, one in enumerate(form.signatures)
        )
        if problems:
            raise SettingsError(where, problems)
        try:
            return cls(
                form.consortium,
                form.version,
                form.previous_digest,
                form.issued,
                members,
                key,
                form.signatures_needed,
                signatures,
            )
        except SettingsError as error:
            raise SettingsError(where, error.problems) from error


@dataclass(frozen=True)
class _EntryForm:
    name: str = setting(doc="the firm")
    public_key: str = setting(doc="Ed25519, hex")
    supernode_key: str = setting(doc="P-384, PEM")
    admitted: int = setting(doc="Unix seconds", minimum=0)
    expires: int = setting(doc="Unix seconds", minimum=0)


@dataclass(frozen=True)
class _SignatureForm:
    public_key: str = setting(doc="Ed25519, hex")
    signature: str = setting(doc="Ed25519, hex")


@dataclass(frozen=True)
class _Form:
    schema: int = setting(doc="form of this line", choices=(SCHEMA,))
    consortium: str = setting(doc="name")
    version: int = setting(doc="1 or more", minimum=1)
    previous_digest: str = setting(doc="of the version before")
    issued: int = setting(doc="Unix seconds", minimum=0)
    members: tuple[_EntryForm, ...] = setting(doc="firms")
    coordinator_key: str = setting(doc="Ed25519, hex")
    signatures_needed: int = setting(doc="members that sign the next version", minimum=0)
    signatures: tuple[_SignatureForm, ...] = setting(doc="by the coordinator and members")


def _entry(form: _EntryForm, where: str, problems: list[str]) -> MemberEntry:
    key = from_hex(form.public_key, PUBLIC_KEY_BYTES, f"{where}.public_key", problems)
    pem = form.supernode_key.encode()
    return MemberEntry(form.name, key, pem, form.admitted, form.expires)


def _signature(form: _SignatureForm, where: str, problems: list[str]) -> RosterSignature:
    key = from_hex(form.public_key, PUBLIC_KEY_BYTES, f"{where}.public_key", problems)
    signature = from_hex(form.signature, SIGNATURE_BYTES, f"{where}.signature", problems)
    return RosterSignature(key, signature)


def _problems(roster: SignedRoster) -> list[str]:
    problems: list[str] = []
    if not is_name(roster.consortium):
        problems.append(f"consortium: expected {NAME_RULE}, got {roster.consortium!r}.")
    if roster.version > 1:
        from_hex(roster.previous_digest, _DIGEST_BYTES, "previous_digest", problems)
    elif roster.previous_digest:
        problems.append("previous_digest: expected none in the first version.")
    if roster.issued > LATEST_SECONDS:
        problems.append(f"issued: {_TOO_LATE}")
    if is_weak_key(roster.coordinator_key):
        problems.append("coordinator_key: it is of low order, anyone can sign for it.")
    for position, entry in enumerate(roster.members):
        problems += _entry_problems(entry, f"members[{position}] ({entry.name!r})")
        if entry.public_key == roster.coordinator_key:
            problems.append(f"members[{position}]: its key is the coordinator's own.")
    problems += duplicates("name", (entry.name for entry in roster.members), name_key)
    problems += duplicates("public key", (entry.public_key.hex() for entry in roster.members))
    problems += duplicates("SuperNode key", (e.supernode_key.hex() for e in roster.members))
    return problems


def _entry_problems(entry: MemberEntry, where: str) -> list[str]:
    problems = [f"{where}.{problem}" for problem in supernode_key.key_problems(entry.supernode_key)]
    if not is_name(entry.name):
        problems.append(f"{where}: expected {NAME_RULE} as its name.")
    if is_weak_key(entry.public_key):
        problems.append(f"{where}.public_key: it is of low order, anyone can sign for it.")
    if entry.expires <= entry.admitted:
        problems.append(f"{where}.expires: expected a time after it was admitted.")
    if entry.expires > LATEST_SECONDS:
        problems.append(f"{where}.expires: {_TOO_LATE}")
    return problems
