from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError
from protocol.secure_aggregation.masks import BLOCK, RandomStream
from protocol.secure_aggregation.ring import (
    RING_BITS,
    RingParameters,
    add_into,
    decode_sum,
    dequantise,
    encode_input,
    quantise,
)

bits = st.sampled_from(RING_BITS)
bounds = st.floats(1e-6, 1e6)


def always_up(count: int) -> bytes:
    return b"\xff" * count


def always_down(count: int) -> bytes:
    return bytes(count)


EXTREMES: list[Callable[[int], bytes]] = [always_up, always_down]


@given(
    bits=bits,
    sites=st.integers(1, 300),
    cap=st.integers(1, 100),
    bound=bounds,
    float32=st.booleans(),
)
def test_no_sum_wraps_around_at_the_extremes(
    bits: int, sites: int, cap: int, bound: float, float32: bool
) -> None:
    """Largest coordinates, largest weights, all rounding one way, as many sites as may be."""
    try:
        params = RingParameters(bits, sites, bound, cap)
    except FoedusError:
        return
    dtype = np.float32 if float32 else np.float64
    extreme = dtype(bound)
    if float(extreme) > bound:
        extreme = np.nextafter(extreme, dtype(0))
    for rng in EXTREMES:
        one = encode_input(np.array([extreme, -extreme], dtype), cap, params, rng)
        signed = one.astype(np.int64)
        signed[:2] -= (signed[:2] >= params.modulus // 2) * params.modulus
        assert abs(signed[:2]).max() * sites < params.modulus // 2
        assert signed[2] == cap
        total = np.zeros(3, dtype=np.uint32)
        for _ in range(sites):
            add_into(total, one, params)
        mean, weight = decode_sum(total, params, sites)
        assert weight == sites * cap
        assert np.allclose(mean, [bound, -bound], rtol=1e-6, atol=params.resolution / cap)


@given(bits=bits, sites=st.integers(1, 100))
def test_no_level_of_the_ring_is_wasted(bits: int, sites: int) -> None:
    levels = RingParameters(bits, sites, 1.0, 1).levels
    assert sites * (levels + 1) <= 2 ** (bits - 1) - 1 < sites * (levels + 2)


@given(
    bits=bits,
    sites=st.integers(1, 8),
    size=st.sampled_from([0, 1, 2, 5, 100, BLOCK, BLOCK + 1]),
    weights=st.lists(st.integers(1, 20), min_size=8, max_size=8),
    seed=st.integers(0, 2**32 - 1),
)
def test_the_decoded_sum_is_the_weighted_mean_to_quantisation(
    bits: int, sites: int, size: int, weights: list[int], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    params = RingParameters.choose(bits, 8, 1.0, 20)
    values = rng.uniform(-1, 1, (sites, size)).astype(np.float32)
    total = np.zeros(size + 1, dtype=np.uint32)
    for row, weight in zip(values, weights[:sites], strict=True):
        add_into(total, encode_input(row, weight, params), params)
    mean, weight = decode_sum(total, params, sites)
    assert weight == sum(weights[:sites])
    expected = np.average(values.astype(np.float64), axis=0, weights=weights[:sites])
    assert mean.shape == (size,)
    assert np.all(np.abs(mean - expected) <= sites * params.resolution / weight + 1e-12)


def test_rounding_is_unbiased_and_moves_by_less_than_one_unit() -> None:
    params = RingParameters(16, 4, 1.0, 1)
    num_draws = 40_000
    fractions = np.array([-0.75, -0.5, -0.1, 0.0, 0.1, 0.25, 0.9])
    units = np.array([-100, -1, 0, 0, 0, 7, 1000]) + fractions
    values = np.repeat(units / params.scale, num_draws)
    stream = RandomStream(bytes(32))
    rounded = dequantise(quantise(values, params, stream), params) * params.scale
    by_value = rounded.reshape(len(units), num_draws)
    assert np.all(np.abs(by_value - units[:, None]) < 1 + 1e-9)
    # Five standard errors of a mean of draws with at most half a unit's deviation.
    assert np.all(np.abs(by_value.mean(axis=1) - units) < 5 * 0.5 / math.sqrt(num_draws))
    assert set(np.round(by_value[1]).astype(int)) == {-2, -1}
    assert np.all(by_value[3] == 0)


def test_rounding_of_neighbouring_coordinates_is_independent() -> None:
    params = RingParameters(32, 2, 1.0, 1)
    values = np.full(BLOCK + 20_000, 0.5 / params.scale)
    ups = quantise(values, params).astype(float)
    assert abs(np.corrcoef(ups[:-1], ups[1:])[0, 1]) < 0.03
    assert abs(np.corrcoef(ups[:20_000], ups[BLOCK:])[0, 1]) < 0.04


@pytest.mark.parametrize("place", [0, BLOCK - 1, BLOCK + 3])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1.0001, -1.0001])
def test_a_coordinate_over_the_bound_is_refused_wherever_it_stands(
    value: float, place: int
) -> None:
    params = RingParameters(32, 5, 1.0, 1)
    values = np.zeros(BLOCK + 10, dtype=np.float32)
    values[place] = value
    with pytest.raises(FoedusError, match="Clip the update"):
        quantise(values, params)


def test_the_bound_is_not_rounded_to_the_precision_of_the_values() -> None:
    # As float32 the value is the bound; as the real number it is, it lies above.
    value = np.float32(1.0)
    params = RingParameters(32, 5, 1.0 - 1e-9, 1)
    with pytest.raises(FoedusError, match="Clip the update"):
        quantise(np.array([value]), params)


def test_an_update_clipped_to_the_norm_bound_passes() -> None:
    params = RingParameters.choose(32, 5, 0.1, 1)
    quantise(np.array([np.float32(0.1)]), params)
    with pytest.raises(FoedusError):
        quantise(np.array([0.101]), params)


@pytest.mark.parametrize("weight", [0, -1, 11, True])
def test_a_weight_outside_its_range_is_refused(weight: int) -> None:
    with pytest.raises(FoedusError, match="weight from 1 to 10"):
        encode_input(np.zeros(3), weight, RingParameters(32, 5, 1.0, 10))


def test_too_few_bits_are_refused_with_what_to_do() -> None:
    with pytest.raises(FoedusError, match=r"Take more bits, a lower federation\.weight_cap"):
        RingParameters.choose(16, 100, 1.0, 1000)
    with pytest.raises(FoedusError, match="more bits"):
        RingParameters.choose(16, 20_000, 1.0, 1)
    assert RingParameters.choose(20, 100, 1.0, 1000).bits == 20
    with pytest.raises(FoedusError, match="bits per coordinate, got 12"):
        RingParameters.choose(12, 5, 1.0, 1)
    for bound in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(FoedusError, match="positive bound"):
            RingParameters.choose(32, 5, bound, 1)


def test_a_sum_with_an_impossible_weight_is_thrown_away() -> None:
    params = RingParameters(32, 5, 1.0, 10)
    for weight in (0, 2, 31, 2**31):
        total = np.array([1, 2, weight], dtype=np.uint32)
        with pytest.raises(FoedusError, match="thrown away"):
            decode_sum(total, params, num_sites=3)
    with pytest.raises(FoedusError, match="1 to 5 sites"):
        decode_sum(np.array([1, 2, 6], dtype=np.uint32), params, num_sites=6)


def test_sums_of_unequal_lengths_are_refused() -> None:
    params = RingParameters(32, 5, 1.0, 1)
    with pytest.raises(FoedusError, match="Expected 3 coordinates"):
        add_into(np.zeros(3, np.uint32), np.zeros(4, np.uint32), params)
    with pytest.raises(FoedusError, match="flat"):
        quantise(np.zeros((2, 2)), params)


def test_input_is_left_alone() -> None:
    values = np.linspace(-1, 1, 11, dtype=np.float32)
    before = values.copy()
    params = RingParameters(20, 5, 1.0, 4)
    quantised = quantise(values, params, weight=4)
    dequantise(quantised, params)
    assert np.array_equal(values, before)
    assert quantised.dtype == np.uint32
    assert quantised.max() < params.modulus == 2**20
