"""Stock Flower strategies as the aggregation: they get full weights and really decide."""

from __future__ import annotations

import numpy as np
import pytest

from protocol.errors import FoedusError
from strategies import build_strategy
from strategies.foreign import aggregator_factory
from tests.strategies.adapters import (
    HEAD,
    SMALL,
    adapter,
    round_updates,
    run_round,
    settings,
)

FLOWER = "flwr.serverapp.strategy."


@pytest.mark.parametrize("method", ["ffa", "rolora", "fedit"])
def test_fedmedian_gives_the_coordinate_median_and_shrugs_off_an_outlier(method: str) -> None:
    strategy = build_strategy(settings(method, aggregator=FLOWER + "FedMedian"))
    state = adapter(method, SMALL, 4)
    honest = round_updates(strategy, 1, state, 4, 4)
    outlier = honest[0].replace_tensors(
        {n: np.full_like(t, 1e6) for n, t in honest[0].tensors.items()}
    )
    new = run_round(strategy, 1, state, [*honest, outlier])
    for name in honest[0].tensors:
        deltas = [u.tensors[name] for u in [*honest, outlier]]
        np.testing.assert_allclose(
            new.tensors[name], state.tensors[name] + np.median(deltas, axis=0), atol=1e-5
        )
        assert np.abs(new.tensors[name]).max() < 100
    untouched = set(state.tensors) - set(honest[0].tensors)
    for name in untouched:
        np.testing.assert_array_equal(new.tensors[name], state.tensors[name])


def test_krum_with_arguments_picks_one_site_near_the_others() -> None:
    strategy = build_strategy(settings("ffa", aggregator=FLOWER + "Krum(num_malicious_nodes=1)"))
    state = adapter("ffa", SMALL, 0)
    honest = round_updates(strategy, 1, state, 4, 0)
    outlier = honest[0].replace_tensors({n: 100 + t for n, t in honest[0].tensors.items()})
    new = run_round(strategy, 1, state, [outlier, *honest])
    chosen = [
        all(
            np.allclose(new.tensors[n], state.tensors[n] + t, atol=1e-5)
            for n, t in u.tensors.items()
        )
        for u in [outlier, *honest]
    ]
    assert sum(chosen) == 1 and not chosen[0]


@pytest.mark.parametrize("method", ["ffa", "rolora", "fedit"])
def test_flowers_fedavg_agrees_with_our_capped_mean(method: str) -> None:
    weights = {"weighting": "examples", "weight_cap": 20}
    ours = build_strategy(settings(method, **weights))
    theirs = build_strategy(settings(method, aggregator=FLOWER + "FedAvg", **weights))
    state = adapter(method, SMALL, 7)
    for round_ in (1, 2, 3):
        sites = round_updates(ours, round_, state, 3, round_)
        expected = run_round(ours, round_, state, sites, [5, 20, 4000])
        got = run_round(theirs, round_, state, sites, [5, 20, 4000])
        for name, tensor in expected.tensors.items():
            np.testing.assert_allclose(got.tensors[name], tensor, atol=1e-5)
        state = expected


@pytest.mark.parametrize(
    "name",
    [
        "FedAdam(eta=0.01)",
        "FedYogi(eta=0.01)",
        "FedAdagrad(eta=0.01)",
        "FedAvgM(server_learning_rate=0.5, server_momentum=0.5)",
        "FedTrimmedAvg(beta=0.25)",
        "MultiKrum(num_malicious_nodes=0, num_nodes_to_select=2)",
    ],
)
@pytest.mark.parametrize("method", ["ffa", "rolora", "fedit"])
def test_flowers_other_strategies_run_for_several_rounds(name: str, method: str) -> None:
    strategy = build_strategy(settings(method, aggregator=FLOWER + name))
    state = adapter(method, SMALL, 9)
    for round_ in (1, 2, 3, 4):
        sites = round_updates(strategy, round_, state, 4, round_)
        new = run_round(strategy, round_, state, sites)
        assert new.digest() != state.digest()
        assert not np.array_equal(new.tensors[HEAD], state.tensors[HEAD])
        state = new


def test_flowers_momentum_moves_on_from_round_to_round() -> None:
    momentum = "FedAvgM(server_learning_rate=1.0, server_momentum=0.5)"
    theirs = build_strategy(settings("fedit", aggregator=FLOWER + momentum))
    ours = build_strategy(settings("fedit", server_optimizer="momentum", server_momentum=0.5))
    state = adapter("fedit", SMALL, 1)
    for round_ in (1, 2, 3):
        sites = round_updates(ours, round_, state, 2, round_)
        expected = run_round(ours, round_, state, sites)
        got = run_round(theirs, round_, state, sites)
        for name, tensor in expected.tensors.items():
            np.testing.assert_allclose(got.tensors[name], tensor, atol=1e-4)
        state = expected


def test_a_strategy_that_finds_too_few_updates_leaves_the_adapter_as_it_was() -> None:
    strategy = build_strategy(settings("ffa", aggregator=FLOWER + "Bulyan(num_malicious_nodes=1)"))
    state = adapter("ffa", SMALL, 0)
    assert run_round(strategy, 1, state, round_updates(strategy, 1, state, 3, 0)) is state


@pytest.mark.parametrize("method", ["fedsvd", "fedsa"])
def test_methods_that_are_more_than_an_average_refuse_an_aggregator(method: str) -> None:
    with pytest.raises(FoedusError, match=f"fedit, ffa, rolora .*got '{method}'"):
        build_strategy(settings(method, aggregator=FLOWER + "FedMedian"))


@pytest.mark.parametrize(
    ("aggregator", "why"),
    [
        ("FedMedian", "not a dotted path"),
        ("flwr.serverapp.strategy.FedMedium", "cannot be imported"),
        ("no.such.module.Strategy", "cannot be imported"),
        ("os.path.join", "not a class derived"),
        ("collections.OrderedDict", "not a class derived"),
        ("flwr.serverapp.strategy.Strategy", "cannot be built"),
        ("flwr.serverapp.strategy.Krum(evil=1)", "cannot be built"),
        ("flwr.serverapp.strategy.Krum(1)", "keyword arguments"),
        ("flwr.serverapp.strategy.Krum(num_malicious_nodes=open('x'))", "not a dotted path"),
        ("__import__('os').system('true')", "not a dotted path"),
        ("a b", "not a dotted path"),
    ],
)
def test_an_unusable_aggregator_is_refused_with_the_reason(aggregator: str, why: str) -> None:
    with pytest.raises(FoedusError, match=why):
        aggregator_factory(aggregator)


def test_a_checkpoint_with_our_optimisers_state_is_not_loaded_into_a_foreign_strategy() -> None:
    strategy = build_strategy(settings("ffa", aggregator=FLOWER + "FedMedian"))
    strategy.load_optimizer_state({})
    assert strategy.optimizer_state() == {}
    with pytest.raises(FoedusError, match="settings of the interrupted run"):
        strategy.load_optimizer_state({"first_moment/w": np.zeros(2)})
