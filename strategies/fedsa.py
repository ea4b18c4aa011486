"""FedSA-LoRA: share A, keep every site's B at the site.

A module's update at site k is s B_k A with the shared A (r, d_in) and a personal B_k (d_out, r), s
= alpha / r. Sites train both and send A only; sum_k w_k s B_k (A + dA_k) has no common factor to
pull out, so the new A is the mean of the A and exact as such, while there is no global product to
be exact about. The coordinator's own B stays at its starting value (zero): its adapter alone is
the base model plus the shared head, and evaluation belongs at the sites.
Cost: one addition per entry of A. Needs only the sum; half of FedIT's bytes.
Guo et al. 2024, arXiv 2410.01463
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from strategies.base import CombinedFactors, LoraStrategy

FloatArray = NDArray[np.floating]


def add_mean_a(
    a: FloatArray, b: FloatArray, mean_delta_a: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """The new pair (A + mean dA, B): a, mean_delta_a (r, d_in); b (d_out, r) untouched."""
    return a + mean_delta_a, b


class FedSaLora(LoraStrategy):
    """FedSA-LoRA behind Flower's interface."""

    method = "fedsa"

    def combine(
        self,
        a: FloatArray,
        b: FloatArray,
        step_a: FloatArray | None,
        step_b: FloatArray | None,
    ) -> CombinedFactors:
        """See LoraStrategy."""
        return (
            CombinedFactors(a, b) if step_a is None else CombinedFactors(*add_mean_a(a, b, step_a))
        )
