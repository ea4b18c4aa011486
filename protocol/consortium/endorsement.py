"""A member's signature under a proposed version of the roster, on its way to the coordinator."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from protocol.codec import setting
from protocol.consortium.documents import SCHEMA, from_hex, parse_form, read_document
from protocol.consortium.identity import PUBLIC_KEY_BYTES, SIGNATURE_BYTES, Identity
from protocol.consortium.signed_roster import RosterSignature, SignedRoster
from protocol.errors import SettingsError


@dataclass(frozen=True)
class Endorsement:
    """digest: the version's that is signed. Whether the signature counts, the chain decides."""

    digest: str
    signature: RosterSignature

    @classmethod
    def of(cls, proposal: SignedRoster, member: Identity) -> Endorsement:
        """The member's signature under the proposal."""
        made = RosterSignature(member.public_key, member.sign(proposal.statement))
        return cls(proposal.digest, made)

    def to_json(self) -> str:
        """The file's text."""
        values = {
            "schema": SCHEMA,
            "digest": self.digest,
            "public_key": self.signature.public_key.hex(),
            "signature": self.signature.signature.hex(),
        }
        return json.dumps(values, indent=2) + "\n"

    @classmethod
    def read(cls, path: Path) -> Endorsement:
        """Errors: FoedusError where there is none, SettingsError where it is malformed."""
        form = parse_form(_Form, read_document(path, "a member's endorsement"), str(path))
        problems: list[str] = []
        key = from_hex(form.public_key, PUBLIC_KEY_BYTES, "public_key", problems)
        signature = from_hex(form.signature, SIGNATURE_BYTES, "signature", problems)
        if problems:
            raise SettingsError(str(path), problems)
        return cls(form.digest, RosterSignature(key, signature))


@dataclass(frozen=True)
class _Form:
    schema: int = setting(doc="form of this file", choices=(SCHEMA,))
    digest: str = setting(doc="the version's, hex")
    public_key: str = setting(doc="Ed25519, hex")
    signature: str = setting(doc="Ed25519, hex")
