"""A site's lasting identity: an Ed25519 key pair (RFC 8032) whose public half is in the roster."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from protocol.consortium.private_pem import (
    from_private_pem,
    read_private_file,
    to_private_pem,
)
from protocol.errors import FoedusError
from protocol.files import write_atomically

PUBLIC_KEY_BYTES = 32
SIGNATURE_BYTES = 64
MEMBER_ID_BYTES = 16


def member_id_of(public_key: bytes) -> str:
    """The first 16 bytes of SHA-256 of the public key, as 32 hex digits."""
    return hashlib.sha256(public_key).hexdigest()[: 2 * MEMBER_ID_BYTES]


# The y-coordinates (little-endian, sign bit cleared) of the eight Ed25519 points of low order, and
# their forms not reduced modulo p = 2^255 - 19. For such a "key" anyone can make signatures.
_LOW_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


def is_weak_key(public_key: bytes) -> bool:
    """True where a 32-byte public key is a point of low order and so nobody's own."""
    return public_key[:-1] + bytes([public_key[-1] & 0x7F]) in _LOW_ORDER


@dataclass(frozen=True)
class Identity:
    """A private key; its text form shows the public half only."""

    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Identity:
        """A new one from the operating system's randomness."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, data: bytes, passphrase: bytes | None = None) -> Identity:
        """Read PKCS #8 PEM. Errors: FoedusError where it is no Ed25519 key or does not open."""
        private = from_private_pem(data, passphrase)
        if not isinstance(private, Ed25519PrivateKey):
            raise FoedusError(
                f"Expected an Ed25519 private key, got {type(private).__name__}. "
                "Make an identity of its own for foedus."
            )
        return cls(private)

    def to_pem(self, passphrase: bytes | None = None) -> bytes:
        """PKCS #8 PEM, encrypted where a passphrase is given."""
        return to_private_pem(self._private, passphrase)

    @property
    def public_key(self) -> bytes:
        """The 32 bytes that stand in the roster."""
        return self._private.public_key().public_bytes_raw()

    @property
    def member_id(self) -> str:
        """How messages name this site: 32 hex digits."""
        return member_id_of(self.public_key)

    def sign(self, message: bytes) -> bytes:
        """64 bytes. Sign only what encode_fields made, under a label of its own."""
        return self._private.sign(message)

    def __repr__(self) -> str:
        return f"Identity(member_id={self.member_id!r})"


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """True where `signature` is this key's signature of `message`; malformed ones are False."""
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, message)
    except (InvalidSignature, ValueError):
        return False
    return True


def save_identity(path: Path, identity: Identity, passphrase: bytes | None = None) -> None:
    """Write the private key for its owner's eyes alone (0600), whole or not at all.

    Errors: FoedusError where the file exists: an identity once in a roster must not be lost.
    """
    if path.exists():
        raise FoedusError(
            f"Expected no file at {path}, found one. Move it away first if this site is really to "
            "get a new identity: the consortium's roster must then be changed too."
        )
    write_atomically(path, identity.to_pem(passphrase), mode=0o600)


def load_identity(path: Path, passphrase: bytes | None = None) -> Identity:
    """Read what `save_identity` wrote.

    Errors: FoedusError where it is missing, readable by others, or no Ed25519 key.
    """
    data = read_private_file(path, "an identity")
    try:
        return Identity.from_pem(data, passphrase)
    except FoedusError as error:
        raise FoedusError(f"{path}: {error}") from error
