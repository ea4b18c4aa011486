"""What a coordinator gives to firms that are to join: how to reach it, and how to know it."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path

from cryptography import x509

from protocol.codec import setting
from protocol.consortium.documents import (
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
from protocol.errors import SettingsError
from protocol.files import write_atomically
from protocol.secure_aggregation.encoding import encode_fields


@dataclass(frozen=True)
class Invitation:
    """Public. Signed by the key it carries, so who has compared that key's fingerprint with the
    coordinator's operator knows that the address and the certificate are the coordinator's too.

    address: host:port. ca_certificate_pem: the authority of the coordinator's TLS certificate.
    """

    consortium: str
    address: str
    coordinator_key: bytes
    ca_certificate_pem: str
    signature: bytes = b""

    @property
    def fingerprint(self) -> str:
        """The coordinator's key as digits, to be compared by telephone."""
        return fingerprint(self.coordinator_key)

    def signed(self, coordinator: Identity) -> Invitation:
        """With the coordinator's signature. Errors: SettingsError where a part is malformed."""
        signed = replace(self, signature=coordinator.sign(self._statement()))
        signed._expect_sound("the invitation")
        return signed

    def to_json(self) -> str:
        """The file's text."""
        values = {
            "schema": SCHEMA,
            "consortium": self.consortium,
            "address": self.address,
            "coordinator_key": self.coordinator_key.hex(),
            "ca_certificate_pem": self.ca_certificate_pem,
            "signature": self.signature.hex(),
        }
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str, where: str = "the invitation") -> Invitation:
        """Errors: SettingsError where it is malformed, or its signature does not hold."""
        form = parse_form(_Form, text, where)
        problems: list[str] = []
        key = from_hex(form.coordinator_key, PUBLIC_KEY_BYTES, "coordinator_key", problems)
        signature = from_hex(form.signature, SIGNATURE_BYTES, "signature", problems)
        if problems:
            raise SettingsError(where, problems)
        invitation = cls(form.consortium, form.address, key, form.ca_certificate_pem, signature)
        invitation._expect_sound(where)
        return invitation

    @classmethod
    def read(cls, path: Path) -> Invitation:
        """Errors: FoedusError where there is no file, else as from_json."""
        return cls.from_json(read_document(path, "the consortium's invitation"), str(path))

    def save(self, path: Path) -> None:
        """Write it for everybody to read."""
        write_atomically(path, self.to_json().encode())

    def _statement(self) -> bytes:
        return encode_fields(
            "coordinator invitation",
            SCHEMA,
            self.consortium,
            self.address,
            self.coordinator_key,
            self.ca_certificate_pem,
        )

    def _expect_sound(self, where: str) -> None:
        problems = []
        if not is_name(self.consortium):
            problems.append(f"consortium: expected {NAME_RULE}, got {self.consortium!r}.")
        problems += address_problems(self.address)
        if is_weak_key(self.coordinator_key):
            problems.append("coordinator_key: it is of low order, anyone can sign for it.")
        try:
            x509.load_pem_x509_certificate(self.ca_certificate_pem.encode())
        except ValueError:
            problems.append("ca_certificate_pem: expected a certificate in PEM.")
        if not verify(self.coordinator_key, self._statement(), self.signature):
            problems.append(
                "signature: expected the coordinator's over everything above; the file was "
                "altered on its way, or is not the coordinator's."
            )
        if problems:
            raise SettingsError(where, problems)


@dataclass(frozen=True)
class _Form:
    schema: int = setting(doc="form of this file", choices=(SCHEMA,))
    consortium: str = setting(doc="name")
    address: str = setting(doc="host:port")
    coordinator_key: str = setting(doc="Ed25519 public key, hex")
    ca_certificate_pem: str = setting(doc="certificate")
    signature: str = setting(doc="Ed25519, hex")


def split_address(address: str) -> tuple[str, int]:
    """Host and port of "host:port" or "[IPv6]:port". Errors: ValueError."""
    host, separator, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    sound = separator and bare and (":" in bare) == (host == f"[{bare}]")
    if not sound or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise ValueError(address)
    if not bare.isascii() or not all(c.isalnum() or c in "-._:" for c in bare):
        raise ValueError(address)
    return bare, int(port)


def address_problems(address: str) -> list[str]:
    """What is wrong with it, as a sentence; nothing where it is host:port."""
    try:
        split_address(address)
    except ValueError:
        return [f"address: expected host:port, such as foedus.example.org:9443, got {address!r}."]
    return []
