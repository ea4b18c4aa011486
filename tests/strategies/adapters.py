"""Small adapters with unequal, non-square layers, and sites' updates to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from hypothesis import strategies as st

from protocol.adapter import AdapterState, FloatArray, a_name, b_name, factor_of
from protocol.methods import Factor, uploaded_factors
from protocol.settings import FederationSettings
from strategies.base import LoraStrategy

BASE_DIGEST = "a" * 64
HEAD = "base_model.model.classifier.weight"


@dataclass(frozen=True)
class Shapes:
    """rank r and (d_out, d_in) of every layer."""

    rank: int
    layers: tuple[tuple[int, int], ...]


SMALL = Shapes(rank=3, layers=((7, 11), (5, 4)))

# d_out may be below the rank (a narrow output); d_in may not, or A had no orthonormal rows.
shapes = st.integers(1, 5).flatmap(
    lambda rank: st.builds(
        Shapes,
        st.just(rank),
        st.lists(st.tuples(st.integers(1, 12), st.integers(rank, 12)), min_size=1, max_size=3).map(
            tuple
        ),
    )
)
seeds = st.integers(0, 2**32 - 1)


def adapter(
    method: str, shape: Shapes, seed: int, *, zero_b: bool = False, random_b_rank: int | None = None
) -> AdapterState:
    """An adapter with a head; B random (of full rank or ``random_b_rank``) or zero."""
    rng = np.random.default_rng(seed)
    tensors: dict[str, FloatArray] = {HEAD: _draw(rng, (4, 6))}
    for index, (d_out, d_in) in enumerate(shape.layers):
        module = f"base_model.model.layer.{index}.query"
        tensors[a_name(module)] = _draw(rng, (shape.rank, d_in))
        b = _draw(rng, (d_out, shape.rank))
        if random_b_rank is not None:
            left = rng.normal(size=(d_out, random_b_rank))
            b = (left @ rng.normal(size=(random_b_rank, shape.rank))).astype(np.float32)
        tensors[b_name(module)] = np.zeros_like(b) if zero_b else b
    return AdapterState(tensors, shape.rank, 2.0 * shape.rank, BASE_DIGEST, method)


def updates(
    state: AdapterState, factors: frozenset[Factor], count: int, seed: int
) -> list[AdapterState]:
    """``count`` sites' random deltas of these factors."""
    rng = np.random.default_rng([seed, 1])
    return [
        state.replace_tensors(
            {n: _draw(rng, t.shape) for n, t in state.tensors.items() if factor_of(n) in factors}
        )
        for _ in range(count)
    ]


def run_round(
    strategy: LoraStrategy,
    round_: int,
    state: AdapterState,
    sites: Sequence[AdapterState],
    counts: Sequence[float] | None = None,
) -> AdapterState:
    """One round with these updates."""
    strategy.begin_round(round_, state)
    for update, count in zip(sites, counts or [1] * len(sites), strict=True):
        strategy.fold(update, count)
    return strategy.finish_round()


def round_updates(
    strategy: LoraStrategy, round_: int, state: AdapterState, count: int, seed: int
) -> list[AdapterState]:
    """Random deltas of what the method uploads in this round."""
    return updates(state, uploaded_factors(strategy.method, round_), count, seed)


def products(tensors: Mapping[str, FloatArray], like: AdapterState) -> dict[str, np.ndarray]:
    """s * B @ A of every module, dense, float64: the independent check."""
    scale = like.alpha / like.rank
    return {
        module: scale * b.astype(np.float64) @ a.astype(np.float64)
        for module, a, b in like.replace_tensors(tensors).pairs()
    }


def mean_product(
    state: AdapterState, sites: Sequence[AdapterState], weights: Sequence[float]
) -> dict[str, np.ndarray]:
    """Weighted mean of s * (B + dB_k) @ (A + dA_k) over sites, dense, float64."""
    total: dict[str, np.ndarray] = {}
    for update, weight in zip(sites, weights, strict=True):
        trained = {
            name: tensor.astype(np.float64) + update.tensors.get(name, 0.0)
            for name, tensor in state.tensors.items()
        }
        scale = state.alpha / state.rank
        for module, _, _ in state.pairs():
            product = scale * trained[b_name(module)] @ trained[a_name(module)]
            total[module] = total.get(module, 0.0) + product * weight / sum(weights)
    return total


def relative_error(got: np.ndarray, expected: np.ndarray) -> float:
    """||got - expected||_F / ||expected||_F."""
    return float(np.linalg.norm(got - expected)) / max(float(np.linalg.norm(expected)), 1e-30)


def settings(method: str, **changes: object) -> FederationSettings:
    """Federation settings of a method; other fields as given."""
    return FederationSettings(method=method, **changes)  # type: ignore[arg-type]


def _draw(rng: np.random.Generator, shape: tuple[int, ...]) -> FloatArray:
    return rng.normal(size=shape).astype(np.float32)
