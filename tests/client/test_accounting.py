"""Accounting: the figures of the design notes, and an upper bound that an own computation meets."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus.accountants import PRVAccountant

from client.privacy.accounting import Cost, epsilon_spent, noise_multiplier, rdp_epsilon
from protocol.errors import FoedusError

DELTA = 1e-5


@pytest.mark.parametrize(("steps", "prv", "rdp"), [(200, 0.667, 0.705), (1000, 0.910, 0.952)])
def test_sigma_for_epsilon_8_is_the_one_of_the_design_notes(
    steps: int, prv: float, rdp: float
) -> None:
    sigma = noise_multiplier(8.0, DELTA, 0.032, steps)
    assert sigma == pytest.approx(prv, abs=0.002)
    assert epsilon_spent([Cost(0.032, sigma, steps)], DELTA) <= 8.0
    assert rdp_epsilon([Cost(0.032, rdp, steps)], DELTA) == pytest.approx(8.0, abs=0.1)


@pytest.mark.parametrize(
    ("num_units", "batch", "epsilon", "sigma"),
    [(500, 64, 1, 5.55), (500, 64, 8, 1.18), (2000, 64, 3, 1.35), (6000, 256, 8, 0.91)],
)
def test_renyi_epsilon_of_twenty_epochs_is_the_one_of_the_design_notes(
    num_units: int, batch: int, epsilon: float, sigma: float
) -> None:
    steps, delta = round(20 * num_units / batch), 1 / (10 * num_units)
    spent = rdp_epsilon([Cost(batch / num_units, sigma, steps)], delta)
    assert spent == pytest.approx(epsilon, rel=0.02)


@pytest.mark.parametrize(("rate", "sigma", "steps"), [(0.25, 2.263, 32), (0.25, 1.153, 32)])
def test_epsilon_bounds_an_independent_computation_and_is_close_to_it(
    rate: float, sigma: float, steps: int
) -> None:
    spent = epsilon_spent([Cost(rate, sigma, steps)], DELTA)
    present, absent = _log_density(rate, sigma, 1.0), _log_density(rate, sigma, 0.0)
    for one, other in ((present, absent), (absent, present)):
        assert _delta(one, other, sigma, steps, spent) <= DELTA
    assert _delta(present, absent, sigma, steps, spent - 0.05) > DELTA


def test_an_example_within_a_matter_costs_no_more_than_steps_of_half_the_sigma() -> None:
    # Within a sampled matter, one changed example turns the clipped sum from +C to -C at worst.
    rate, sigma, steps = 0.25, 2.263, 32
    spent = epsilon_spent([Cost(rate, sigma / 2, steps)], DELTA)
    one, other = _log_density(rate, sigma, 1.0), _log_density(rate, sigma, -1.0)
    assert _delta(one, other, sigma, steps, spent) <= DELTA
    by_matter = epsilon_spent([Cost(rate, sigma, steps)], DELTA)
    assert _delta(one, other, sigma, steps, by_matter) > DELTA


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (3.4, 32), (20.0, 100)])
def test_without_sampling_epsilon_is_that_of_the_gaussian_mechanism(
    sigma: float, steps: int
) -> None:
    spent = epsilon_spent([Cost(1.0, sigma, steps)], DELTA)
    assert _gaussian_delta(math.sqrt(steps) / sigma, spent) <= DELTA
    assert _gaussian_delta(math.sqrt(steps) / sigma, spent - 0.03) > DELTA


@pytest.mark.parametrize(
    "history", [[(1.153, 0.25, 32)], [(0.91, 0.032, 1000)], [(2.0, 0.1, 30), (4.0, 1.0, 5)]]
)
def test_epsilon_is_the_one_that_the_accountant_of_opacus_gives(
    history: list[tuple[float, float, int]],
) -> None:
    accountant = PRVAccountant()
    accountant.history = history
    spent = epsilon_spent([Cost(rate, sigma, steps) for sigma, rate, steps in history], DELTA)
    assert spent == pytest.approx(accountant.get_epsilon(DELTA), abs=1e-3)


def test_two_halves_cost_as_much_as_the_whole_whatever_the_order() -> None:
    half, other = Cost(0.1, 1.5, 20), Cost(0.2, 3.0, 7)
    whole = epsilon_spent([Cost(0.1, 1.5, 40), other], DELTA)
    assert epsilon_spent([half, other, half], DELTA) == whole
    assert epsilon_spent([other, half, half], DELTA) == whole
    assert epsilon_spent([half], DELTA) < whole


def test_a_thousand_rounds_of_one_run_take_no_longer_than_one() -> None:
    rounds = [Cost(0.01, 1.0, 1) for _ in range(1000)]
    assert epsilon_spent(rounds, DELTA) == epsilon_spent([Cost(0.01, 1.0, 1000)], DELTA)


def test_more_kinds_of_rounds_than_the_tight_accountant_can_take_cost_the_renyi_bound() -> None:
    costs = [Cost(1.0, 20.0 + number, 1) for number in range(30)]
    assert epsilon_spent(costs, DELTA) == rdp_epsilon(costs, DELTA)
    assert epsilon_spent(costs[:20], DELTA) < epsilon_spent(costs, DELTA)


# Without sampling the accountant is fast; the next test samples.
@settings(max_examples=10, deadline=None)
@given(
    st.lists(st.tuples(st.floats(2.0, 200.0), st.integers(1, 50)), min_size=1, max_size=4),
    st.sampled_from([1e-8, 1e-5, 1e-3]),
)
def test_another_round_never_lowers_epsilon_and_renyi_is_never_below(
    pairs: list[tuple[float, int]], delta: float
) -> None:
    costs = [Cost(1.0, sigma, steps) for sigma, steps in pairs]
    spent = [epsilon_spent(costs[:number], delta) for number in range(len(costs) + 1)]
    assert spent[0] == 0.0
    # 1e-4: the accountant's grid moves with what is composed.
    assert all(later >= earlier - 1e-4 for earlier, later in pairwise(spent))
    assert spent[-1] <= rdp_epsilon(costs, delta)


def test_with_sampling_epsilon_grows_with_steps_and_rate_and_falls_with_sigma() -> None:
    middle = epsilon_spent([Cost(0.1, 1.5, 20)], DELTA)
    assert epsilon_spent([Cost(0.1, 1.5, 21)], DELTA) > middle
    assert epsilon_spent([Cost(0.11, 1.5, 20)], DELTA) > middle
    assert epsilon_spent([Cost(0.1, 1.6, 20)], DELTA) < middle
    assert epsilon_spent([Cost(0.1, 1.5, 20)], 1e-6) > middle
    assert middle <= rdp_epsilon([Cost(0.1, 1.5, 20)], DELTA)


@pytest.mark.parametrize("epsilon", [0.05, 1.0, 8.0, 100.0])
def test_sigma_is_the_smallest_of_four_digits_that_keeps_the_target(epsilon: float) -> None:
    sigma = noise_multiplier(epsilon, DELTA, 1.0, 12)
    assert float(f"{sigma:.4g}") == sigma
    assert epsilon_spent([Cost(1.0, sigma, 12)], DELTA) <= epsilon
    assert epsilon_spent([Cost(1.0, sigma * (1 - 1e-3), 12)], DELTA) > epsilon


def test_a_step_without_noise_has_no_bound_and_no_step_costs_nothing() -> None:
    assert epsilon_spent([Cost(0.1, 1.0, 5), Cost(0.5, 0.0, 1)], DELTA) == math.inf
    assert rdp_epsilon([Cost(0.5, 0.0, 1)], DELTA) == math.inf
    assert epsilon_spent([Cost(0.0, 1.0, 5), Cost(0.5, 0.0, 0)], DELTA) == 0.0


@pytest.mark.parametrize(
    ("rate", "sigma", "steps"),
    [(-0.1, 1.0, 1), (1.1, 1.0, 1), (math.nan, 1.0, 1), (0.5, -1.0, 1), (0.5, math.nan, 1),
     (0.5, math.inf, 1), (0.5, 1.0, -1)],
)  # fmt: skip
def test_a_cost_that_cannot_be_is_refused(rate: float, sigma: float, steps: int) -> None:
    with pytest.raises(FoedusError, match="Expected"):
        Cost(rate, sigma, steps)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, math.nan])
def test_a_delta_that_cannot_be_is_refused(delta: float) -> None:
    with pytest.raises(FoedusError, match="delta"):
        epsilon_spent([Cost(0.1, 1.0, 1)], delta)


def test_an_epsilon_out_of_reach_is_refused_with_what_to_do() -> None:
    with pytest.raises(FoedusError, match="larger epsilon or fewer steps"):
        noise_multiplier(1e-4, 1e-12, 1.0, 100000)
    with pytest.raises(FoedusError, match="above 0"):
        noise_multiplier(math.nan, DELTA, 1.0, 1)


# The functions below know nothing of the accountant: they integrate the two densities.
Density = tuple[float, float, float]


def _log_density(rate: float, sigma: float, shift: float) -> Density:
    """One noisy step, clip norm 1: with chance `rate` the unit shifts the sum."""
    return rate, sigma, shift


def _log_pdf(density: Density, x: np.ndarray) -> np.ndarray:
    rate, sigma, shift = density
    without = math.log1p(-rate) - x**2 / (2 * sigma**2)
    return np.asarray(np.logaddexp(without, math.log(rate) - (x - shift) ** 2 / (2 * sigma**2)))


def _delta(one: Density, other: Density, sigma: float, steps: int, epsilon: float) -> float:
    """The least delta at which `steps` draws of `one` and `other` are epsilon-close, from above."""
    rate, _, shift = one
    x = np.linspace(-12 * sigma - 2, 12 * sigma + 2, 200_001)
    distribution = (1 - rate) * _normal(x / sigma) + rate * _normal((x - shift) / sigma)
    loss = _log_pdf(one, x) - _log_pdf(other, x)
    width = 2e-3 / math.sqrt(steps)
    bins = np.ceil(np.maximum(loss[:-1], loss[1:]) / width).astype(int)
    mass = np.bincount(bins - bins.min(), np.diff(distribution))
    size = 1 << math.ceil(math.log2(len(mass) * steps))
    composed = np.fft.irfft(np.fft.rfft(mass, size) ** steps, size)
    losses = (bins.min() * steps + np.arange(size)) * width
    over = losses > epsilon
    return float((composed[over] * -np.expm1(epsilon - losses[over])).sum())


def _gaussian_delta(shift: float, epsilon: float) -> float:
    """Balle and Wang 2018, theorem 8: unit variance, means `shift` apart."""
    near, far = shift / 2 - epsilon / shift, -shift / 2 - epsilon / shift
    return float(_normal(near) - math.exp(epsilon) * _normal(far))


def _normal(x: np.ndarray | float) -> np.ndarray:
    """The normal distribution function; erfc keeps its small tail exact."""
    return np.asarray(np.vectorize(math.erfc)(-np.asarray(x) / math.sqrt(2)) / 2)
