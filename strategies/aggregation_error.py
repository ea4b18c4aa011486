"""How far an aggregated adapter is from the mean of the sites' updates.

Site k holds A_k (r_k, d_in) and B_k (d_out, r_k); what federated averaging promises is the mean of
products P = sum_k w_k B_k A_k with sum_k w_k = 1. Averaging the factors gives mean(B) @ mean(A)
instead, and the two differ by the weighted covariance of the factors: P - mean(B) mean(A) = sum_k
w_k (B_k - mean B)(A_k - mean A). This is the gap reported for FedIT (Zhang et al. 2023, arXiv
2305.05644) and closed by exact methods (Sun et al. 2024, arXiv 2403.12313).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.floating]


def thin_product_norm(b: FloatArray, a: FloatArray) -> float:
    """Frobenius norm of ``b @ a`` without building it.

    Shapes: b (d_out, k), a (k, d_in). With b = Q_b R_b and a^T = Q_a R_a, the norm is that of R_b
    R_a^T.
    Cost: O((d_in + d_out) k^2 + k^3). Computed in float64.

    >>> round(thin_product_norm(np.array([[3.0], [4.0]]), np.array([[1.0, 0.0, 0.0]])), 9)
    5.0
    """
    r_b = np.linalg.qr(np.asarray(b, dtype=np.float64), mode="r")
    r_a = np.linalg.qr(np.asarray(a, dtype=np.float64).T, mode="r")
    return float(np.linalg.norm(np.matmul(r_b, np.transpose(r_a))))


def relative_aggregation_error(
    a_factors: Sequence[FloatArray],
    b_factors: Sequence[FloatArray],
    weights: Sequence[float],
    a: FloatArray,
    b: FloatArray,
) -> float:
    """Relative error of ``b @ a`` as the mean of the sites' products: 0 means exact.

    Shapes: a_factors[k] (r_k, d_in), b_factors[k] (d_out, r_k), weights[k] >= 0 with sum > 0
    (normalised here), a (r, d_in), b (d_out, r); the ranks r_k and r may differ.
    Formula: ||sum_k w_k B_k A_k - B A||_F / ||sum_k w_k B_k A_k||_F. The difference is one thin
    product, [w_1 B_1, ..., w_K B_K, -B] @ [A_1; ...; A_K; A], so no (d_out, d_in) matrix is built.
    Cost: O((d_in + d_out) R^2) with R = r + sum_k r_k. It needs every site's factors at once,
    hence is for experiments and reports, never for a round under secure aggregation.
    Returns: 0.0 when both products are zero, inf when only the mean of products is zero. The scale
    alpha / r cancels when it is the same everywhere; otherwise fold s_k into B_k first.

    >>> a = np.eye(2, 3)
    >>> b_factors = [np.ones((4, 2)), np.zeros((4, 2))]
    >>> round(relative_aggregation_error([a, a], b_factors, [1, 1], a, np.full((4, 2), 0.5)), 9)
    0.0
    """
    shares = np.asarray(weights, dtype=np.float64)
    shares = shares / shares.sum()
    weighted_b = [
        w * np.asarray(b_k, dtype=np.float64) for w, b_k in zip(shares, b_factors, strict=True)
    ]
    mean_norm = thin_product_norm(np.hstack(weighted_b), np.vstack(a_factors))
    error_norm = thin_product_norm(
        np.hstack([*weighted_b, -np.asarray(b)]), np.vstack([*a_factors, a])
    )
    if mean_norm == 0.0:
        return 0.0 if error_norm == 0.0 else float("inf")
    return error_norm / mean_norm
