"""RoLoRA: odd rounds train and average B, even rounds train and average A.

A module's update is s B A with A (r, d_in), B (d_out, r), s = alpha / r. In any one round the
sites share the factor that stays put, so the average of the other gives the mean update exactly:
sum_k w_k s (B + dB_k) A = s (B + sum_k w_k dB_k) A, and likewise for A.
Cost: one addition per entry of the trained factor. Exact within each round; needs only the sum;
half of FedIT's bytes. Unlike FFA-LoRA and FedSVD the row space of A is learned too. B = 0 gives A
no gradient, hence B goes first.
Chen et al. 2025, arXiv 2502.01755
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.base import CombinedFactors, LoraStrategy

FloatArray = NDArray[np.floating]


def add_mean_factor(
    a: FloatArray,
    b: FloatArray,
    mean_delta_a: FloatArray | None,
    mean_delta_b: FloatArray | None,
) -> tuple[FloatArray, FloatArray]:
    """The new pair after a round that trained one factor: a (r, d_in), b (d_out, r).

    The delta of the factor that stayed put is None. Errors: ValueError when both are given: two
    averages at once are FedIT's, and not exact.
    """
    if mean_delta_a is not None and mean_delta_b is not None:
        raise ValueError(
            "Expected the delta of one factor, got both: RoLoRA trains one factor a round."
        )
    if mean_delta_b is not None:
        return a, b + mean_delta_b
    if mean_delta_a is not None:
        return a + mean_delta_a, b
    return a, b


class RoLora(LoraStrategy):
    """RoLoRA behind Flower's interface."""

    method = "rolora"

    def combine(
        self,
        a: FloatArray,
        b: FloatArray,
        step_a: FloatArray | None,
        step_b: FloatArray | None,
    ) -> CombinedFactors:
        """See LoraStrategy."""
        return CombinedFactors(*add_mean_factor(a, b, step_a, step_b))
