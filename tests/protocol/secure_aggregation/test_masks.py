from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError
from protocol.secure_aggregation.masks import (
    BLOCK,
    RING_BITS,
    RandomStream,
    add_mask_into,
    add_masks_into,
    expand,
    pairwise_sign,
)

sizes = st.one_of(st.integers(0, 50), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 7]))
seeds = st.binary(min_size=32, max_size=32)


@given(size=sizes, bits=st.sampled_from(RING_BITS), seed=seeds, sign=st.sampled_from([1, -1]))
def test_adding_a_mask_adds_its_expansion_modulo_the_ring(
    size: int, bits: int, seed: bytes, sign: int
) -> None:
    start = expand(bytes(32), size, bits)
    total = start.copy()
    add_mask_into(total, seed, sign, bits)
    expected = (start.astype(np.int64) + sign * expand(seed, size, bits).astype(np.int64)) % (
        1 << bits
    )
    assert np.array_equal(total, expected)
    add_mask_into(total, seed, -sign, bits)
    assert np.array_equal(total, start)


@given(
    size=sizes,
    bits=st.sampled_from(RING_BITS),
    masks=st.lists(st.tuples(seeds, st.sampled_from([1, -1])), max_size=5),
)
def test_many_masks_at_once_are_the_same_as_one_by_one(
    size: int, bits: int, masks: list[tuple[bytes, int]]
) -> None:
    together, singly = expand(bytes(32), size, bits), expand(bytes(32), size, bits)
    add_masks_into(together, masks, bits)
    for seed, sign in masks:
        add_mask_into(singly, seed, sign, bits)
    assert np.array_equal(together, singly)


@given(sites=st.integers(2, 6), bits=st.sampled_from(RING_BITS), size=st.integers(1, 40))
def test_pairwise_masks_of_a_whole_cohort_cancel(sites: int, bits: int, size: int) -> None:
    ids = [os.urandom(16).hex() for _ in range(sites)]
    seeds = {frozenset((a, b)): os.urandom(32) for a in ids for b in ids if a != b}
    total = np.zeros(size, dtype=np.uint32)
    for own in ids:
        masks = [
            (seeds[frozenset((own, peer))], pairwise_sign(own, peer)) for peer in ids if peer != own
        ]
        add_masks_into(total, masks, bits)
        if own != ids[-1]:
            assert size < 8 or total.any()
    assert not total.any()


def test_a_mask_fills_the_ring_evenly_and_a_longer_one_starts_the_same() -> None:
    mask = expand(b"k" * 32, 100_000, bits=20)
    assert mask.max() < 2**20
    assert abs(mask.mean() / 2**20 - 0.5) < 0.005
    lower_bits = np.bincount(mask & 15, minlength=16) / mask.size
    assert np.all(np.abs(lower_bits - 1 / 16) < 0.005)
    assert np.array_equal(expand(b"k" * 32, 7, bits=20), mask[:7])


def test_masks_of_keys_that_differ_in_one_bit_are_unrelated() -> None:
    one, other = expand(bytes(32), 10_000, 32), expand(bytes(31) + b"\x01", 10_000, 32)
    assert np.count_nonzero(one == other) < 3


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_a_key_of_another_length_is_refused(size: int) -> None:
    with pytest.raises(FoedusError, match="32 bytes"):
        expand(bytes(size), 3, 32)


def test_wrong_signs_arrays_and_bits_are_refused() -> None:
    with pytest.raises(FoedusError, match="sign"):
        add_mask_into(np.zeros(3, np.uint32), bytes(32), 0, 32)
    with pytest.raises(FoedusError, match="uint32"):
        add_mask_into(np.zeros(3, np.int64), bytes(32), 1, 32)
    with pytest.raises(FoedusError, match="contiguous"):
        add_mask_into(np.zeros(6, np.uint32)[::2], bytes(32), 1, 32)
    with pytest.raises(FoedusError, match="bits"):
        expand(bytes(32), 3, 31)
    with pytest.raises(FoedusError, match="twice"):
        pairwise_sign("a", "a")


def test_two_random_streams_never_agree() -> None:
    assert RandomStream()(32) != RandomStream()(32)
    stream = RandomStream(bytes(32))
    assert stream(32) != stream(32)
    assert len(stream(5 * BLOCK)) == 5 * BLOCK
