"""Exact methods reproduce the mean of the sites' updates; FedIT does not, by a measured gap."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.adapter import a_name, b_name
from strategies import build_strategy
from strategies.aggregation_error import relative_aggregation_error, thin_product_norm
from tests.strategies.adapters import (
    HEAD,
    SMALL,
    Shapes,
    adapter,
    mean_product,
    products,
    relative_error,
    round_updates,
    run_round,
    seeds,
    settings,
    shapes,
    updates,
)

EXACT = st.sampled_from([("fedsvd", 1), ("fedsvd", 2), ("ffa", 1), ("rolora", 1), ("rolora", 2)])
counts = st.lists(st.integers(1, 3000), min_size=1, max_size=5)


@given(EXACT, shapes, counts, seeds)
def test_exact_methods_reproduce_the_weighted_mean_update(
    case: tuple[str, int], shape: Shapes, site_counts: list[int], seed: int
) -> None:
    method, round_ = case
    strategy = build_strategy(settings(method, weighting="examples", weight_cap=1000))
    state = strategy.initial_state(adapter(method, shape, seed))
    sites = round_updates(strategy, round_, state, len(site_counts), seed)
    weights = [min(count, 1000) for count in site_counts]

    new = run_round(strategy, round_, state, sites, site_counts)

    expected = mean_product(state, sites, weights)
    got = products(new.tensors, new)
    assert expected
    for module, product in expected.items():
        assert relative_error(got[module], product) < 1e-5
    mean_head = np.average([u.tensors[HEAD] for u in sites], axis=0, weights=weights)
    np.testing.assert_allclose(new.tensors[HEAD], state.tensors[HEAD] + mean_head, atol=1e-5)


@given(st.sampled_from(["fedsvd", "ffa", "rolora", "fedit"]), shapes, seeds)
def test_the_first_round_works_from_zero_b(method: str, shape: Shapes, seed: int) -> None:
    strategy = build_strategy(settings(method))
    state = strategy.initial_state(adapter(method, shape, seed, zero_b=True))
    for product in products(state.tensors, state).values():
        assert not product.any()
    sites = round_updates(strategy, 1, state, 3, seed)
    new = run_round(strategy, 1, state, sites)
    if method != "fedit":
        for module, product in mean_product(state, sites, [1, 1, 1]).items():
            assert relative_error(products(new.tensors, new)[module], product) < 1e-5
    assert all(np.isfinite(t).all() and t.any() for t in new.tensors.values())


def test_fedit_is_inexact_in_general_and_exact_when_sites_agree_on_a() -> None:
    strategy = build_strategy(settings("fedit"))
    state = adapter("fedit", SMALL, 3)
    sites = round_updates(strategy, 1, state, 4, 3)
    new = run_round(strategy, 1, state, sites)
    shared_a = [
        u.replace_tensors(
            {n: sites[0].tensors[n] if ".lora_A." in n else t for n, t in u.tensors.items()}
        )
        for u in sites
    ]
    agreed = run_round(strategy, 1, state, shared_a)

    for module, expected in mean_product(state, sites, [1] * 4).items():
        assert relative_error(products(new.tensors, new)[module], expected) > 0.1
    for module, expected in mean_product(state, shared_a, [1] * 4).items():
        assert relative_error(products(agreed.tensors, agreed)[module], expected) < 1e-5


@given(shapes, counts, seeds)
def test_measured_aggregation_error_is_that_of_the_dense_products(
    shape: Shapes, site_counts: list[int], seed: int
) -> None:
    strategy = build_strategy(settings("fedit"))
    state = adapter("fedit", shape, seed)
    sites = round_updates(strategy, 1, state, len(site_counts), seed)
    new = run_round(strategy, 1, state, sites)
    weights = [1.0] * len(sites)
    dense = mean_product(state, sites, weights)
    for module, a, b in new.pairs():
        name_a, name_b = a_name(module), b_name(module)
        measured = relative_aggregation_error(
            [state.tensors[name_a] + u.tensors[name_a] for u in sites],
            [state.tensors[name_b] + u.tensors[name_b] for u in sites],
            weights,
            a,
            b,
        )
        expected = relative_error(products(new.tensors, new)[module], dense[module])
        assert measured == pytest.approx(expected, rel=1e-4, abs=1e-5)


@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12), seeds)
def test_thin_norm_is_the_dense_norm(d_out: int, d_in: int, k: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    b, a = rng.normal(size=(d_out, k)), rng.normal(size=(k, d_in))
    assert thin_product_norm(b, a) == pytest.approx(np.linalg.norm(b @ a), rel=1e-9)


def test_aggregation_error_of_nothing_is_zero_and_of_something_from_nothing_infinite() -> None:
    a, zero = np.eye(2, 5), np.zeros((3, 2))
    assert relative_aggregation_error([a], [zero], [1.0], a, zero) == 0.0
    assert relative_aggregation_error([a], [zero], [1.0], a, zero + 1) == float("inf")


@given(st.sampled_from(["fedsvd", "ffa", "rolora", "fedit", "fedsa"]), st.integers(1, 4), seeds)
def test_what_a_method_does_not_train_in_a_round_stays_bit_for_bit(
    method: str, round_: int, seed: int
) -> None:
    strategy = build_strategy(settings(method))
    state = strategy.initial_state(adapter(method, SMALL, seed))
    sites = round_updates(strategy, round_, state, 2, seed)
    new = run_round(strategy, round_, state, sites)
    for name, tensor in state.tensors.items():
        if name in sites[0].tensors:
            assert not np.array_equal(new.tensors[name], tensor)
        elif method != "fedsvd":  # FedSVD turns A without training it.
            np.testing.assert_array_equal(new.tensors[name], tensor)


def test_fedsa_averages_a_and_never_takes_a_sites_b() -> None:
    strategy = build_strategy(settings("fedsa"))
    state = adapter("fedsa", SMALL, 5, zero_b=True)
    sites = round_updates(strategy, 1, state, 3, 5)
    new = run_round(strategy, 1, state, sites)
    for name, tensor in new.tensors.items():
        if ".lora_A." in name:
            mean = np.mean([u.tensors[name] for u in sites], axis=0)
            np.testing.assert_allclose(tensor, state.tensors[name] + mean, atol=1e-6)
        elif ".lora_B." in name:
            assert not tensor.any()
    strategy.begin_round(2, new)
    with pytest.raises(Exception, match=r"missing or unknown.*lora_B"):
        strategy.fold(updates(state, frozenset({"A", "B", "head"}), 1, 5)[0], 10)
