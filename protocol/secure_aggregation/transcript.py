"""What is signed, and what keys are derived from: one unambiguous string of bytes per purpose.

Every such string starts with the domain, the version and the purpose's own label, and each field
carries its type and length. So no two purposes and no two lists of fields ever give the same bytes,
and a signature, a key or a sealed box made for one run, round, attempt, pair or purpose is void in
any other.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from protocol.secure_aggregation.encoding import DOMAIN as DOMAIN
from protocol.secure_aggregation.encoding import VERSION as VERSION
from protocol.secure_aggregation.encoding import encode_fields as encode_fields
from protocol.secure_aggregation.ring import RingParameters


@dataclass(frozen=True)
class SessionContext:
    """Which session this is; both sides must hold equal ones or nothing they make fits together.

    run_id: 32 hex digits; round and attempt from 1; roster_digest: Roster.digest; layout_digest:
    protocol.adapter.layout_digest of what is summed; degree: as set, see graph.resolve_degree.
    """

    run_id: str
    round: int
    attempt: int
    roster_digest: str
    ring: RingParameters
    layout_digest: str
    degree: int = 0

    def digest(self) -> bytes:
        """SHA-256 (32 bytes) over all of it."""
        ring = self.ring
        content = encode_fields(
            "session",
            self.run_id,
            self.round,
            self.attempt,
            self.roster_digest,
            self.layout_digest,
            self.degree,
            ring.bits,
            ring.num_sites_max,
            float(ring.coordinate_bound),
            ring.weight_cap,
        )
        return hashlib.sha256(content).digest()


def advertisement_to_sign(
    context: SessionContext,
    member_id: str,
    encryption_key: bytes,
    masking_key: bytes,
    seed_commitment: bytes,
) -> bytes:
    """What a site signs when it advertises its public keys of this session."""
    return encode_fields(
        "advertisement", context.digest(), member_id, encryption_key, masking_key, seed_commitment
    )


def cohort_digest(context: SessionContext, advertisements: Sequence[tuple[str, bytes]]) -> bytes:
    """SHA-256 (32 bytes) of the relayed keys: (member_id, Advertisement.to_bytes()), in any order.

    Whoever was relayed another list has another digest, and opens none of the others' boxes.
    """
    fields = [part for entry in sorted(advertisements) for part in entry]
    return hashlib.sha256(encode_fields("cohort", context.digest(), *fields)).digest()


def graph_seed(context: SessionContext, cohort: bytes) -> bytes:
    """Public randomness (32 bytes) of the mask graph, known only once all keys are advertised."""
    return hashlib.sha256(encode_fields("graph", context.digest(), cohort)).digest()


def share_box_data(context: SessionContext, cohort: bytes, sender: str, receiver: str) -> bytes:
    """Associated data of the box with the shares that `sender` gives `receiver`."""
    return encode_fields("share box", context.digest(), cohort, sender, receiver)


def survivors_to_sign(context: SessionContext, cohort: bytes, survivors: Sequence[str]) -> bytes:
    """What a survivor signs in `confirm`: the sites whose masked input is in the sum.

    The order in which the list came does not matter.
    """
    return encode_fields("survivors", context.digest(), cohort, *sorted(survivors))


def channel_info(context: SessionContext, sender: str, receiver: str) -> bytes:
    """HKDF info of the key that seals boxes from `sender` to `receiver`; one key a direction."""
    return encode_fields("channel key", context.digest(), sender, receiver)


def pairwise_mask_info(context: SessionContext, one: str, other: str) -> bytes:
    """HKDF info of the mask that two sites share, the same for both of them."""
    return encode_fields("pairwise mask", context.digest(), *sorted((one, other)))


def self_mask_info(context: SessionContext, member_id: str) -> bytes:
    """HKDF info of a site's own mask."""
    return encode_fields("self mask", context.digest(), member_id)


def seed_commitment_info(context: SessionContext, member_id: str) -> bytes:
    """HKDF info of the public commitment to a site's self-mask seed."""
    return encode_fields("self mask commitment", context.digest(), member_id)


def masking_key_info(context: SessionContext, member_id: str) -> bytes:
    """HKDF info of a site's private masking key, derived from its seed."""
    return encode_fields("masking key", context.digest(), member_id)
