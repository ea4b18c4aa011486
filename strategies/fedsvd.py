"""FedSVD: average B, then re-factor B @ A so that A has orthonormal rows again.

A module's update is s B A with A (r, d_in), B (d_out, r), s = alpha / r. Sites train B only, with
A shared and frozen, so the mean update is s (B + mean_k dB_k) A: averaging B is exact. The
coordinator then takes the SVD U S V^T of that product and hands out A' = V^T (orthonormal rows)
and B' = U S, with B' A' = B A.

Exactness: B' A' = B A up to float32 rounding of the two results (about 1e-7 relative); sums only
are needed.
Cost: O((d_in + d_out) r^2 + r^3) per module: QR of both thin factors, then the SVD of an (r, r)
core. The (d_out, d_in) product is never built.

What the refactoring can and cannot do. Only B is trained, so the rows of B A always lie in the row
space of the A of round 1, and A' is another orthonormal basis of that same space: the models
FedSVD can reach are those of FFA-LoRA. If G = dL/dW, a gradient step on B moves the product by -lr
G A^T A, and A^T A is the projector on the row space whatever the orthonormal basis: with plain
SGD, FedSVD is FFA-LoRA with an orthonormal A, step for step. The L2 norm of B's gradient (so
per-sample clipping), isotropic noise and weight decay do not see the turn either. What does: rules
that work entry by entry, Adam above all. Against FFA-LoRA with the usual random A there is a
second difference: orthonormal rows condition every direction alike, for steps, clipping and noise.
Tests hold the row space and the SGD identity.

Lee et al. 2025, arXiv 2505.12805
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.adapter import AdapterState, a_name, b_name
from protocol.errors import FoedusError
from strategies.base import CombinedFactors, LoraStrategy

FloatArray = NDArray[np.floating]


@dataclass(frozen=True, slots=True)
class Refactored:
    """The same product in a new basis: ``b @ a`` with orthonormal rows in ``a``.

    a: (r, d_in) float32. b: (d_out, r) float32, columns of falling norm (the singular values).
    basis_change: M (r, r) float64 with old_a = M @ a; whatever lives in B's coordinates (a
    momentum m) maps to m @ M.
    """

    a: NDArray[np.float32]
    b: NDArray[np.float32]
    basis_change: NDArray[np.float64]


def refactor(a: FloatArray, b: FloatArray) -> Refactored:
    """SVD of ``b @ a`` from its thin factors: a (r, d_in) with r <= d_in, b (d_out, r).

    Row space: the rows of the result span exactly the row space of ``a``, also when B is zero or
    rank-deficient: the missing rows come from the orthonormal basis of that space, not from
    outside it. B = 0 keeps A where it already has orthonormal rows (else the nearest orthonormal
    matrix is taken), so round 0 is no special case for the caller.
    Signs: the entry of largest magnitude in each new row is positive, so equal inputs give equal
    outputs. Float64 inside, float32 out. Inputs must be finite (NumPy raises LinAlgError
    otherwise).

    >>> result = refactor(np.array([[2.0, 0.0, 0.0]]), np.array([[3.0], [4.0]]))
    >>> result.a.tolist(), result.b.round(5).tolist(), result.basis_change.tolist()
    ([[1.0, 0.0, 0.0]], [[6.0], [8.0]], [[2.0]])
    """
    old_a = np.asarray(a, dtype=np.float64)
    old_b = np.asarray(b, dtype=np.float64)
    if not old_b.any():
        rows = orthonormal_rows(old_a)
        columns = np.zeros_like(old_b)
    else:
        rows, columns = _singular_factors(old_a, old_b)
    return Refactored(
        a=rows.astype(np.float32),
        b=columns.astype(np.float32),
        basis_change=old_a @ rows.T,
    )


def orthonormal_rows(a: FloatArray) -> NDArray[np.float64]:
    """The matrix with orthonormal rows nearest to ``a`` (r, d_in) in Frobenius norm, r <= d_in.

    Formula: the polar factor U V^T of a = U S V^T; its rows span the row space of ``a``. Cost:
    O(d_in r^2).
    """
    left, _, right = np.linalg.svd(np.asarray(a, dtype=np.float64), full_matrices=False)
    nearest: NDArray[np.float64] = left @ right
    return nearest


def _singular_factors(
    a: NDArray[np.float64], b: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(V^T, U S) of ``b @ a``: (r, d_in) with orthonormal rows and (d_out, r)."""
    rank = a.shape[0]
    q_a, r_a = np.linalg.qr(a.T)  # (d_in, r), (r, r)
    q_b, r_b = np.linalg.qr(b)  # (d_out, k), (k, r) with k = min(d_out, r)
    # Full right vectors: those of zero singular values are the fill, and q_a keeps it inside
    # the row space of a.
    left, singular, right = np.linalg.svd(r_b @ r_a.T, full_matrices=True)
    rows = right @ q_a.T
    columns = np.zeros((b.shape[0], rank))
    columns[:, : singular.size] = (q_b @ left[:, : singular.size]) * singular
    largest = np.abs(rows).argmax(axis=1)
    signs = np.where(rows[np.arange(rank), largest] < 0.0, -1.0, 1.0)
    return rows * signs[:, None], columns * signs


class FedSvd(LoraStrategy):
    """FedSVD behind Flower's interface."""

    method = "fedsvd"

    def combine(
        self,
        a: FloatArray,
        b: FloatArray,
        step_a: FloatArray | None,
        step_b: FloatArray | None,
    ) -> CombinedFactors:
        """See LoraStrategy."""
        turned = refactor(a, b if step_b is None else b + step_b)
        return CombinedFactors(turned.a, turned.b, turned.basis_change)

    def initial_state(self, state: AdapterState) -> AdapterState:
        """The same product with orthonormal A; the scale of a fresh random A is dropped."""
        tensors = dict(state.tensors)
        for module, a, b in state.pairs():
            if a.shape[0] > a.shape[1]:
                raise FoedusError(
                    f"Expected adapter.rank of at most {a.shape[1]} (the inputs of {module}), got "
                    f"{a.shape[0]}: no A with more rows than columns has orthonormal rows."
                )
            turned = refactor(a, b)
            tensors[a_name(module)], tensors[b_name(module)] = turned.a, turned.b
        return state.replace_tensors(tensors)
