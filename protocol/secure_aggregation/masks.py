"""Masks: a ChaCha20 keystream (RFC 8439) read as numbers of the ring.

A mask's key is used for one mask only (it is derived for one session and one pair), so the nonce
and the first counter are zero.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20
from numpy.typing import NDArray

from protocol.errors import FoedusError

RingArray = NDArray[np.uint32]

MASK_KEY_BYTES = 32
RING_BITS = (16, 20, 24, 32)

# Coordinates worked on at a time: numbers, keystream and zeros of a block fit a core's cache.
BLOCK = 1 << 15
_ZEROS = bytes(4 * BLOCK)


def keystream(key: bytes, counter_and_nonce: bytes = bytes(16)) -> CipherContext:
    """ChaCha20 (RFC 8439, 2.4): encrypting zeros gives the keystream.

    key: 32 bytes; counter_and_nonce: 4 bytes little-endian, then 12.
    """
    if len(key) != MASK_KEY_BYTES:
        raise FoedusError(f"Expected a ChaCha20 key of {MASK_KEY_BYTES} bytes, got {len(key)}.")
    return Cipher(ChaCha20(key, counter_and_nonce), mode=None).encryptor()


class RandomStream:
    """Cryptographic random bytes at memory speed: ChaCha20 under a key of the operating system's.

    Call it with a number of bytes. key: 32 bytes, for tests alone.
    """

    def __init__(self, key: bytes | None = None) -> None:
        self._stream = keystream(os.urandom(MASK_KEY_BYTES) if key is None else key)

    def __call__(self, count: int) -> bytes:
        """The next `count` bytes."""
        return self._stream.update(_ZEROS[:count] if count <= len(_ZEROS) else bytes(count))


def pairwise_sign(own_id: str, peer_id: str) -> int:
    """+1 where the own id is the lower one, else -1: of a pair one adds what the other subtracts.

    Errors: FoedusError where both are the same.
    """
    if own_id == peer_id:
        raise FoedusError(f"Expected two sites for a pairwise mask, got {own_id} twice.")
    return 1 if own_id < peer_id else -1


def expand(seed: bytes, num_values: int, bits: int) -> RingArray:
    """The mask of a 32-byte seed: (num_values,) uint32, uniform in [0, 2^bits).

    The i-th number is the i-th little-endian 32-bit word of the keystream, modulo 2^bits.
    """
    mask = np.zeros(num_values, dtype=np.uint32)
    add_mask_into(mask, seed, 1, bits)
    return mask


def add_mask_into(total: RingArray, seed: bytes, sign: int, bits: int) -> None:
    """total := (total + sign * mask) mod 2^bits, in place; sign is +1 or -1."""
    add_masks_into(total, [(seed, sign)], bits)


def add_masks_into(total: RingArray, masks: Sequence[tuple[bytes, int]], bits: int) -> None:
    """The same for many (seed, sign): one pass over `total`, which stays in the cache.

    2^bits divides 2^32, so uint32 arithmetic wraps harmlessly and one reduction at the end is
    enough. Errors: FoedusError on another dtype, a sign that is neither, or unknown bits.
    """
    check_ring_array(total)
    modulus_mask = modulus_mask_of(bits)
    for _, sign in masks:
        if sign not in (1, -1):
            raise FoedusError(f"Expected +1 or -1 as a mask's sign, got {sign!r}.")
    streams = [
        (keystream(seed).update_into, np.add if sign == 1 else np.subtract) for seed, sign in masks
    ]
    words = np.empty(min(BLOCK, max(1, total.size)), dtype="<u4")
    word_bytes = words.data.cast("B")
    for start in range(0, total.size, BLOCK):
        block = total[start : start + BLOCK]
        count = block.size
        zeros = _ZEROS if count == BLOCK else _ZEROS[: 4 * count]
        for fill, combine in streams:
            fill(zeros, word_bytes[: 4 * count])
            combine(block, words[:count], out=block)
        if bits < 32:
            np.bitwise_and(block, modulus_mask, out=block)


def modulus_mask_of(bits: int) -> np.uint32:
    """2^bits - 1. Errors: FoedusError on bits not in RING_BITS."""
    if bits not in RING_BITS:
        raise FoedusError(f"Expected {RING_BITS} bits per coordinate, got {bits!r}.")
    return np.uint32((1 << bits) - 1)


def check_ring_array(values: RingArray) -> None:
    """Errors: FoedusError where it is no one-dimensional, contiguous array of uint32."""
    if values.dtype != np.uint32 or values.ndim != 1 or not values.flags.c_contiguous:
        raise FoedusError(
            f"Expected a flat contiguous array of uint32, got {values.dtype} {values.shape}."
        )
