"""The secrets of one session at one site, and what is derived from them.

A session has two X25519 key pairs (RFC 7748): one to seal shares, one to agree on pairwise masks;
and the seed of the site's own mask. All are new in every session, so that opening one session's
secrets tells nothing of another. Derivations: HKDF-SHA256 (RFC 5869), each with an info of its own
from `transcript`.

Two secrets are shared among the sites: the seeds of the self-mask and of the masking key, 16 bytes
each. 128 bits suffice: X25519 itself and the sharing field GF(2^128) offer no more, and since the
session's context and the site's id go into each derivation, guesses cannot be tested against many
sessions at once.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from hmac import compare_digest

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from protocol.consortium.identity import SIGNATURE_BYTES, Identity, verify
from protocol.consortium.roster import Roster
from protocol.errors import FoedusError, WireError
from protocol.reasons import RefusalReason
from protocol.secure_aggregation.transcript import (
    SessionContext,
    advertisement_to_sign,
    channel_info,
    masking_key_info,
    pairwise_mask_info,
    seed_commitment_info,
    self_mask_info,
)

SEED_BYTES = 16
KEY_BYTES = 32
ADVERTISEMENT_BYTES = 3 * KEY_BYTES + SIGNATURE_BYTES
SESSION_KEYS_BYTES = KEY_BYTES + 2 * SEED_BYTES


def _seed(seed: bytes) -> bytes:
    if len(seed) != SEED_BYTES:
        raise FoedusError(f"Expected a seed of {SEED_BYTES} bytes, got {len(seed)}.")
    return seed


def hkdf(secret: bytes, info: bytes, length: int = KEY_BYTES, salt: bytes = b"") -> bytes:
    """HKDF-SHA256, extract and expand (RFC 5869)."""
    return HKDF(SHA256(), length, salt or None, info).derive(secret)


def exchange(private_key: bytes, public_key: bytes) -> bytes:
    """X25519 (RFC 7748): 32 raw bytes each. Never use the result but through hkdf.

    Errors: WireError where the public key is malformed or of low order.
    """
    try:
        peer = X25519PublicKey.from_public_bytes(public_key)
        return X25519PrivateKey.from_private_bytes(private_key).exchange(peer)
    except ValueError as error:
        raise WireError(
            RefusalReason.BAD_SIGNATURE,
            "Expected an X25519 public key of 32 bytes that is not of low order.",
        ) from error


def masking_private_key(seed: bytes, context: SessionContext, member_id: str) -> bytes:
    """The private masking key (32 bytes) of the 16-byte seed that is shared among the sites."""
    return hkdf(_seed(seed), masking_key_info(context, member_id))


def public_key_of(private_key: bytes) -> bytes:
    """The X25519 public key (32 bytes) of a private one. The coordinator compares the public key
    of a reconstructed masking key with the advertised one."""
    return X25519PrivateKey.from_private_bytes(private_key).public_key().public_bytes_raw()


def self_mask_key(seed: bytes, context: SessionContext, member_id: str) -> bytes:
    """The mask key (32 bytes) for masks.expand, of the 16-byte self-mask seed that is shared."""
    return hkdf(_seed(seed), self_mask_info(context, member_id))


def seed_commitment(seed: bytes, context: SessionContext, member_id: str) -> bytes:
    """What a site publishes (32 bytes) so that its reconstructed self-mask seed can be checked."""
    return hkdf(_seed(seed), seed_commitment_info(context, member_id))


def pairwise_mask_seed(
    own_private: bytes, peer_public: bytes, context: SessionContext, own_id: str, peer_id: str
) -> bytes:
    """The mask key (32 bytes) two sites share; both derive the same, whoever is `own`.

    The site with the lower id adds the mask, the other subtracts it: see masks.pairwise_sign.
    """
    shared = exchange(own_private, peer_public)
    return hkdf(shared, pairwise_mask_info(context, own_id, peer_id))


def channel_key(
    own_private: bytes, peer_public: bytes, context: SessionContext, sender: str, receiver: str
) -> bytes:
    """The AEAD key (32 bytes) of boxes from `sender` to `receiver`, from the encryption keys."""
    shared = exchange(own_private, peer_public)
    return hkdf(shared, channel_info(context, sender, receiver))


@dataclass(frozen=True)
class Advertisement:
    """A site's public keys of one session, signed by its identity; relayed by the coordinator.

    encryption_key, masking_key, seed_commitment: 32 bytes each; signature: 64.
    """

    member_id: str
    encryption_key: bytes
    masking_key: bytes
    seed_commitment: bytes
    signature: bytes

    def to_bytes(self) -> bytes:
        """160 bytes: encryption key, masking key, seed commitment, signature."""
        return self.encryption_key + self.masking_key + self.seed_commitment + self.signature

    @classmethod
    def from_bytes(cls, member_id: str, data: bytes) -> Advertisement:
        """Errors: WireError where it has not 160 bytes."""
        if len(data) != ADVERTISEMENT_BYTES:
            raise WireError(
                RefusalReason.MALFORMED_REQUEST,
                f"Expected an advertisement of {ADVERTISEMENT_BYTES} bytes, got {len(data)}.",
            )
        encryption, masking, commitment = (
            data[start : start + KEY_BYTES] for start in range(0, 3 * KEY_BYTES, KEY_BYTES)
        )
        return cls(member_id, encryption, masking, commitment, data[3 * KEY_BYTES :])

    def verify(self, context: SessionContext, roster: Roster) -> None:
        """Errors: WireError UNKNOWN_MEMBER or BAD_SIGNATURE."""
        member = roster.member(self.member_id)
        message = advertisement_to_sign(
            context, self.member_id, self.encryption_key, self.masking_key, self.seed_commitment
        )
        if not verify(member.public_key, message, self.signature):
            raise WireError(
                RefusalReason.BAD_SIGNATURE,
                f"Expected keys that {member.name!r} signed for this session, got others.",
            )


def opens_self_mask(seed: bytes, context: SessionContext, advertised: Advertisement) -> bool:
    """Whether a reconstructed self-mask seed (16 bytes) is the one this site committed to."""
    commitment = seed_commitment(seed, context, advertised.member_id)
    return compare_digest(commitment, advertised.seed_commitment)


def opens_masking_key(seed: bytes, context: SessionContext, advertised: Advertisement) -> bool:
    """Whether a reconstructed masking seed (16 bytes) gives the key that this site advertised."""
    private = masking_private_key(seed, context, advertised.member_id)
    return compare_digest(public_key_of(private), advertised.masking_key)


@dataclass(frozen=True)
class SessionKeys:
    """One site's secrets of one session. Never shown: the text form has none of them.

    encryption_private: 32 bytes; masking_seed and self_mask_seed: 16 bytes each, the two secrets
    that are shared among the neighbours.
    """

    encryption_private: bytes = field(repr=False)
    masking_seed: bytes = field(repr=False)
    self_mask_seed: bytes = field(repr=False)

    @classmethod
    def generate(cls) -> SessionKeys:
        """New ones from the operating system's randomness."""
        return cls(os.urandom(KEY_BYTES), os.urandom(SEED_BYTES), os.urandom(SEED_BYTES))

    def to_bytes(self) -> bytes:
        """64 bytes for the site's session file: as secret as the update itself."""
        return self.encryption_private + self.masking_seed + self.self_mask_seed

    @classmethod
    def from_bytes(cls, data: bytes) -> SessionKeys:
        """Errors: FoedusError where it has not 64 bytes."""
        if len(data) != SESSION_KEYS_BYTES:
            raise FoedusError(
                f"Expected {SESSION_KEYS_BYTES} bytes of session keys, got {len(data)}: the site's "
                "session file is damaged. Delete it; the site then sits out this round."
            )
        middle = KEY_BYTES + SEED_BYTES
        return cls(data[:KEY_BYTES], data[KEY_BYTES:middle], data[middle:])

    def masking_private(self, context: SessionContext, member_id: str) -> bytes:
        """See masking_private_key."""
        return masking_private_key(self.masking_seed, context, member_id)

    def self_mask_key(self, context: SessionContext, member_id: str) -> bytes:
        """See the function self_mask_key."""
        return self_mask_key(self.self_mask_seed, context, member_id)

    def advertise(self, context: SessionContext, identity: Identity) -> Advertisement:
        """The public halves, signed."""
        member_id = identity.member_id
        encryption = public_key_of(self.encryption_private)
        masking = public_key_of(self.masking_private(context, member_id))
        commitment = seed_commitment(self.self_mask_seed, context, member_id)
        message = advertisement_to_sign(context, member_id, encryption, masking, commitment)
        return Advertisement(member_id, encryption, masking, commitment, identity.sign(message))
