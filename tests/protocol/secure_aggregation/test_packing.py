from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import WireError
from protocol.secure_aggregation.masks import BLOCK, RandomStream, RingArray
from protocol.secure_aggregation.ring import (
    RingParameters,
    add_into,
    add_packed_into,
    pack_bits,
    packed_size,
    unpack_bits,
)

BITS = [16, 20, 24, 32]
sizes = st.one_of(st.integers(0, 70), st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3]))


def random_numbers(size: int, bits: int) -> RingArray:
    words = np.frombuffer(RandomStream()(4 * size), dtype=np.uint32)
    return words & np.uint32((1 << bits) - 1)


@given(size=sizes, bits=st.sampled_from(BITS))
def test_packing_takes_bits_over_eight_bytes_and_comes_back(size: int, bits: int) -> None:
    values = random_numbers(size, bits)
    packed = pack_bits(values, bits)
    assert packed.dtype == np.uint8
    assert packed.size == packed_size(size, bits) == -(-size * bits // 8)
    assert np.array_equal(unpack_bits(packed, size, bits), values)


@given(size=st.integers(0, 40), bits=st.sampled_from(BITS))
def test_packed_numbers_are_one_little_endian_whole_number(size: int, bits: int) -> None:
    values = random_numbers(size, bits)
    whole = sum(int(value) << (bits * place) for place, value in enumerate(values))
    assert pack_bits(values, bits).tobytes() == whole.to_bytes(packed_size(size, bits), "little")


@given(
    size=st.integers(1, 30),
    bits=st.sampled_from(BITS),
    difference=st.integers(1, 255),
    data=st.data(),
)
def test_no_two_encodings_mean_the_same(
    size: int, bits: int, difference: int, data: st.DataObject
) -> None:
    values = random_numbers(size, bits)
    packed = pack_bits(values, bits).copy()
    packed[data.draw(st.integers(0, packed.size - 1))] ^= difference
    try:
        unpacked = unpack_bits(packed, size, bits)
    except WireError:
        return
    assert not np.array_equal(unpacked, values)


@given(size=sizes, bits=st.sampled_from(BITS))
def test_adding_packed_numbers_is_adding_the_numbers(size: int, bits: int) -> None:
    params = RingParameters(bits, 5, 1.0, 1)
    values, total = random_numbers(size, bits), random_numbers(size, bits)
    expected = total.copy()
    add_into(expected, values, params)
    add_packed_into(total, pack_bits(values, bits), params)
    assert np.array_equal(total, expected)


def test_refused_bytes_leave_the_sum_as_it_was() -> None:
    params = RingParameters(20, 5, 1.0, 1)
    total = random_numbers(BLOCK + 1, 20)
    before, packed = total.copy(), pack_bits(random_numbers(BLOCK + 1, 20), 20)
    packed[-1] |= 0x80
    for wrong in (packed, packed[:-1]):
        with pytest.raises(WireError):
            add_packed_into(total, wrong, params)
        assert np.array_equal(total, before)


@pytest.mark.parametrize("bits", BITS)
def test_packing_leaves_its_input_alone(bits: int) -> None:
    values = random_numbers(9, bits)
    before = values.copy()
    unpacked = unpack_bits(pack_bits(values, bits), 9, bits)
    unpacked[:] = 0
    assert np.array_equal(values, before)


def test_wrong_sizes_types_and_padding_are_refused() -> None:
    packed = pack_bits(np.arange(3, dtype=np.uint32), 20)
    for wrong in (packed[:-1], np.append(packed, np.uint8(0)), packed.astype(np.int8)):
        with pytest.raises(WireError, match="Expected 8 bytes"):
            unpack_bits(wrong, 3, 20)  # type: ignore[arg-type]
    packed[-1] |= 0x10
    with pytest.raises(WireError, match="zeros after the last number"):
        unpack_bits(packed, 3, 20)
