"""Numbers of the ring on the wire: `bits` each, little-endian, without gaps between them.

Number i has the bits from i * bits on. A group is the least number of values that fills whole
32-bit words (8 values in 5 words for 20 bits, 4 in 3 for 24); all groups of a block are worked on
at once, one place in the group at a time.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import gcd

import numpy as np
from numpy.typing import NDArray

from protocol.errors import WireError
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.masks import BLOCK, RingArray, check_ring_array, modulus_mask_of

Bytes = NDArray[np.uint8]


def packed_size(num_values: int, bits: int) -> int:
    """Bytes of num_values packed: ceil(n * bits / 8)."""
    return (num_values * bits + 7) // 8


def pack_bits(values: RingArray, bits: int) -> Bytes:
    """(n,) numbers below 2^bits -> (ceil(n * bits / 8),) uint8.

    Of numbers of 2^bits and more only the lower bits are packed. With 32 bits there is nothing to
    pack: the bytes are those of `values`, in the same memory.
    """
    check_ring_array(values)
    modulus_mask_of(bits)
    if bits == 32:
        return values.astype("<u4", copy=False).view(np.uint8)
    packed = np.empty(packed_size(values.size, bits), dtype=np.uint8)
    # BLOCK is a multiple of every group, so that blocks start on whole words.
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        at = start * bits // 8
        size = packed_size(block.size, bits)
        packed[at : at + size] = _pack_block(block, bits)[:size]
    return packed


def _group(bits: int) -> tuple[int, int]:
    """(values, words) of a group."""
    num_values = 32 // gcd(bits, 32)
    return num_values, num_values * bits // 32


def _pack_block(block: RingArray, bits: int) -> Bytes:
    num_values, num_words = _group(bits)
    num_groups = -(-block.size // num_values)
    padded = np.zeros(num_groups * num_values, dtype=np.uint32)
    np.bitwise_and(block, modulus_mask_of(bits), out=padded[: block.size])
    columns = padded.reshape(num_groups, num_values)
    words = np.zeros((num_groups, num_words), dtype="<u4")
    for place in range(num_values):
        word, shift = divmod(place * bits, 32)
        words[:, word] |= columns[:, place] << np.uint32(shift)
        if shift + bits > 32:
            words[:, word + 1] |= columns[:, place] >> np.uint32(32 - shift)
    return words.reshape(-1).view(np.uint8)


def unpack_bits(data: Bytes, num_values: int, bits: int) -> RingArray:
    """The reverse of pack_bits, (num_values,) uint32.

    Errors: WireError MALFORMED where it is no flat uint8 array of the right size, or a bit that
    belongs to no number is set: there is one encoding of each list of numbers.
    """
    values = np.empty(max(num_values, 0), dtype=np.uint32)
    for start, numbers in unpacked_blocks(data, num_values, bits):
        values[start : start + numbers.size] = numbers
    return values


def unpacked_blocks(data: Bytes, num_values: int, bits: int) -> Iterator[tuple[int, RingArray]]:
    """unpack_bits in parts: (index of the first number, numbers), so that none of it is held.

    Errors: as unpack_bits, all of them before the first part.
    """
    modulus_mask_of(bits)
    expected = packed_size(num_values, bits)
    if data.dtype != np.uint8 or data.shape != (expected,):
        raise WireError(
            RejectionReason.MALFORMED,
            f"Expected {expected} bytes for {num_values} numbers of {bits} bits, got "
            f"{data.dtype} {data.shape}.",
        )
    spare_bits = 8 * expected - num_values * bits
    if spare_bits and data[-1] >> (8 - spare_bits):
        raise WireError(RejectionReason.MALFORMED, "Expected zeros after the last number.")
    flat = np.ascontiguousarray(data)
    for start in range(0, num_values, BLOCK):
        count = min(BLOCK, num_values - start)
        at = start * bits // 8
        part = flat[at : at + packed_size(count, bits)]
        yield start, part.view("<u4") if bits == 32 else _unpack_block(part, bits)[:count]


def _unpack_block(data: Bytes, bits: int) -> RingArray:
    num_values, num_words = _group(bits)
    num_groups = -(-data.size // (4 * num_words))
    padded = np.zeros(num_groups * 4 * num_words, dtype=np.uint8)
    padded[: data.size] = data
    words = padded.view("<u4").reshape(num_groups, num_words)
    columns = np.empty((num_groups, num_values), dtype=np.uint32)
    for place in range(num_values):
        word, shift = divmod(place * bits, 32)
        value = words[:, word] >> np.uint32(shift)
        if shift + bits > 32:
            value |= words[:, word + 1] << np.uint32(32 - shift)
        np.bitwise_and(value, modulus_mask_of(bits), out=columns[:, place])
    return columns.reshape(-1)
