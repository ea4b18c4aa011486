"""FedIT: average A and B each on its own. The control every paper reports.

A module's update is s B A with A (r, d_in), B (d_out, r), s = alpha / r. The sites train both, and
the new product s (B + sum_k w_k dB_k)(A + sum_k w_k dA_k) is not the mean of products: it misses
the weighted covariance of the factors, s sum_k w_k (dB_k - mean dB)(dA_k - mean dA), which is zero
only when the sites agree on one factor. ``aggregation_error.relative_aggregation_error`` measures
the gap.
Cost: one addition per entry. Inexact; needs only the sum; DP noise on both factors multiplies
(grows as sigma^4).
Zhang et al. 2023, arXiv 2305.05644
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.base import CombinedFactors, LoraStrategy

FloatArray = NDArray[np.floating]


def add_mean_factors(
    a: FloatArray, b: FloatArray, mean_delta_a: FloatArray, mean_delta_b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The new pair (A + mean dA, B + mean dB): A and dA (r, d_in), B and dB (d_out, r)."""
    return a + mean_delta_a, b + mean_delta_b


class FedIt(LoraStrategy):
    """FedIT behind Flower's interface."""

    method = "fedit"

    def combine(
        self,
        a: FloatArray,
        b: FloatArray,
        step_a: FloatArray | None,
        step_b: FloatArray | None,
    ) -> CombinedFactors:
        """See LoraStrategy."""
        if step_a is None or step_b is None:
            return CombinedFactors(a, b)
        return CombinedFactors(*add_mean_factors(a, b, step_a, step_b))
