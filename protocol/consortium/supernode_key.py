"""The P-384 key by which a site's SuperNode signs its requests to Flower's SuperLink.

In documents and rosters it is the PEM text that SuperLink registers (SubjectPublicKeyInfo), in the
one spelling that the cryptography library writes.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

_SIGN = ec.ECDSA(SHA384())


def public_pem(private: ec.EllipticCurvePrivateKey) -> bytes:
    """What the roster holds and SuperLink registers."""
    return _pem(private.public_key())


def sign(private: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """ECDSA with SHA-384, DER."""
    return private.sign(message, _SIGN)


def verify(pem: bytes, message: bytes, signature: bytes) -> bool:
    """True where `signature` is this key's; malformed keys and signatures are False."""
    try:
        _load(pem).verify(signature, message, _SIGN)
    except (InvalidSignature, ValueError):
        return False
    return True


def key_problems(pem: bytes) -> list[str]:
    """What is wrong with it, as a sentence; nothing where it is a P-384 key."""
    try:
        _load(pem)
    except ValueError:
        return ["supernode_key: expected a P-384 public key in PEM, as foedus writes it."]
    return []


def _load(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Errors: ValueError where it is anything but a P-384 key in its one spelling."""
    try:
        key = load_pem_public_key(pem)
    except UnsupportedAlgorithm as error:
        raise ValueError("unknown kind of key") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ValueError("not a P-384 key")
    if _pem(key) != pem:
        raise ValueError("another spelling of the key")
    return key


def _pem(key: ec.EllipticCurvePublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
