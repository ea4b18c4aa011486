"""Private keys as PKCS #8 PEM, encrypted or not, and files of them that only their owner reads."""

from __future__ import annotations

import stat
from pathlib import Path

from Crypto.PublicKey import ECC
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from protocol.errors import FoedusError

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_SCRYPT_COST = 1 << 17
_SALT_BYTES = 16


def to_private_pem(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey, passphrase: bytes | None
) -> bytes:
    """Encrypted where a passphrase is given: AES-256 under scrypt.

    A guess of the passphrase costs 128 MiB and about half a second, and so does opening the key.
    """
    if not passphrase:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    # The cryptography library would stretch it by 2,048 rounds of PBKDF2, which are soon tried.
    plain = ECC.import_key(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    text = plain.export_key(
        format="PEM",
        passphrase=passphrase,
        use_pkcs8=True,
        protection="scryptAndAES256-CBC",
        prot_params={"iteration_count": _SCRYPT_COST, "salt_size": _SALT_BYTES},
    )
    return str(text).encode() + b"\n"


def from_private_pem(data: bytes, passphrase: bytes | None) -> PrivateKeyTypes:
    """The key; a passphrase that is not needed is left aside. Errors: FoedusError."""
    try:
        return load_pem_private_key(data, passphrase if _ENCRYPTED in data else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise FoedusError(
            "Expected a private key as PKCS #8 PEM (with its passphrase where it has one), got "
            "something that does not open. Was it made for foedus, and is the passphrase right?"
        ) from error


def read_private_file(path: Path, what: str) -> bytes:
    """The file's bytes. Errors: FoedusError where it is missing or readable by others."""
    try:
        mode = path.stat().st_mode
        data = path.read_bytes()
    except OSError as error:
        raise FoedusError(f"Expected {what} at {path}: {error.strerror}.") from error
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise FoedusError(
            f"Expected {path} to be readable by its owner only (0600), its mode is "
            f"{stat.S_IMODE(mode):04o}. Run chmod 600 on it, and think about who has read it."
        )
    return data
