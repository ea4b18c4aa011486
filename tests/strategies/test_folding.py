"""Folding: any order, one update's memory, capped weights, and refusal without a trace."""

from __future__ import annotations

import logging
import tracemalloc
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.adapter import AdapterState, FloatArray
from protocol.errors import FoedusError, WireError
from protocol.reasons import RejectionReason
from strategies import build_strategy
from strategies.running_sum import BLOCK_ENTRIES, RunningSum
from strategies.weighting import update_weight
from tests.strategies.adapters import (
    HEAD,
    SMALL,
    adapter,
    round_updates,
    run_round,
    seeds,
    settings,
)


@given(seeds, st.permutations(range(6)))
def test_the_order_of_arrival_does_not_matter(seed: int, order: list[int]) -> None:
    strategy = build_strategy(settings("fedit", weighting="examples"))
    state = adapter("fedit", SMALL, seed)
    sites = round_updates(strategy, 1, state, 6, seed)
    counts = [1, 10, 100, 1000, 7, 77]
    straight = run_round(strategy, 1, state, sites, counts)
    shuffled = run_round(strategy, 1, state, [sites[i] for i in order], [counts[i] for i in order])
    for name, tensor in straight.tensors.items():
        np.testing.assert_allclose(shuffled.tensors[name], tensor, rtol=1e-7, atol=1e-12)
    assert shuffled.digest() == straight.digest()


def test_the_sum_is_right_across_block_borders_and_for_odd_layouts() -> None:
    rng = np.random.default_rng(0)
    big = rng.normal(size=(3, BLOCK_ENTRIES - 1)).astype(np.float32)
    transposed = rng.normal(size=(300, 500)).astype(np.float32).T
    total = RunningSum()
    total.add({"big": big, "transposed": transposed}, 2.0)
    total.add({"big": -big, "transposed": transposed}, 1.0)
    mean = total.take_mean()
    np.testing.assert_allclose(mean["big"], big / 3, rtol=1e-6)
    np.testing.assert_allclose(mean["transposed"], transposed, rtol=1e-6)
    assert total.take_mean() == {}


def test_folding_many_updates_needs_the_memory_of_one_running_sum() -> None:
    entries = 2_000_000
    update = {"w": np.ones((1000, entries // 1000), dtype=np.float32)}
    tracemalloc.start()
    try:
        total = RunningSum()
        for _ in range(8):
            total.add(update, 3.0)
        total.take_mean()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1.1 * 8 * entries


def test_float64_sum_does_not_lose_small_updates_among_many() -> None:
    total = RunningSum()
    total.add({"w": np.array([1.0], dtype=np.float32)}, 1.0)
    for _ in range(1000):
        total.add({"w": np.array([1e-9], dtype=np.float32)}, 1.0)
    assert total.take_mean()["w"][0] * 1001 - 1.0 == pytest.approx(1e-6, rel=1e-6)


def test_a_round_without_updates_returns_the_old_state_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    for method in ("fedsvd", "rolora"):
        strategy = build_strategy(settings(method, server_optimizer="momentum"))
        state = strategy.initial_state(adapter(method, SMALL, 0))
        state = run_round(strategy, 1, state, round_updates(strategy, 1, state, 2, 0))
        moments = strategy.optimizer_state()
        with caplog.at_level(logging.WARNING):
            assert run_round(strategy, 2, state, []) is state
        assert "Round 2: no update" in caplog.text
        for name, tensor in strategy.optimizer_state().items():
            np.testing.assert_array_equal(tensor, moments[name])


def test_what_an_abandoned_round_folded_is_not_in_the_next() -> None:
    strategy = build_strategy(settings("ffa"))
    state = adapter("ffa", SMALL, 0)
    lost, kept = round_updates(strategy, 1, state, 2, 0)
    strategy.begin_round(1, state)
    strategy.fold(lost, 5)
    assert run_round(strategy, 2, state, [kept]).digest() == (
        run_round(build_strategy(settings("ffa")), 2, state, [kept]).digest()
    )


@pytest.mark.parametrize(
    ("count", "weighting", "cap", "weight"),
    [
        (10, "examples", 100, 10.0),
        (100, "examples", 100, 100.0),
        (10**9, "examples", 100, 100.0),
        (10**9, "uniform", 100, 1.0),
        (0, "uniform", 100, 0.0),
        (0, "examples", 100, 0.0),
    ],
)
def test_weights_are_uniform_or_capped_counts(
    count: int, weighting: str, cap: int, weight: float
) -> None:
    assert update_weight(count, weighting, cap) == weight


@pytest.mark.parametrize("weighting", ["uniform", "examples"])
@pytest.mark.parametrize("count", [-1, -0.5, float("nan"), float("inf"), True, "7", None])
def test_nonsense_counts_are_refused_under_either_weighting(count: object, weighting: str) -> None:
    with pytest.raises(WireError) as refused:
        update_weight(count, weighting, 10)  # type: ignore[arg-type]
    assert refused.value.code == RejectionReason.BAD_WEIGHT


def test_unknown_weighting_and_useless_cap_are_refused() -> None:
    with pytest.raises(FoedusError, match="'loss'"):
        update_weight(1, "loss", 10)
    with pytest.raises(FoedusError, match="at least 1, got 0"):
        update_weight(1, "examples", 0)


def test_a_boastful_site_moves_the_mean_no_more_than_the_cap_allows() -> None:
    strategy = build_strategy(settings("ffa", weighting="examples", weight_cap=50))
    state = adapter("ffa", SMALL, 1)
    honest, boastful = round_updates(strategy, 1, state, 2, 1)
    new = run_round(strategy, 1, state, [honest, boastful], [50, 10**12])
    mean = (honest.tensors[HEAD] + boastful.tensors[HEAD]) / 2
    np.testing.assert_allclose(new.tensors[HEAD], state.tensors[HEAD] + mean, atol=1e-6)


def _with(name: str, tensor: FloatArray) -> Callable[[AdapterState], AdapterState]:
    return lambda update: update.replace_tensors({**update.tensors, name: tensor})


def _without_head(update: AdapterState) -> AdapterState:
    return update.replace_tensors({n: t for n, t in update.tensors.items() if n != HEAD})


@pytest.mark.parametrize(
    ("spoil", "count", "code"),
    [
        (_with(HEAD, np.full((4, 6), np.nan, np.float32)), 1, RejectionReason.NOT_FINITE),
        (_with(HEAD, np.full((4, 6), np.inf, np.float32)), 1, RejectionReason.NOT_FINITE),
        (_with(HEAD, np.zeros((6, 4), np.float32)), 1, RejectionReason.WRONG_SHAPE),
        (_with("extra", np.zeros(3, np.float32)), 1, RejectionReason.WRONG_LAYOUT),
        (_without_head, 1, RejectionReason.WRONG_LAYOUT),
        (lambda update: update, float("nan"), RejectionReason.BAD_WEIGHT),
        (lambda update: update, -5, RejectionReason.BAD_WEIGHT),
    ],
)
def test_a_bad_update_is_refused_with_its_reason_and_leaves_no_trace(
    spoil: Callable[[AdapterState], AdapterState], count: float, code: RejectionReason
) -> None:
    strategy = build_strategy(settings("fedsvd"))
    state = strategy.initial_state(adapter("fedsvd", SMALL, 0))
    good = round_updates(strategy, 1, state, 1, 0)[0]
    alone = run_round(strategy, 1, state, [good])
    strategy.begin_round(1, state)
    with pytest.raises(WireError) as refused:
        strategy.fold(spoil(good), count)
    strategy.fold(good, 1)
    assert refused.value.code == code
    assert strategy.num_folded == 1
    assert strategy.finish_round().digest() == alone.digest()


def test_an_update_for_another_scale_or_method_is_refused() -> None:
    strategy = build_strategy(settings("ffa"))
    state = adapter("ffa", SMALL, 0)
    update = round_updates(strategy, 1, state, 1, 0)[0]
    strategy.begin_round(1, state)
    other = AdapterState(update.tensors, update.rank, 99.0, update.base_digest, update.method)
    with pytest.raises(WireError, match=r"99\.0"):
        strategy.fold(other, 1)
    with pytest.raises(FoedusError, match="method 'ffa', got 'fedit'"):
        strategy.begin_round(1, adapter("fedit", SMALL, 0))


def test_folding_outside_a_round_is_refused() -> None:
    strategy = build_strategy(settings("ffa"))
    state = adapter("ffa", SMALL, 0)
    with pytest.raises(FoedusError, match="begin_round before"):
        strategy.fold(state, 1)
    run_round(strategy, 1, state, [])
    with pytest.raises(FoedusError, match="begin_round before"):
        strategy.finish_round()


def test_a_step_that_overflows_is_reported_with_the_setting_to_change() -> None:
    strategy = build_strategy(settings("ffa", server_learning_rate=1e39))
    state = adapter("ffa", SMALL, 0)
    with pytest.raises(FoedusError, match="server_learning_rate"):
        run_round(strategy, 1, state, round_updates(strategy, 1, state, 1, 0))


def test_folding_changes_neither_the_update_nor_the_global_state() -> None:
    strategy = build_strategy(settings("fedsvd", server_optimizer="adam"))
    state = strategy.initial_state(adapter("fedsvd", SMALL, 0))
    sites = round_updates(strategy, 1, state, 2, 0)
    before = [state.digest(), *(u.digest() for u in sites)]
    run_round(strategy, 1, state, sites)
    assert [state.digest(), *(u.digest() for u in sites)] == before
