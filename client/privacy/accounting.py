"""What noisy steps cost: epsilon from sigma, and sigma from epsilon.

One step samples each unit with probability q (Poisson), clips its gradient to C and adds Gaussian
noise of standard deviation sigma * C to the sum. Neighbouring data differ in one unit, present or
not. Epsilon is the upper end of what Opacus's PRV accountant gives (Gopi et al. 2021,
https://arxiv.org/abs/2106.02848), or the Renyi bound where that is smaller or alone affordable:
both hold, so the smaller one does. The floating-point caveat: docs/privacy.md.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from protocol.errors import FoedusError

log = logging.getLogger("foedus.client")

# (sampling rate, sigma, steps), sorted, each pair of rate and sigma once.
_Merged = tuple[tuple[float, float, int], ...]

# PRV's time and memory grow with the pairs and with its grid; beyond these the Renyi bound stands.
_MOST_PAIRS = 24
_MOST_GRID_POINTS = 2**21
# Above this nobody is protected, and how little exactly is not worth computing.
_MEANINGLESS_EPSILON = 64.0
# The smallest take nearly all the time; they matter where epsilon is in the tens.
_ORDERS = (
    *(1.1, 1.25, 1.5),
    *(1.75 + quarter / 4 for quarter in range(17)),
    *(6 + half / 2 for half in range(8)),
    *range(10, 64),
    *(80, 96, 128, 192, 256, 384, 512),
)
# Sigmas of four significant digits between 0.01 and 10,000, by their place in that row.
_SMALLEST_PLACE, _LARGEST_PLACE = -2 * 9000, 4 * 9000


@dataclass(frozen=True, slots=True)
class Cost:
    """Some equal steps. sigma: noise over clip norm, 0 where no noise was added.

    Errors: FoedusError where a number cannot be what it is called.
    """

    sampling_rate: float
    sigma: float
    steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.sampling_rate <= 1:
            raise FoedusError(f"Expected a sampling rate from 0 to 1, got {self.sampling_rate}.")
        if not (self.sigma >= 0 and math.isfinite(self.sigma)):
            raise FoedusError(f"Expected a finite sigma of 0 or more, got {self.sigma}.")
        if self.steps < 0:
            raise FoedusError(f"Expected 0 or more steps, got {self.steps}.")


def noise_multiplier(
    target_epsilon: float, delta: float, sampling_rate: float, steps: int
) -> float:
    """The smallest sigma of four significant digits at which all steps cost at most the target.

    Deterministic, so that every site and every document arrives at the same figure. Errors:
    FoedusError where no sigma up to 10,000 is enough.
    """
    if not target_epsilon > 0:
        raise FoedusError(f"Expected a target epsilon above 0, got {target_epsilon}.")
    return _noise_multiplier(float(target_epsilon), float(delta), float(sampling_rate), int(steps))


def epsilon_spent(costs: Iterable[Cost], delta: float) -> float:
    """Epsilon at this delta of everything together; infinite where a step had no noise.

    Equal pairs of rate and sigma are merged, so the order and the grouping of steps do not matter.
    Errors: FoedusError where delta is out of range or no bound can be computed.
    """
    merged = _merge(costs, delta)
    return _epsilon(merged, float(delta)) if isinstance(merged, tuple) else merged


def rdp_epsilon(costs: Iterable[Cost], delta: float) -> float:
    """The Renyi bound of the same, a cross-check that is never below `epsilon_spent`."""
    merged = _merge(costs, delta)
    return _rdp(merged, float(delta)) if isinstance(merged, tuple) else merged


def _merge(costs: Iterable[Cost], delta: float) -> _Merged | float:
    """The distinct pairs with their steps, or epsilon where it needs no accountant."""
    if not 0 < delta < 1:
        raise FoedusError(f"Expected a delta between 0 and 1, got {delta}.")
    steps: Counter[tuple[float, float]] = Counter()
    for cost in costs:
        if cost.steps and cost.sampling_rate:
            steps[float(cost.sampling_rate), float(cost.sigma)] += cost.steps
    if any(sigma == 0 for _, sigma in steps):
        return math.inf
    return tuple((rate, sigma, number) for (rate, sigma), number in sorted(steps.items())) or 0.0


@lru_cache(maxsize=4096)
def _epsilon(merged: _Merged, delta: float) -> float:
    renyi = _rdp(merged, delta)
    if renyi > _MEANINGLESS_EPSILON or len(merged) > _MOST_PAIRS:
        return renyi
    # PRV's bound holds its own error; a tenth of it where epsilon itself is small.
    return min(renyi, _prv(merged, delta, 0.01 if renyi > 0.5 else 0.001))


def _prv(merged: _Merged, delta: float, error: float) -> float:
    """PRV's upper bound; infinite where it gives up: the Renyi bound is then the smaller one.

    Opacus's own recipe, but for the Renyi bounds that size its grid: ours are kept from call to
    call. delta_error as in Opacus.
    """
    from opacus.accountants.analysis import prv

    delta_error = delta / 1000
    mesh, reach = _grid(merged, delta_error, error)
    if 2 * reach / mesh > _MOST_GRID_POINTS:
        return math.inf
    with _quiet():
        try:
            domain = prv.Domain.create_aligned(-reach, reach, mesh)
            losses = [
                prv.TruncatedPrivacyRandomVariable(
                    prv.PoissonSubsampledGaussianPRV(rate, sigma), domain.t_min, domain.t_max
                )
                for rate, sigma, _ in merged
            ]
            composed = prv.compose_heterogeneous(
                [prv.discretize(loss, domain) for loss in losses], [pair[2] for pair in merged]
            )
            _, _, epsilon = composed.compute_epsilon(delta, delta_error, error)
        except (ArithmeticError, ValueError, RuntimeError, IndexError, MemoryError) as failure:
            log.debug("PRV gave up (%s); the Renyi bound stands.", type(failure).__name__)
            return math.inf
    return math.inf if math.isnan(epsilon) else max(0.0, float(epsilon))


def _grid(merged: _Merged, delta_error: float, error: float) -> tuple[float, float]:
    """The grid's mesh and how far it reaches to both sides (Gopi et al., remark 5.6)."""
    steps = sum(number for _, _, number in merged)
    single = delta_error / (8 * steps)
    reach = max(
        _rdp(merged, delta_error / 4), *(_rdp(((r, s, 1),), single) for r, s, _ in merged), error
    )
    return error / math.sqrt(steps * math.log(12 / delta_error) / 2), reach + 3


@lru_cache(maxsize=4096)
def _rdp(merged: _Merged, delta: float) -> float:
    from opacus.accountants.analysis import rdp

    with _quiet():
        try:
            total = sum(steps * _rdp_of_step(rate, sigma) for rate, sigma, steps in merged)
            epsilon, _ = rdp.get_privacy_spent(orders=_ORDERS, rdp=total, delta=delta)
        except (ArithmeticError, ValueError) as error:
            raise _no_bound(merged) from error
    epsilon = float(epsilon)
    if math.isnan(epsilon):
        raise _no_bound(merged)
    return max(0.0, epsilon)


@lru_cache(maxsize=4096)
def _rdp_of_step(rate: float, sigma: float) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    from opacus.accountants.analysis import rdp

    values = rdp.compute_rdp(q=rate, noise_multiplier=sigma, steps=1, orders=_ORDERS)
    return np.asarray(values, dtype=np.float64)


def _no_bound(merged: _Merged) -> FoedusError:
    return FoedusError(
        "Expected a bound on epsilon, the accountant found none for (sampling rate, sigma, steps) "
        f"= {', '.join(map(str, merged[:3]))}. Choose a larger sigma or fewer steps."
    )


@lru_cache(maxsize=256)
def _noise_multiplier(target: float, delta: float, rate: float, steps: int) -> float:
    def enough(bound: Callable[[Sequence[Cost], float], float]) -> Callable[[int], bool]:
        return lambda place: bound([Cost(rate, _sigma_at(place), steps)], delta) <= target

    if not enough(epsilon_spent)(_LARGEST_PLACE):
        raise FoedusError(
            f"Expected an epsilon that noise can reach, got {target} at delta {delta} over {steps} "
            f"steps at sampling rate {rate}. Choose a larger epsilon or fewer steps."
        )
    # The Renyi bound is cheap and never below: what is enough for it is enough.
    renyi = _first(enough(rdp_epsilon), _SMALLEST_PLACE, _LARGEST_PLACE)
    low, stride = renyi, 256
    while low > _SMALLEST_PLACE and enough(epsilon_spent)(low):
        low, stride = max(_SMALLEST_PLACE, low - stride), 2 * stride
    return _sigma_at(_first(enough(epsilon_spent), low, renyi))


def _first(holds: Callable[[int], bool], low: int, high: int) -> int:
    """The first place from low on where it holds, for what holds from some place on."""
    while low < high:
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle + 1
    return high


def _sigma_at(place: int) -> float:
    """0 -> 1.000, 1 -> 1.001, 8999 -> 9.999, 9000 -> 10.00, -1 -> 0.9999."""
    decade, step = divmod(place, 9000)
    return float(f"{1000 + step}e{decade - 3}")


@contextmanager
def _quiet() -> Iterator[None]:
    """Opacus warns of rates of 1 and of orders at the end of its list; neither voids a bound."""
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        yield
