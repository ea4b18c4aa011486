"""FFA-LoRA: A stays at its shared starting value, the sites' B are averaged.

A module's update is s B A with A (r, d_in), B (d_out, r), s = alpha / r. Every site holds the same
A, so sum_k w_k s (B + dB_k) A = s (B + sum_k w_k dB_k) A: the average of B gives the mean update
exactly.
Cost: one addition per entry of B. Exact; needs only the sum; half of FedIT's bytes, both ways.
Sun et al. 2024, arXiv 2403.12313
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.base import CombinedFactors, LoraStrategy

FloatArray = NDArray[np.floating]


def add_mean_b(
    a: FloatArray, b: FloatArray, mean_delta_b: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The new pair (A, B + mean dB): a (r, d_in) untouched, b and mean_delta_b (d_out, r).

    >>> add_mean_b(np.ones((1, 3)), np.zeros((2, 1)), np.full((2, 1), 0.5))[1].tolist()
    [[0.5], [0.5]]
    """
    return a, b + mean_delta_b


class FfaLora(LoraStrategy):
    """FFA-LoRA behind Flower's interface."""

    method = "ffa"

    def combine(
        self,
        a: FloatArray,
        b: FloatArray,
        step_a: FloatArray | None,
        step_b: FloatArray | None,
    ) -> CombinedFactors:
        """See LoraStrategy."""
        return (
            CombinedFactors(a, b) if step_b is None else CombinedFactors(*add_mean_b(a, b, step_b))
        )
