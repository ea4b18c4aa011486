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

from protocol.consortium.passphrase import FILE_VARIABLE, VARIABLE
from protocol.errors import FoedusError

_ENCRYPTED = b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
_SALT_BYTES = 16
# N and p.
_SCRYPT = (1 << 17, 1)
# OpenSSL refuses a key whose scrypt takes more than 32 MiB: less memory, but as much work.
_SCRYPT_FOR_OPENSSL = (1 << 14, 8)
# What OpenSSL takes of a passphrase.
_OPENSSL_PASSPHRASE_BYTES = 1024


def to_private_pem(
    key: Ed25519PrivateKey | ec.EllipticCurvePrivateKey,
    passphrase: bytes | None,
    *,
    for_openssl: bool = False,
) -> bytes:
    """Encrypted where a passphrase is given: AES-256 under scrypt.

    A guess of the passphrase costs 128 MiB and about half a second, and so does opening the key.
    for_openssl: TLS servers open it by OpenSSL; a guess then costs 16 MiB and the same time.
    Errors: FoedusError where OpenSSL would not take so long a passphrase.
    """
    if for_openssl and passphrase and len(passphrase) > _OPENSSL_PASSPHRASE_BYTES:
        raise FoedusError(
            f"Expected a passphrase of at most {_OPENSSL_PASSPHRASE_BYTES} bytes, as OpenSSL takes "
            f"no longer one for a TLS key, got {len(passphrase)} bytes."
        )
    if not passphrase:
        return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    cost, parallelism = _SCRYPT_FOR_OPENSSL if for_openssl else _SCRYPT
    # The cryptography library would stretch it by 2,048 rounds of PBKDF2, which are soon tried.
    plain = ECC.import_key(key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption()))
    text = plain.export_key(
        format="PEM",
        passphrase=passphrase,
        use_pkcs8=True,
        protection="scryptAndAES256-CBC",
        prot_params={
            "iteration_count": cost,
            "parallelization": parallelism,
            "salt_size": _SALT_BYTES,
        },
    )
    return str(text).encode() + b"\n"


def is_encrypted(data: bytes) -> bool:
    """True where a passphrase opens this PEM."""
    return _ENCRYPTED in data


def from_private_pem(data: bytes, passphrase: bytes | None) -> PrivateKeyTypes:
    """The key; a passphrase that is not needed is left aside. Errors: FoedusError."""
    if is_encrypted(data) and not passphrase:
        raise FoedusError(
            f"Expected the passphrase of this encrypted key, got none. Give it by {FILE_VARIABLE} "
            f"or {VARIABLE}, or name its file as passphrase_file in the settings."
        )
    try:
        return load_pem_private_key(data, passphrase if is_encrypted(data) else None)
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
