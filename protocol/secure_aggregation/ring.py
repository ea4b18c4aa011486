"""Updates as whole numbers modulo 2^bits, so that masks hide them perfectly and sums are exact.

A site sends w * x for its update x and its weight w, and w itself as one more coordinate. With
levels L and scale s = L / (coordinate_bound * weight_cap), the number for a coordinate is

    q = floor(s * w * x + u),   u uniform in [0, 1): stochastic rounding, E[q] = s * w * x.

Theorem: no sum of up to num_sites_max inputs wraps around. |x| <= coordinate_bound and
w <= weight_cap give |s * w * x| <= L up to float64 rounding, which is below 2^-19 since L < 2^31,
and with u < 1 so |q| <= L + 1. L is chosen as floor((2^(bits-1) - 1) / num_sites_max) - 1, hence
|sum of q| <= num_sites_max * (L + 1) <= 2^(bits-1) - 1: it is in the range of a signed number of
`bits` bits and read back exactly. Weights are whole and count by ones; their sum is at most
num_sites_max * weight_cap <= 2^bits - 1, which is checked, and read back unsigned.

u has 32 random bits, so that |E[q] - s * w * x| <= 2^-20: rounding errors average out over sites
and rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from protocol.errors import FoedusError
from protocol.secure_aggregation.masks import (
    BLOCK,
    RandomStream,
    RingArray,
    check_ring_array,
    modulus_mask_of,
)
from protocol.secure_aggregation.masks import RING_BITS as RING_BITS
from protocol.secure_aggregation.packing import Bytes, unpacked_blocks
from protocol.secure_aggregation.packing import pack_bits as pack_bits
from protocol.secure_aggregation.packing import packed_size as packed_size
from protocol.secure_aggregation.packing import unpack_bits as unpack_bits

RandomBytes = Callable[[int], bytes]
Values = NDArray[np.floating[Any]]

# A clip in float32 may end a hair above its bound: a coordinate may exceed it by this share.
HEADROOM = 1e-4


@dataclass(frozen=True)
class RingParameters:
    """How updates become numbers of the ring.

    bits: of each coordinate, on the wire too; num_sites_max: inputs in one sum at most;
    coordinate_bound: |x| of each coordinate of an update at most; weight_cap: of a site's weight.
    Errors: FoedusError where the bits are too few for the sites and weights.
    """

    bits: int
    num_sites_max: int
    coordinate_bound: float
    weight_cap: int

    def __post_init__(self) -> None:
        modulus_mask_of(self.bits)
        if self.num_sites_max < 1 or self.weight_cap < 1:
            raise FoedusError(
                f"Expected at least one site and a weight cap of 1, got {self.num_sites_max} sites "
                f"and a cap of {self.weight_cap}."
            )
        if not (math.isfinite(self.coordinate_bound) and self.coordinate_bound > 0):
            raise FoedusError(f"Expected a positive bound, got {self.coordinate_bound!r}.")
        if self.levels < 1 or self.num_sites_max * self.weight_cap >= self.modulus:
            raise FoedusError(
                f"Expected a ring that holds the sum of {self.num_sites_max} sites with weights up "
                f"to {self.weight_cap}, got secure_aggregation.bits={self.bits}. Take more bits, a "
                "lower federation.weight_cap or federation.weighting=uniform."
            )

    @classmethod
    def choose(
        cls, bits: int, num_sites: int, norm_bound_l2: float, weight_cap: int
    ) -> RingParameters:
        """Parameters for updates whose L2 norm, and so each coordinate, is under norm_bound_l2.

        weight_cap: 1 where all sites weigh the same. Errors: as the class.
        """
        return cls(bits, num_sites, norm_bound_l2 * (1 + HEADROOM), weight_cap)

    @property
    def modulus(self) -> int:
        """2^bits."""
        return 1 << self.bits

    @property
    def levels(self) -> int:
        """L: whole numbers between zero and the largest weighted coordinate."""
        return ((1 << (self.bits - 1)) - 1) // self.num_sites_max - 1

    @property
    def scale(self) -> float:
        """Ring units per unit of a weighted coordinate w * x."""
        return self.levels / (self.coordinate_bound * self.weight_cap)

    @property
    def resolution(self) -> float:
        """1 / scale: a site's rounding moves the sum of w * x by less than this."""
        return 1.0 / self.scale


def quantise(
    values: Values, params: RingParameters, rng_bits: RandomBytes | None = None, weight: int = 1
) -> RingArray:
    """weight * values (n,) as (n,) uint32 in [0, 2^bits), stochastically rounded: unbiased.

    rng_bits: gives that many random bytes; a fresh RandomStream where it is left out.
    Errors: FoedusError where a value is NaN or over the bound, or the weight is not in 1..cap.
    """
    quantised = np.empty(values.shape, dtype=np.uint32)
    _quantise_into(quantised, values, params, rng_bits or RandomStream(), weight)
    return quantised


def encode_input(
    values: Values, weight: int, params: RingParameters, rng_bits: RandomBytes | None = None
) -> RingArray:
    """What a site masks: quantise(values) times weight, and the weight as one more coordinate.

    values (n,) -> (n + 1,) uint32. Errors: as quantise.
    """
    encoded = np.empty(values.size + 1, dtype=np.uint32)
    _quantise_into(encoded[:-1], values, params, rng_bits or RandomStream(), weight)
    encoded[-1] = weight
    return encoded


def _quantise_into(
    quantised: RingArray, values: Values, params: RingParameters, rng: RandomBytes, weight: int
) -> None:
    if values.ndim != 1:
        raise FoedusError(f"Expected a flat array of coordinates, got shape {values.shape}.")
    if isinstance(weight, bool) or not 1 <= weight <= params.weight_cap:
        raise FoedusError(f"Expected a whole weight from 1 to {params.weight_cap}, got {weight!r}.")
    bound, factor = params.coordinate_bound, params.scale * weight
    modulus_mask = modulus_mask_of(params.bits)
    scaled = np.empty(min(BLOCK, max(1, values.size)), dtype=np.float64)
    dither = np.empty_like(scaled)
    for start in range(0, values.size, BLOCK):
        block = values[start : start + BLOCK]
        x, u = scaled[: block.size], dither[: block.size]
        np.multiply(np.frombuffer(rng(4 * block.size), dtype="<u4"), 2.0**-32, out=u)
        # In float64 (a float32 maximum would round the bound first), and so that NaN fails it too.
        if not (float(block.max()) <= bound and float(block.min()) >= -bound):
            raise FoedusError(
                f"Expected every coordinate within +-{bound:.6g}, got NaN or more in coordinates "
                f"{start} to {start + block.size - 1}. Clip the update before it is quantised."
            )
        np.multiply(block, factor, out=x, dtype=np.float64)
        np.add(x, u, out=x)
        # Above zero, cutting off the fraction rounds down; 2^31 is taken off again modulo 2^32.
        np.add(x, 2.0**31, out=x)
        numbers = quantised[start : start + block.size]
        np.copyto(numbers, x, casting="unsafe")
        np.subtract(numbers, np.uint32(1 << 31), out=numbers)
        np.bitwise_and(numbers, modulus_mask, out=numbers)


def decode_sum(
    total: RingArray, params: RingParameters, num_sites: int
) -> tuple[NDArray[np.float64], int]:
    """(weighted mean (n,), sum of weights) from the unmasked sum (n + 1,) of num_sites inputs.

    Errors: FoedusError where the weights' sum is not in num_sites..num_sites * cap: then masks and
    sum do not belong together, or a site sent nonsense.
    """
    check_ring_array(total)
    if total.size == 0 or not 1 <= num_sites <= params.num_sites_max:
        raise FoedusError(
            f"Expected a sum with its weight, of 1 to {params.num_sites_max} sites, got "
            f"{total.size} coordinates of {num_sites} sites."
        )
    weight = int(total[-1])
    if not num_sites <= weight <= num_sites * params.weight_cap:
        raise FoedusError(
            f"Expected the weights of {num_sites} sites to sum to {num_sites} to "
            f"{num_sites * params.weight_cap}, got {weight}: masks and sum do not belong together. "
            "The round's update is to be thrown away."
        )
    return _signed_times(total[:-1], params.bits, params.resolution / weight), weight


def dequantise(total: RingArray, params: RingParameters) -> NDArray[np.float64]:
    """A sum of quantised inputs (n,) as float64: the sum of w * x up to rounding."""
    check_ring_array(total)
    return _signed_times(total, params.bits, params.resolution)


def _signed_times(total: RingArray, bits: int, factor: float) -> NDArray[np.float64]:
    signed = total.view(np.int32)
    if bits < 32:
        # The ring's sign bit is moved to the top and back: an arithmetic shift extends it.
        shift = 32 - bits
        signed = (total << np.uint32(shift)).view(np.int32)
        np.right_shift(signed, shift, out=signed)
    return np.multiply(signed, factor, dtype=np.float64)


def add_into(total: RingArray, values: RingArray, params: RingParameters) -> None:
    """total := (total + values) mod 2^bits, in place. Errors: FoedusError on unequal shapes."""
    check_ring_array(total)
    check_ring_array(values)
    if total.shape != values.shape:
        raise FoedusError(f"Expected {total.size} coordinates to add, got {values.size}.")
    np.add(total, values, out=total)
    if params.bits < 32:
        np.bitwise_and(total, modulus_mask_of(params.bits), out=total)


def add_packed_into(total: RingArray, packed: Bytes, params: RingParameters) -> None:
    """total := (total + unpack_bits(packed)) mod 2^bits, in place and block by block.

    Errors: WireError, as unpack_bits; then `total` is as before.
    """
    check_ring_array(total)
    modulus_mask = modulus_mask_of(params.bits)
    for start, numbers in unpacked_blocks(packed, total.size, params.bits):
        block = total[start : start + numbers.size]
        np.add(block, numbers, out=block)
        np.bitwise_and(block, modulus_mask, out=block)
