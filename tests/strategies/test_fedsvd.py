"""What FedSVD's refactoring promises, and what it provably does not change."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.errors import FoedusError
from strategies import build_strategy
from strategies.fedsvd import orthonormal_rows, refactor
from tests.strategies.adapters import (
    SMALL,
    Shapes,
    adapter,
    relative_error,
    round_updates,
    run_round,
    seeds,
    settings,
    shapes,
)


def _projector(a: np.ndarray) -> np.ndarray:
    """Orthogonal projector on the row space of a full-rank a, by the normal equations."""
    a = a.astype(np.float64)
    return a.T @ np.linalg.solve(a @ a.T, a)


@st.composite
def factors(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    """A well-conditioned A (r, d_in) and a B (d_out, r) of any rank from 0 to r."""
    rank = draw(st.integers(1, 5))
    d_in, d_out = draw(st.integers(rank, 14)), draw(st.integers(1, 14))
    b_rank = draw(st.integers(0, rank))
    rng = np.random.default_rng(draw(seeds))
    turn = np.linalg.qr(rng.normal(size=(rank, rank)))[0]
    a = (
        turn
        @ np.diag(rng.uniform(0.5, 2.0, rank))
        @ np.linalg.qr(rng.normal(size=(d_in, rank)))[0].T
    )
    b = rng.normal(size=(d_out, b_rank)) @ rng.normal(size=(b_rank, rank))
    return a.astype(np.float32), b.astype(np.float32)


@given(factors())
def test_refactored_a_is_orthonormal_and_the_product_is_kept(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = pair
    turned = refactor(a, b)
    assert (turned.a.shape, turned.b.shape) == (a.shape, b.shape)
    assert turned.a.dtype == turned.b.dtype == np.float32
    np.testing.assert_allclose(turned.a @ turned.a.T, np.eye(a.shape[0]), atol=1e-5)
    product = b.astype(np.float64) @ a
    if b.any():
        assert relative_error(turned.b.astype(np.float64) @ turned.a, product) < 1e-6
    else:
        assert not turned.b.any()
    norms = np.linalg.norm(turned.b, axis=0)
    assert (np.diff(norms) <= 1e-5 * max(norms[0], 1.0)).all()


@given(factors())
def test_row_space_of_a_is_kept_also_where_b_is_rank_deficient(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = pair
    turned = refactor(a, b)
    np.testing.assert_allclose(_projector(turned.a), _projector(a), atol=1e-5)


@given(factors())
def test_the_basis_change_maps_whatever_lives_in_bs_coordinates(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = pair
    turned = refactor(a, b)
    np.testing.assert_allclose(turned.basis_change @ turned.a, a, atol=1e-5)
    moment = np.random.default_rng(0).normal(size=b.shape)
    np.testing.assert_allclose(moment @ turned.basis_change @ turned.a, moment @ a, atol=1e-4)


@given(factors())
def test_equal_inputs_give_equal_outputs_with_signs_fixed(
    pair: tuple[np.ndarray, np.ndarray],
) -> None:
    a, b = pair
    once, again = refactor(a, b), refactor(a.copy(), b.copy())
    np.testing.assert_array_equal(once.a, again.a)
    np.testing.assert_array_equal(once.b, again.b)
    if b.any():
        largest = np.abs(once.a).argmax(axis=1)
        assert (once.a[np.arange(len(largest)), largest] > 0).all()


@given(shapes, seeds)
def test_zero_b_keeps_an_a_that_is_orthonormal_already(shape: Shapes, seed: int) -> None:
    for _, a, b in adapter("fedsvd", shape, seed, zero_b=True).pairs():
        orthonormal = -orthonormal_rows(a)  # Negative signs too: keeping is not sign-fixing.
        kept = refactor(orthonormal, b)
        np.testing.assert_allclose(kept.a, orthonormal, atol=1e-6)
        assert not kept.b.any()


def test_orthonormal_rows_are_nearer_to_a_than_those_of_a_qr() -> None:
    a = np.random.default_rng(4).normal(size=(4, 9))
    nearest = orthonormal_rows(a)
    np.testing.assert_allclose(nearest @ nearest.T, np.eye(4), atol=1e-12)
    by_qr = np.linalg.qr(a.T)[0].T
    assert np.linalg.norm(nearest - a) < np.linalg.norm(by_qr - a)


def test_initial_state_is_the_same_model_with_orthonormal_a() -> None:
    state = adapter("fedsvd", SMALL, 8, random_b_rank=1)
    start = build_strategy(settings("fedsvd")).initial_state(state)
    for (_, a, b), (_, new_a, new_b) in zip(state.pairs(), start.pairs(), strict=True):
        np.testing.assert_allclose(new_a @ new_a.T, np.eye(SMALL.rank), atol=1e-5)
        assert relative_error(new_b @ new_a, b @ a) < 1e-5


def test_a_rank_above_the_inputs_is_refused_with_the_layers_name() -> None:
    state = adapter("fedsvd", Shapes(rank=4, layers=((6, 3),)), 0)
    with pytest.raises(FoedusError, match=r"at most 3 .*layer\.0\.query.*got 4"):
        build_strategy(settings("fedsvd")).initial_state(state)


def test_many_rounds_stay_in_the_row_space_of_the_first_a() -> None:
    strategy = build_strategy(settings("fedsvd"))
    state = start = strategy.initial_state(adapter("fedsvd", SMALL, 1, zero_b=True))
    for round_ in range(1, 31):
        state = run_round(
            strategy, round_, state, round_updates(strategy, round_, state, 2, round_)
        )
    for (_, a, _), (_, new_a, _) in zip(start.pairs(), state.pairs(), strict=True):
        assert not np.allclose(a, new_a, atol=1e-2)
        np.testing.assert_allclose(_projector(new_a), _projector(a), atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "same_path"), [("sgd", True), ("clipped sgd", True), ("sign", False)]
)
def test_the_turned_basis_is_invisible_to_sgd_and_clipping_but_not_to_entrywise_rules(
    rule: str, same_path: bool
) -> None:
    """Sites fit W ~ target_k on a shared orthonormal A; FedSVD turns the basis, FFA does not."""
    rng = np.random.default_rng(2)
    d_out, d_in, rank = 6, 10, 3
    targets = [rng.normal(size=(d_out, d_in)) for _ in range(3)]
    a = orthonormal_rows(rng.normal(size=(rank, d_in)))
    b = np.zeros((d_out, rank))

    def local_delta(a: np.ndarray, b: np.ndarray, target: np.ndarray) -> np.ndarray:
        trained: np.ndarray = b.copy()
        for _ in range(4):
            gradient = (trained @ a - target) @ a.T
            if rule == "clipped sgd":
                gradient = gradient * min(1.0, 0.5 / np.linalg.norm(gradient))
            trained -= 0.1 * (np.sign(gradient) if rule == "sign" else gradient)
        delta: np.ndarray = trained - b
        return delta

    ffa_b, svd_a, svd_b = b, a, b
    for _ in range(5):
        ffa_b = ffa_b + np.mean([local_delta(a, ffa_b, t) for t in targets], axis=0)
        mean = np.mean([local_delta(svd_a, svd_b, t) for t in targets], axis=0)
        turned = refactor(svd_a, svd_b + mean)
        svd_a, svd_b = turned.a.astype(np.float64), turned.b.astype(np.float64)
    assert not np.allclose(svd_a, a, atol=1e-2)
    assert (relative_error(svd_b @ svd_a, ffa_b @ a) < 1e-5) is same_path
