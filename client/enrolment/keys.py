"""A site's SuperNode key: made and kept here, read by Flower's SuperNode.

Flower reads OpenSSH's format without a passphrase only. So a key without passphrase is kept in that
format, and one with a passphrase as encrypted PKCS #8, which `supernode_key_unlocked` opens.
"""

from __future__ import annotations

from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_ssh_private_key,
)

from protocol.consortium.private_pem import (
    from_private_pem,
    read_private_file,
    to_private_pem,
)
from protocol.errors import FoedusError
from protocol.files import write_atomically

_OPENSSH = b"-----BEGIN OPENSSH PRIVATE KEY-----"


def make_supernode_key() -> ec.EllipticCurvePrivateKey:
    """A new P-384 key."""
    return ec.generate_private_key(ec.SECP384R1())


def save_supernode_key(
    path: Path, key: ec.EllipticCurvePrivateKey, passphrase: bytes | None
) -> None:
    """Write it for its owner's eyes alone (0600). Errors: FoedusError where the file exists."""
    if path.exists():
        raise FoedusError(f"Expected no file at {path}, found one. Keys are not overwritten.")
    data = to_private_pem(key, passphrase) if passphrase else _openssh(key)
    write_atomically(path, data, mode=0o600)


def load_supernode_key(path: Path, passphrase: bytes | None) -> ec.EllipticCurvePrivateKey:
    """Errors: FoedusError where it is missing, readable by others, or no P-384 key that opens."""
    data = read_private_file(path, "the SuperNode's key")
    try:
        private = _opened(data, passphrase)
    except FoedusError as error:
        raise FoedusError(f"{path}: {error}") from error
    if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(
        private.curve, ec.SECP384R1
    ):
        raise FoedusError(f"{path}: expected a P-384 key, got {type(private).__name__}.")
    return private


def supernode_key_unlocked(path: Path, passphrase: bytes | None) -> bytes:
    """The key as Flower's SuperNode reads it: secret, not encrypted; keep it off the disk.

    Errors: as load_supernode_key.
    """
    return _openssh(load_supernode_key(path, passphrase))


def _opened(data: bytes, passphrase: bytes | None) -> object:
    if _OPENSSH not in data:
        return from_private_pem(data, passphrase)
    try:
        return load_ssh_private_key(data, None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FoedusError(
            "Expected a key in OpenSSH's format without passphrase, or encrypted PKCS #8, got "
            "something that does not open. Make the site's keys with `foedus client join`."
        ) from error


def _openssh(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
