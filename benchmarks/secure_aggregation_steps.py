"""Both sides of `secure_aggregation`: the steps of a round, each called once and timed.

Flower's are the building blocks of `flwr.common.secure_aggregation`, in the order and with the
values in which its secaggplus_mod and SecAggPlusWorkflow use them (only for comparison: its masks
come from a 32-bit seed). Each side's steps for one site or one mask are timed; the benchmark
multiplies them by how often they occur.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol, TypeVar

import numpy as np
from flwr.common import bytes_to_ndarray, ndarray_to_bytes
from flwr.common.secure_aggregation import ndarrays_arithmetic as arithmetic
from flwr.common.secure_aggregation.crypto.shamir import combine_shares, create_shares
from flwr.common.secure_aggregation.crypto.symmetric_encryption import (
    decrypt,
    encrypt,
    generate_shared_key,
)
from flwr.common.secure_aggregation.quantization import dequantize, quantize
from flwr.common.secure_aggregation.secaggplus_utils import (
    pseudo_rand_gen,
    share_keys_plaintext_concat,
    share_keys_plaintext_separate,
)
from flwr.supercore.primitives.asymmetric import (
    bytes_to_private_key,
    bytes_to_public_key,
    generate_key_pairs,
    private_key_to_bytes,
    public_key_to_bytes,
)

from protocol.adapter import FloatArray
from protocol.consortium.identity import SIGNATURE_BYTES, Identity
from protocol.consortium.roster import Member, Roster
from protocol.secure_aggregation import masks, ring, shares, transcript
from protocol.secure_aggregation.keys import (
    ADVERTISEMENT_BYTES,
    Advertisement,
    SessionKeys,
    channel_key,
    opens_masking_key,
    opens_self_mask,
    pairwise_mask_seed,
)
from protocol.secure_aggregation.transcript import SessionContext

T = TypeVar("T")

# Flower's defaults for its workflow; foedus's ring has as many bits on the wire at most.
CLIPPING_RANGE, TARGET_RANGE, MODULUS, MAX_WEIGHT = 8.0, 1 << 22, 1 << 32, 1000
BITS = 32
# Masks of ours are added many at a time, as a site does; more than this tells nothing new.
_MASKS_AT_ONCE = 8
# Calls of a step that takes microseconds.
_OFTEN = 20
_MEMBER_ID_BYTES = 16


@dataclass(frozen=True)
class SecretSeconds:
    """What does not depend on the update's size.

    advertise: one site's keys; verify: one site's signature; sign: of the survivor list; split:
    both secrets of one site; box: one sealed and one opened; agree: on one pairwise mask key;
    open_self, open_key: one secret from its shares.
    """

    advertise: float
    verify: float
    sign: float
    split: float
    box: float
    agree: float
    open_self: float
    open_key: float
    bytes_once: int
    bytes_per_neighbour: int


@dataclass(frozen=True)
class VectorSeconds:
    """What grows with the update: encode (round), mask (one mask made and added), pack, accept (the
    coordinator unpacks and adds one input), decode (the sum back to floats)."""

    encode: float
    mask: float
    pack: float
    accept: float
    decode: float
    bytes_up: int


class Side(Protocol):
    """One of the two that are compared."""

    def secrets(self, num_holders: int, threshold: int) -> SecretSeconds:
        """Time the steps with keys and shares; num_holders counts the site itself."""

    def vector(self, update: FloatArray) -> VectorSeconds:
        """Time the steps on an update (n,)."""


def timed(step: Callable[[], T], times: int = 1) -> tuple[float, T]:
    """(seconds of processor time of one call, over all threads; the result).

    times: calls of which the mean counts, for steps of microseconds that a round repeats.
    """
    start = time.process_time()
    result = step()
    for _ in range(times - 1):
        result = step()
    return (time.process_time() - start) / times, result


class Foedus:
    """protocol.secure_aggregation, as its sessions use it."""

    def secrets(self, num_holders: int, threshold: int) -> SecretSeconds:
        """See Side."""
        anna, ben = Identity.generate(), Identity.generate()
        roster = Roster("Benchmark", 1, (Member("A", anna.public_key), Member("B", ben.public_key)))
        parameters = ring.RingParameters.choose(BITS, num_holders, CLIPPING_RANGE, MAX_WEIGHT)
        context = SessionContext("ab" * 16, 1, 1, roster.digest, parameters, "cd" * 32)
        ends = (anna.member_id, ben.member_id)
        advertise, (keys, ad) = timed(lambda: _advertise(context, anna), _OFTEN)
        peer_keys, peer_ad = _advertise(context, ben)
        verify, _ = timed(lambda: ad.verify(context, roster), _OFTEN)
        confirmed = transcript.survivors_to_sign(context, bytes(32), ends)
        sign, _ = timed(lambda: anna.sign(confirmed), _OFTEN)
        own = keys.masking_private(context, anna.member_id)
        agree, _ = timed(
            lambda: pairwise_mask_seed(own, peer_ad.masking_key, context, *ends), _OFTEN
        )
        split, (selves, masking) = timed(
            lambda: [
                shares.split(secret, threshold, num_holders)
                for secret in (keys.self_mask_seed, keys.masking_seed)
            ]
        )
        data = transcript.share_box_data(context, bytes(32), *ends)

        def box() -> bytes:
            key = channel_key(keys.encryption_private, peer_ad.encryption_key, context, *ends)
            sealed = shares.encrypt_shares(key, shares.SharePair(selves[0], masking[0]), data)
            key = channel_key(peer_keys.encryption_private, ad.encryption_key, context, *ends)
            shares.decrypt_shares(key, sealed, data)
            return sealed

        boxed, sealed = timed(box, _OFTEN)
        open_self, open_key = _open_seconds(selves, masking, threshold, context, ad)
        # A neighbour's box, and later one share of a secret of its own, each with its member id.
        per_neighbour = len(sealed) + shares.SHARE_BYTES + 2 * _MEMBER_ID_BYTES
        once = ADVERTISEMENT_BYTES + SIGNATURE_BYTES
        steps = (advertise, verify, sign, split, boxed, agree, open_self, open_key)
        return SecretSeconds(*steps, bytes_once=once, bytes_per_neighbour=per_neighbour)

    def vector(self, update: FloatArray) -> VectorSeconds:
        """See Side."""
        parameters = ring.RingParameters.choose(BITS, 50, CLIPPING_RANGE, MAX_WEIGHT)
        encode, values = timed(lambda: ring.encode_input(update, MAX_WEIGHT, parameters))
        plain = values.copy()
        some = [(os.urandom(32), 1) for _ in range(_MASKS_AT_ONCE)]
        mask, _ = timed(lambda: masks.add_masks_into(values, some, BITS))
        pack, packed = timed(lambda: ring.pack_bits(values, BITS))
        total = np.zeros_like(values)
        accepted, _ = timed(lambda: ring.add_packed_into(total, packed, parameters))
        masks.add_masks_into(total, [(seed, -1) for seed, _ in some], BITS)
        _expect(np.array_equal(total, plain))
        decode, (mean, _) = timed(lambda: ring.decode_sum(total, parameters, 1))
        _expect(bool(np.abs(mean - update).max() < 1e-3))
        return VectorSeconds(encode, mask / _MASKS_AT_ONCE, pack, accepted, decode, packed.nbytes)


def _advertise(context: SessionContext, identity: Identity) -> tuple[SessionKeys, Advertisement]:
    keys = SessionKeys.generate()
    return keys, keys.advertise(context, identity)


def _open_seconds(
    selves: Sequence[bytes],
    masking: Sequence[bytes],
    threshold: int,
    context: SessionContext,
    ad: Advertisement,
) -> tuple[float, float]:
    """Both kinds of secret put together from their shares and checked, once each."""
    seconds = []
    for parts, opens in ((selves, opens_self_mask), (masking, opens_masking_key)):
        held = dict(enumerate(parts, start=1))
        taken, right = timed(partial(_opened, held, threshold, context, ad, opens))
        _expect(right)
        seconds.append(taken)
    return seconds[0], seconds[1]


def _opened(
    held: Mapping[int, bytes],
    threshold: int,
    context: SessionContext,
    ad: Advertisement,
    opens: Callable[[bytes, SessionContext, Advertisement], bool],
) -> bool:
    return opens(shares.combine(held, threshold), context, ad)


class Flower:
    """flwr.common.secure_aggregation, as secaggplus_mod and SecAggPlusWorkflow use it."""

    def secrets(self, num_holders: int, threshold: int) -> SecretSeconds:
        """See Side. No signatures: the keys are not authenticated."""

        def two_pairs() -> list[tuple[bytes, bytes]]:
            pairs = [generate_key_pairs() for _ in range(2)]
            return [(private_key_to_bytes(s), public_key_to_bytes(p)) for s, p in pairs]

        advertise, ((own, public), (channel, _)) = timed(two_pairs, _OFTEN)
        (_, peer_public), _ = two_pairs()
        seed = os.urandom(32)
        split, (selves, masking) = timed(
            lambda: [create_shares(secret, threshold, num_holders) for secret in (seed, own)]
        )

        def agreed(private: bytes, public: bytes) -> bytes:
            return generate_shared_key(bytes_to_private_key(private), bytes_to_public_key(public))

        def box() -> bytes:
            # A site keeps the key with which it sealed its box for the boxes that it opens.
            key = agreed(channel, peer_public)
            plain = share_keys_plaintext_concat(1, 2, selves[0], masking[0])
            sealed = encrypt(key, plain)
            share_keys_plaintext_separate(decrypt(key, sealed))
            return sealed

        boxed, sealed = timed(box, _OFTEN)
        agree, _ = timed(lambda: agreed(own, peer_public), _OFTEN)
        open_self, first = timed(lambda: combine_shares(selves[:threshold]))
        open_key, second = timed(lambda: combine_shares(masking[:threshold]))
        _expect((first, second) == (seed, own))
        # Node ids are 8 bytes. An unmask reply holds a seed share for each neighbour that survived.
        per_neighbour = len(sealed) + len(selves[0]) + 2 * 8
        steps = (advertise, 0.0, 0.0, split, boxed, agree, open_self, open_key)
        return SecretSeconds(*steps, bytes_once=2 * len(public), bytes_per_neighbour=per_neighbour)

    def vector(self, update: FloatArray) -> VectorSeconds:
        """See Side."""

        def encode_update() -> list[Any]:
            # A site of the greatest weight: its ratio is 1.
            weighted = arithmetic.parameters_multiply([update], 1.0)
            quantised = quantize(weighted, CLIPPING_RANGE, TARGET_RANGE)
            return arithmetic.factor_combine(TARGET_RANGE, quantised)

        encode, values = timed(encode_update)
        shapes = [array.shape for array in values]
        seed = os.urandom(32)
        mask, masked = timed(
            lambda: arithmetic.parameters_addition(values, pseudo_rand_gen(seed, MODULUS, shapes))
        )
        pack, packed = timed(
            lambda: [ndarray_to_bytes(a) for a in arithmetic.parameters_mod(masked, MODULUS)]
        )
        # Its workflow keeps the first input as the total and adds the others to it.
        zeros = [np.zeros_like(array) for array in masked]
        accept, total = timed(
            lambda: arithmetic.parameters_addition(zeros, [bytes_to_ndarray(b) for b in packed])
        )
        total = arithmetic.parameters_subtraction(total, pseudo_rand_gen(seed, MODULUS, shapes))

        def decode_total() -> Any:
            factor, rest = arithmetic.factor_extract(arithmetic.parameters_mod(total, MODULUS))
            (mean,) = dequantize(rest, CLIPPING_RANGE, TARGET_RANGE)
            mean *= TARGET_RANGE / factor
            return mean

        decode, mean = timed(decode_total)
        _expect(bool(np.abs(mean - update).max() < 1e-3))
        return VectorSeconds(encode, mask, pack, accept, decode, sum(map(len, packed)))


def _expect(right: bool) -> None:
    if not right:
        raise AssertionError("The timed steps did not give the update back.")
