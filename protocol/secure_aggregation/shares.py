"""Shamir shares of a session's two secrets, and the boxes in which they travel.

Sharing is pycryptodome's, over GF(2^128), so a secret is a multiple of 16 bytes; we share 16-byte
seeds (see keys.py for why that suffices), which halves the cost of sharing a 32-byte key.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from protocol.errors import FoedusError, WireError
from protocol.reasons import RefusalReason

SHARE_BYTES = 16
NONCE_BYTES = 12
TAG_BYTES = 16
BOX_BYTES = NONCE_BYTES + 2 * SHARE_BYTES + TAG_BYTES


def split(secret: bytes, threshold: int, num_shares: int) -> list[bytes]:
    """Shares for the indices 1..num_shares, in this order, each as long as the secret.

    Any `threshold` of them give the secret back, fewer tell nothing. secret: a multiple of 16
    bytes. Errors: FoedusError.
    """
    if not secret or len(secret) % SHARE_BYTES:
        raise FoedusError(
            f"Expected a secret of a multiple of {SHARE_BYTES} bytes, got {len(secret)} bytes."
        )
    if not 1 <= threshold <= num_shares:
        raise FoedusError(f"Expected a threshold from 1 to {num_shares} shares, got {threshold}.")
    columns = [
        Shamir.split(threshold, num_shares, secret[start : start + SHARE_BYTES], ssss=False)
        for start in range(0, len(secret), SHARE_BYTES)
    ]
    return [b"".join(share for _, share in row) for row in zip(*columns, strict=True)]


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret from shares by index (from 1); of more than `threshold`, the lowest are used.

    A wrong share gives a wrong secret without notice: check the result against what was
    advertised (keys.opens_self_mask, keys.opens_masking_key).
    Errors: FoedusError on fewer than `threshold`, unequal lengths, an index below 1.
    """
    used = sorted(shares.items())[:threshold]
    if threshold < 1 or len(used) < threshold:
        raise FoedusError(f"Expected at least {threshold} shares, got {len(used)}.")
    sizes = {len(share) for _, share in used}
    size = max(sizes)
    if used[0][0] < 1 or len(sizes) > 1 or not size or size % SHARE_BYTES:
        raise FoedusError(
            f"Expected indices from 1 and shares of one length, a multiple of {SHARE_BYTES} bytes, "
            f"got indices from {used[0][0]} and lengths {sorted(sizes)}."
        )
    return b"".join(
        Shamir.combine(
            [(index, share[start : start + SHARE_BYTES]) for index, share in used], ssss=False
        )
        for start in range(0, size, SHARE_BYTES)
    )


@dataclass(frozen=True)
class SharePair:
    """One holder's shares of one site's two secrets, 16 bytes each. At most one is ever told."""

    self_mask: bytes = field(repr=False)
    masking_key: bytes = field(repr=False)


def encrypt_shares(channel_key: bytes, pair: SharePair, associated_data: bytes) -> bytes:
    """A box of BOX_BYTES: fresh nonce, ChaCha20-Poly1305 ciphertext and tag (RFC 8439).

    associated_data: transcript.share_box_data.
    """
    if len(pair.self_mask) != SHARE_BYTES or len(pair.masking_key) != SHARE_BYTES:
        raise FoedusError(
            f"Expected two shares of {SHARE_BYTES} bytes, got {len(pair.self_mask)} and "
            f"{len(pair.masking_key)}."
        )
    return seal(channel_key, pair.self_mask + pair.masking_key, associated_data)


def decrypt_shares(channel_key: bytes, box: bytes, associated_data: bytes) -> SharePair:
    """Errors: WireError BAD_SIGNATURE where a byte of box, key or associated data differs."""
    if len(box) != BOX_BYTES:
        raise WireError(
            RefusalReason.MALFORMED_REQUEST,
            f"Expected a box of {BOX_BYTES} bytes, got {len(box)}.",
        )
    plain = unseal(channel_key, box, associated_data)
    return SharePair(plain[:SHARE_BYTES], plain[SHARE_BYTES:])


def seal(key: bytes, plain: bytes, associated_data: bytes, nonce: bytes | None = None) -> bytes:
    """nonce || ciphertext || tag. nonce: 12 bytes, fresh where left out; given by tests alone."""
    nonce = os.urandom(NONCE_BYTES) if nonce is None else nonce
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plain, associated_data)


def unseal(key: bytes, box: bytes, associated_data: bytes) -> bytes:
    """Errors: WireError BAD_SIGNATURE, with nothing said of what differed."""
    try:
        return ChaCha20Poly1305(key).decrypt(box[:NONCE_BYTES], box[NONCE_BYTES:], associated_data)
    except (InvalidTag, ValueError) as error:
        raise WireError(
            RefusalReason.BAD_SIGNATURE, "Expected a box sealed for this site and session."
        ) from error
