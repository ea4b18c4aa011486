"""A firm's request to become a member, to get new keys or to stay: public parts and proofs.

The proofs show that who made the request holds the private keys (and, for new keys, the old one);
they do not show who that is. For that the operator compares `fingerprint` by telephone.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol.codec import setting
from protocol.consortium import supernode_key
from protocol.consortium.documents import (
    LATEST_SECONDS,
    SCHEMA,
    from_hex,
    parse_form,
    read_document,
)
from protocol.consortium.fingerprint import fingerprint
from protocol.consortium.identity import (
    PUBLIC_KEY_BYTES,
    SIGNATURE_BYTES,
    Identity,
    is_weak_key,
    verify,
)
from protocol.consortium.names import NAME_RULE, is_name
from protocol.errors import FoedusError, SettingsError
from protocol.secure_aggregation.encoding import encode_fields


@dataclass(frozen=True)
class Proofs:
    """Signatures of one request: by its identity, its SuperNode key and, if any, the old identity.

    previous is empty where there is none.
    """

    identity: bytes = b""
    supernode: bytes = b""
    previous: bytes = b""


@dataclass(frozen=True)
class EnrolmentRequest:
    """What a site sends to the coordinator. Nothing in it is secret.

    coordinator_key: of the invitation, so that no other consortium can use the request. created:
    Unix seconds by the site's clock. previous_identity_key: where new keys replace a member's.
    """

    name: str
    identity_key: bytes
    supernode_key: bytes
    consortium: str
    coordinator_key: bytes
    created: int
    previous_identity_key: bytes | None = None
    proofs: Proofs = Proofs()

    @property
    def fingerprint(self) -> str:
        """Both keys as digits, to be compared by telephone."""
        return keys_fingerprint(self.identity_key, self.supernode_key)

    def proven(
        self,
        identity: Identity,
        supernode: ec.EllipticCurvePrivateKey,
        previous: Identity | None = None,
    ) -> EnrolmentRequest:
        """With the signatures of its keys. Errors: SettingsError where a part is malformed, or
        the keys are not those that the request names."""
        statement = self._statement()
        by_previous = previous.sign(statement) if previous else b""
        signed = Proofs(
            identity.sign(statement), supernode_key.sign(supernode, statement), by_previous
        )
        request = replace(self, proofs=signed)
        request._expect_sound("the request")
        return request

    def expect_meant_for(self, consortium: str, coordinator_keys: Collection[bytes]) -> None:
        """coordinator_keys: all that the coordinator has had.

        Errors: FoedusError where the request was made for another consortium.
        """
        if self.consortium != consortium or self.coordinator_key not in coordinator_keys:
            raise FoedusError(
                f"Expected a request to join {consortium!r}, got one for {self.consortium!r} with "
                f"the coordinator {fingerprint(self.coordinator_key)}. Give the firm the newest "
                "invitation."
            )

    def to_json(self) -> str:
        """The file's text."""
        previous = self.previous_identity_key
        values = {
            "schema": SCHEMA,
            "name": self.name,
            "identity_key": self.identity_key.hex(),
            "supernode_key": self.supernode_key.decode(),
            "consortium": self.consortium,
            "coordinator_key": self.coordinator_key.hex(),
            "created": self.created,
            "previous_identity_key": previous.hex() if previous else "",
            "identity_signature": self.proofs.identity.hex(),
            "supernode_signature": self.proofs.supernode.hex(),
            "previous_signature": self.proofs.previous.hex(),
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the request") -> EnrolmentRequest:
        """Errors: SettingsError where it is malformed, or a proof does not hold."""
        form = parse_form(_Form, text, where)
        problems: list[str] = []
        identity = from_hex(form.identity_key, PUBLIC_KEY_BYTES, "identity_key", problems)
        coordinator = from_hex(form.coordinator_key, PUBLIC_KEY_BYTES, "coordinator_key", problems)
        by_identity = from_hex(
            form.identity_signature, SIGNATURE_BYTES, "identity_signature", problems
        )
        by_supernode = from_hex(
            form.supernode_signature,
            len(form.supernode_signature) // 2,
            "supernode_signature",
            problems,
        )
        previous, by_previous = _previous(form, problems)
        if problems:
            raise SettingsError(where, problems)
        request = cls(
            form.name,
            identity,
            form.supernode_key.encode(),
            form.consortium,
            coordinator,
            form.created,
            previous,
            Proofs(by_identity, by_supernode, by_previous),
        )
        request._expect_sound(where)
        return request

    @classmethod
    def read(cls, path: Path) -> EnrolmentRequest:
        """Errors: FoedusError where there is no file, else as from_json."""
        return cls.from_json(read_document(path, "a firm's request to join"), str(path))

    def _statement(self) -> bytes:
        return encode_fields(
            "enrolment request",
            SCHEMA,
            self.name,
            self.identity_key,
            self.supernode_key,
            self.consortium,
            self.coordinator_key,
            self.created,
            self.previous_identity_key or b"",
        )

    def _expect_sound(self, where: str) -> None:
        problems = [
            f"{key}: expected {NAME_RULE}, got {value!r}."
            for key, value in (("name", self.name), ("consortium", self.consortium))
            if not is_name(value)
        ]
        problems += supernode_key.key_problems(self.supernode_key)
        if is_weak_key(self.identity_key):
            problems.append("identity_key: it is of low order, anyone can sign for it.")
        problems += self._broken_proofs()
        if problems:
            raise SettingsError(where, problems)

    def _broken_proofs(self) -> list[str]:
        statement = self._statement()
        held = {
            "identity_signature": verify(self.identity_key, statement, self.proofs.identity),
            "supernode_signature": supernode_key.verify(
                self.supernode_key, statement, self.proofs.supernode
            ),
        }
        if self.previous_identity_key is not None:
            held["previous_signature"] = self.previous_identity_key != self.identity_key and verify(
                self.previous_identity_key, statement, self.proofs.previous
            )
        return [
            f"{name}: it does not prove that the sender holds the key; the request was altered on "
            "its way, or is not the firm's."
            for name, holds in held.items()
            if not holds
        ]


@dataclass(frozen=True)
class _Form:
    schema: int = setting(doc="form of this file", choices=(SCHEMA,))
    name: str = setting(doc="the firm")
    identity_key: str = setting(doc="Ed25519, hex")
    supernode_key: str = setting(doc="P-384, PEM")
    consortium: str = setting(doc="name")
    coordinator_key: str = setting(doc="Ed25519, hex")
    created: int = setting(doc="Unix seconds", minimum=0, maximum=LATEST_SECONDS)
    previous_identity_key: str = setting(doc="Ed25519, hex, or empty")
    identity_signature: str = setting(doc="Ed25519, hex")
    supernode_signature: str = setting(doc="ECDSA, DER, hex")
    previous_signature: str = setting(doc="Ed25519, hex, or empty")


def _previous(form: _Form, problems: list[str]) -> tuple[bytes | None, bytes]:
    if not form.previous_identity_key and not form.previous_signature:
        return None, b""
    key = from_hex(form.previous_identity_key, PUBLIC_KEY_BYTES, "previous_identity_key", problems)
    signature = from_hex(form.previous_signature, SIGNATURE_BYTES, "previous_signature", problems)
    return key, signature


def keys_fingerprint(identity_key: bytes, supernode_pem: bytes) -> str:
    """A firm's two public keys as digits, the same at the firm and in the roster."""
    return fingerprint(encode_fields("member keys", identity_key, supernode_pem))
