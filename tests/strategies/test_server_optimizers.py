"""Server optimisers: hand-computed steps, exact rotation, state that survives a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from protocol.errors import FoedusError
from strategies import build_strategy
from strategies.fedsvd import refactor
from strategies.server_optimizers import (
    FIRST_MOMENT,
    SECOND_MOMENT,
    STEPS,
    OptimizerState,
    ServerOptimizer,
    rotate,
)
from tests.strategies.adapters import (
    SMALL,
    adapter,
    products,
    relative_error,
    round_updates,
    run_round,
    seeds,
    settings,
)

DELTAS = (1.0, -2.0, 4.0)


def _trajectory(optimizer: ServerOptimizer) -> list[float]:
    state: OptimizerState = {}
    steps = []
    for delta in DELTAS:
        step, state = optimizer.step({"w": np.array([delta])}, state)
        steps.append(float(step["w"][0]))
    return steps


def test_none_adds_the_mean_update() -> None:
    assert _trajectory(ServerOptimizer("none")) == [1.0, -2.0, 4.0]
    assert _trajectory(ServerOptimizer("none", learning_rate=0.5)) == [0.5, -1.0, 2.0]


def test_momentum_follows_the_hand_computed_trajectory() -> None:
    # m = 1; 0.5 - 2 = -1.5; -0.75 + 4 = 3.25, each times 0.1.
    got = _trajectory(ServerOptimizer("momentum", learning_rate=0.1, momentum=0.5))
    assert got == pytest.approx([0.1, -0.15, 0.325])


def test_nesterov_follows_the_hand_computed_trajectory() -> None:
    # delta + 0.5 m with the m above: 1.5, -2.75, 5.625, each times 0.7.
    got = _trajectory(ServerOptimizer("nesterov", learning_rate=0.7, momentum=0.5))
    assert got == pytest.approx([1.05, -1.925, 3.9375])


def test_adam_follows_the_hand_computed_trajectory() -> None:
    # beta1 0.5, beta2 0.75, epsilon 1. m: .5, -.75, 1.625; corrected 1, -1, 13/7.
    # v: .25, 1.1875, 4.890625; corrected 1, 19/7, 4.890625 / .578125.
    got = _trajectory(ServerOptimizer("adam", 0.1, momentum=0.5, beta2=0.75, epsilon=1.0))
    third = (13 / 7) / ((4.890625 / 0.578125) ** 0.5 + 1)
    assert got == pytest.approx([0.05, -0.1 / ((19 / 7) ** 0.5 + 1), 0.1 * third])


@pytest.mark.parametrize("name", ["momentum", "nesterov", "adam"])
def test_trajectories_are_those_of_torch_descending_minus_delta(name: str) -> None:
    rng = np.random.default_rng(0)
    deltas = rng.normal(size=(12, 3, 5)).astype(np.float32)
    weight = torch.zeros(3, 5, dtype=torch.float64, requires_grad=True)
    theirs: torch.optim.Optimizer
    if name == "adam":
        theirs = torch.optim.Adam([weight], lr=0.05, betas=(0.9, 0.99), eps=1e-3)
    else:
        theirs = torch.optim.SGD([weight], lr=0.05, momentum=0.9, nesterov=name == "nesterov")
    ours = ServerOptimizer(name, 0.05, momentum=0.9, beta2=0.99, epsilon=1e-3)
    total, state = np.zeros((3, 5)), dict[str, Any]()
    for delta in deltas:
        weight.grad = -torch.from_numpy(delta.astype(np.float64))
        theirs.step()
        step, state = ours.step({"w": delta}, state)
        total += step["w"]
    np.testing.assert_allclose(total, weight.detach().numpy(), rtol=1e-5, atol=1e-7)


def test_an_unknown_optimiser_is_refused() -> None:
    with pytest.raises(FoedusError, match="none, momentum, nesterov, adam, got 'sgd'"):
        ServerOptimizer("sgd")


def test_a_tensor_that_rests_for_a_round_keeps_its_moments_and_its_own_step_count() -> None:
    optimizer = ServerOptimizer("adam")
    _, state = optimizer.step({"a": np.ones(2), "b": np.ones(2)}, {})
    _, after = optimizer.step({"a": np.ones(2)}, state)
    assert (int(after[STEPS + "a"][0]), int(after[STEPS + "b"][0])) == (2, 1)
    np.testing.assert_array_equal(after[FIRST_MOMENT + "b"], state[FIRST_MOMENT + "b"])


@given(seeds, st.integers(1, 5), st.integers(1, 9), st.integers(5, 9))
def test_rotated_momentum_moves_the_product_exactly_as_before(
    seed: int, rank: int, d_out: int, d_in: int
) -> None:
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(rank, d_in)), rng.normal(size=(d_out, rank))
    moment = rng.normal(size=(d_out, rank)).astype(np.float32)
    turned = refactor(a, b)
    state = rotate({FIRST_MOMENT + "b": moment}, {"b": turned.basis_change})
    np.testing.assert_allclose(
        np.asarray(state[FIRST_MOMENT + "b"], dtype=np.float64) @ turned.a, moment @ a, atol=1e-4
    )


def test_momentum_in_fedsvd_walks_the_path_of_ffa_with_the_same_orthonormal_a() -> None:
    """The whole pipeline: with deltas that are equal as products, the turn leaves no trace."""
    changes = {"server_optimizer": "momentum", "server_learning_rate": 0.5, "server_momentum": 0.8}
    svd = build_strategy(settings("fedsvd", **changes))
    ffa = build_strategy(settings("ffa", **changes))
    turned = start = svd.initial_state(adapter("fedsvd", SMALL, 6, zero_b=True))
    plain = adapter("ffa", SMALL, 6).replace_tensors(start.tensors)
    for round_ in range(1, 7):
        sites = round_updates(ffa, round_, plain, 2, round_)
        in_turned_basis = []
        for site in sites:
            tensors = dict(site.tensors)
            for (module, a, _), (_, a_now, _) in zip(plain.pairs(), turned.pairs(), strict=True):
                name = module + ".lora_B.weight"
                tensors[name] = (tensors[name] @ a @ a_now.T).astype(np.float32)
            in_turned_basis.append(turned.replace_tensors(tensors))
        plain = run_round(ffa, round_, plain, sites)
        turned = run_round(svd, round_, turned, in_turned_basis)
    for module, expected in products(plain.tensors, plain).items():
        assert relative_error(products(turned.tensors, turned)[module], expected) < 1e-5


def test_rotation_keeps_each_rows_total_of_adams_second_moment_and_bounds_the_next_step() -> None:
    rng = np.random.default_rng(1)
    optimizer = ServerOptimizer("adam", learning_rate=1.0, epsilon=1e-6)
    a = refactor(rng.normal(size=(4, 9)), np.zeros((6, 4))).a
    state: OptimizerState = {}
    for _ in range(100):
        delta = rng.normal(size=(6, 4)) * 1e-2
        step, state = optimizer.step({"b": delta}, state)
        # With v zeroed instead of spread, steps of hundreds occur here.
        assert np.abs(step["b"]).max() < 2.0
        turned = refactor(a, rng.normal(size=(6, 4)))
        rows = np.asarray(state[SECOND_MOMENT + "b"]).sum(axis=1)
        a, state = turned.a, rotate(state, {"b": turned.basis_change})
        np.testing.assert_allclose(
            np.asarray(state[SECOND_MOMENT + "b"]).sum(axis=1), rows, rtol=1e-4
        )


@pytest.mark.parametrize("method", ["fedsvd", "rolora"])
@pytest.mark.parametrize("name", ["none", "momentum", "nesterov", "adam"])
def test_a_run_continued_from_saved_state_equals_the_uninterrupted_one_bit_for_bit(
    method: str, name: str, tmp_path: Path
) -> None:
    chosen = settings(method, server_optimizer=name, server_learning_rate=0.1)
    whole = build_strategy(chosen)
    state = whole.initial_state(adapter(method, SMALL, 2, zero_b=True))
    for round_ in (1, 2):
        state = run_round(whole, round_, state, round_updates(whole, round_, state, 3, round_))
    save_file(whole.optimizer_state(), tmp_path / "optimizer.safetensors")
    assert bool(whole.optimizer_state()) is (name != "none")

    resumed = build_strategy(chosen)
    resumed.load_optimizer_state(load_file(tmp_path / "optimizer.safetensors"))
    continued = state
    for round_ in (3, 4):
        sites = round_updates(whole, round_, state, 3, round_)
        state = run_round(whole, round_, state, sites)
        continued = run_round(resumed, round_, continued, sites)
    assert continued.digest() == state.digest()


def test_state_of_another_kind_is_refused() -> None:
    with pytest.raises(FoedusError, match="got 'velocity/w'"):
        build_strategy(settings("ffa")).load_optimizer_state({"velocity/w": np.zeros(3)})
