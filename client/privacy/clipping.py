"""Clipping of privacy units and the clip norm that follows a quantile: pure functions of rows."""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor

from protocol.errors import Refusal
from protocol.reasons import RefusalReason

log = logging.getLogger("foedus.client")

# A float32 sum of squares errs by up to 1e-4 from some ten thousand entries on, so squares are
# summed in float64, so many columns at a time.
_BLOCK = 65_536
# A float32 row scaled to the clip norm may land an ulp above it.
_SLACK = 1.0 - 1e-6


def row_norms(rows: Tensor) -> Tensor:
    """L2 norm of each row of (n, P), float64 (n,)."""
    squares = torch.zeros(len(rows), dtype=torch.float64, device=rows.device)
    for start in range(0, rows.shape[1], _BLOCK):
        block = rows[:, start : start + _BLOCK]
        squares += torch.linalg.vector_norm(block, dim=1, dtype=torch.float64) ** 2
    return squares.sqrt()


def clipped_sum(rows: Tensor, clip_norm: float) -> tuple[Tensor, int]:
    """(sum of the rows, each scaled to L2 norm <= clip_norm, (P,) float32; rows at or under it).

    Adding or removing one row moves the sum by at most clip_norm; changing one by at most twice
    that. Rows are privacy units: one example, or the summed gradients of one matter.
    A row that is not finite counts as zero, and is logged here. To stop at it would tell the
    coordinator, without noise, that such a unit was drawn.
    """
    norms = row_norms(rows)
    finite = torch.isfinite(norms)
    if not bool(finite.all()):
        log.warning("%d units with gradients that are not finite count as zero.", (~finite).sum())
        rows = torch.where(finite.unsqueeze(1), rows, torch.zeros_like(rows))
        norms = torch.where(finite, norms, torch.zeros_like(norms))
    factors = torch.clamp(clip_norm * _SLACK / norms.clamp(min=1e-30), max=1.0)
    return torch.mv(rows.t(), factors.float()), int((norms <= clip_norm).sum())


def sum_by_unit(rows: Tensor, unit_of_row: Tensor, num_units: int) -> Tensor:
    """(num_units, P): the rows of each unit added up. unit_of_row: (n,) indices."""
    sums = torch.zeros((num_units, rows.shape[1]), dtype=rows.dtype, device=rows.device)
    return sums.index_add_(0, unit_of_row, rows)


def gradient_sigma(sigma: float, count_noise_units: float) -> float:
    """The gradient's noise multiplier when a noisy count is released beside it at cost sigma.

    With the count taken in steps of 1/2 and noised by count_noise_units, both releases together
    are one Gaussian mechanism of multiplier sigma where
    1 / sigma^2 = 1 / gradient_sigma^2 + 1 / (2 count_noise_units)^2.
    Source: Andrew, Thakkar, McMahan, Ramaswamy 2021, arXiv 1905.03871, theorem 1.
    Errors: Refusal(POLICY) where the count alone would cost more than sigma allows.
    """
    left = sigma**-2 - (2.0 * count_noise_units) ** -2
    if left <= 0.0:
        raise Refusal(
            RefusalReason.POLICY,
            f"privacy.clip_count_noise gives a noise of {count_noise_units:.3g} units; expected "
            f"more than {sigma / 2:.3g} at sigma {sigma:.3g}. Raise it or privacy.sampling_rate.",
        )
    return math.sqrt(1.0 / left)


def next_clip_norm(
    clip_norm: float, noisy_share_under: float, quantile: float, learning_rate: float
) -> float:
    """One geometric step towards the quantile of unit norms: fewer under it than wanted, up.

    noisy_share_under: the noised share of units at or under clip_norm, of the expected batch.
    Source: as `gradient_sigma`, equation in section 2.2.
    """
    step = max(-1.0, min(1.0, noisy_share_under - quantile))
    return clip_norm * math.exp(-learning_rate * step)
