"""Flower's stock loop drives our strategies, and one bad reply does not end the run."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

from protocol.adapter import AdapterState
from protocol.errors import FoedusError
from protocol.messages import Reply, Request
from protocol.methods import uploaded_factors
from protocol.settings import FederationSettings, ModelSettings, RunSettings, TaskSettings
from strategies import build_strategy
from tests.strategies.adapters import (
    SMALL,
    adapter,
    products,
    relative_error,
    run_round,
    settings,
    updates,
)

RUN_ID = "0" * 32
Site = Callable[[int, Request], RecordDict | Error]


class LoopGrid(Grid):
    """A Flower grid in one process: every node answers at once by calling ``site``."""

    def __init__(self, num_nodes: int, site: Site) -> None:
        self._nodes = range(1, num_nodes + 1)
        self._site = site
        self.asked: list[tuple[str, int]] = []

    def get_node_ids(self) -> Iterable[int]:
        return self._nodes

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        node, kind = message.metadata.dst_node_id, message.metadata.message_type
        self.asked.append((kind, node))
        request = Request.from_content(message.content, "train" if kind == "train" else "evaluate")
        answer = self._site(node, request)
        metadata = Metadata(1, "", node, 1, "", "", message.metadata.created_at, 60.0, kind)
        if isinstance(answer, Error):
            return make_message(metadata, error=answer)
        return make_message(metadata, content=answer)

    @property
    def run(self) -> Any:
        raise AssertionError("not part of the loop")

    def set_run(self, run: Any) -> None:
        raise AssertionError("not part of the loop")

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        raise AssertionError("not part of the loop")

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise AssertionError("not part of the loop")

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise AssertionError("not part of the loop")


@pytest.fixture(autouse=True)
def _flower_task() -> Iterator[None]:
    """Flower's Message constructor asks which task runs in this process."""
    before = (TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id)
    TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
    yield
    TaskIdentity._task_id, TaskIdentity._run_id, TaskIdentity._node_id = before


def _run_settings(federation: FederationSettings) -> RunSettings:
    task = TaskSettings(kind="classify", labels=("a", "b"))
    return RunSettings(task=task, model=ModelSettings(id="minilm"), federation=federation)


def _state(method: str) -> AdapterState:
    return replace(adapter(method, SMALL, 0, zero_b=True), rank=8, alpha=16.0)


def _delta(full: AdapterState, node: int, round_: int) -> AdapterState:
    factors = uploaded_factors(full.method, round_)
    return updates(full, factors, 1, 100 * node + round_)[0]


def _good(full: AdapterState) -> Site:
    def site(node: int, request: Request) -> RecordDict:
        if request.kind == "evaluate":
            numbers = {"num_examples": 10.0 * node, "accuracy": 0.1 * node, "loss": 1.0}
            return Reply(request.run_id, request.round, metrics=numbers).to_content()
        delta = _delta(full, node, request.round)
        numbers = {"num_examples": 10.0 * node, "train_loss": float(node)}
        return Reply(
            request.run_id, request.round, metrics=numbers, update=delta.tensors
        ).to_content()

    return site


@pytest.mark.parametrize("method", ["fedsvd", "ffa", "rolora", "fedit", "fedsa"])
def test_flowers_stock_loop_gives_the_state_that_our_own_calls_give(method: str) -> None:
    federation = settings(method, rounds=3, server_optimizer="momentum", weighting="examples")
    start = _state(method)
    strategy = build_strategy(federation)
    arrays = strategy.bind_run(RUN_ID, _run_settings(federation), start)
    grid = LoopGrid(3, _good(start))
    result = strategy.start(grid, arrays, num_rounds=3)

    by_hand = build_strategy(federation)
    state = by_hand.initial_state(start)
    for round_ in (1, 2, 3):
        sites = [_delta(start, node, round_) for node in (1, 2, 3)]
        state = run_round(by_hand, round_, state, sites, [10, 20, 30])
    assert strategy.global_state(result.arrays).digest() == state.digest()
    metrics = result.evaluate_metrics_clientapp[3]
    assert metrics["accuracy"] == pytest.approx((0.1 * 10 + 0.2 * 20 + 0.3 * 30) / 60)
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx(140 / 60)
    assert result.train_metrics_clientapp[1]["num_sites"] == 3


def _bad(kind: str, full: AdapterState, request: Request) -> RecordDict | Error:
    delta = dict(_delta(full, 9, request.round).tensors)
    name = next(iter(delta))
    numbers = {"num_examples": 5.0}
    if kind == "error":
        return Error(code=0, reason="out of memory")
    if kind == "empty":
        return RecordDict({"config": ConfigRecord({})})
    if kind == "nan":
        delta[name] = np.full_like(delta[name], np.nan)
    if kind == "huge":
        delta[name] = np.full_like(delta[name], 1e6)
    if kind == "missing tensor":
        del delta[name]
    if kind == "nan weight":
        numbers["num_examples"] = float("nan")
    round_ = request.round + (kind == "other round")
    return Reply(request.run_id, round_, metrics=numbers, update=delta).to_content()


BAD_KINDS = ("error", "empty", "nan", "huge", "missing tensor", "nan weight", "other round")


def test_every_kind_of_bad_reply_at_once_is_set_aside_with_a_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    federation = settings("fedsvd", rounds=1)
    start = _state("fedsvd")
    good = _good(start)

    def site(node: int, request: Request) -> RecordDict | Error:
        if request.kind == "train" and node <= len(BAD_KINDS):
            return _bad(BAD_KINDS[node - 1], start, request)
        return good(node, request)

    strategy = build_strategy(federation)
    arrays = strategy.bind_run(RUN_ID, _run_settings(federation), start)
    with caplog.at_level(logging.WARNING):
        result = strategy.start(LoopGrid(len(BAD_KINDS) + 2, site), arrays, num_rounds=1)
    alone = build_strategy(federation)
    first = alone.initial_state(start)
    sites = [_delta(start, node, 1) for node in (len(BAD_KINDS) + 1, len(BAD_KINDS) + 2)]
    expected = run_round(alone, 1, first, sites)
    assert strategy.global_state(result.arrays).digest() == expected.digest()
    assert result.train_metrics_clientapp[1]["num_sites"] == 2
    for node in range(1, len(BAD_KINDS) + 1):
        assert f"node {node} set aside" in caplog.text


def test_a_round_below_the_quorum_keeps_the_adapter_and_the_run_goes_on() -> None:
    federation = settings("ffa", rounds=2, quorum=3, min_cohort=3)
    start = _state("ffa")
    good = _good(start)

    def site(node: int, request: Request) -> RecordDict | Error:
        if request.kind == "train" and request.round == 1 and node == 1:
            return Error(code=0, reason="away")
        return good(node, request)

    strategy = build_strategy(federation)
    arrays = strategy.bind_run(RUN_ID, _run_settings(federation), start)
    result = strategy.start(LoopGrid(3, site), arrays, num_rounds=2)
    assert set(result.train_metrics_clientapp) == {2}
    expected = run_round(
        build_strategy(federation), 2, start, [_delta(start, node, 2) for node in (1, 2, 3)]
    )
    for module, product in products(expected.tensors, expected).items():
        got = strategy.global_state(result.arrays)
        assert relative_error(products(got.tensors, got)[module], product) < 1e-6


def test_sites_are_sent_what_the_method_downloads_and_only_that() -> None:
    seen: dict[str, set[str]] = {}
    for method in ("fedsvd", "ffa", "fedsa"):
        federation = settings(method, rounds=1)
        start = _state(method)
        good = _good(start)

        def site(
            node: int, request: Request, method: str = method, good: Site = good
        ) -> RecordDict | Error:
            seen[method] = set(request.state.tensors)
            return good(node, request)

        strategy = build_strategy(federation)
        arrays = strategy.bind_run(RUN_ID, _run_settings(federation), start)
        strategy.start(LoopGrid(1, site), arrays, num_rounds=1)
    everything = set(_state("fedsvd").tensors)
    assert seen["fedsvd"] == everything
    assert seen["ffa"] == {name for name in everything if ".lora_A." not in name}
    assert seen["fedsa"] == {name for name in everything if ".lora_B." not in name}


def test_cohorts_are_drawn_from_the_seed_and_change_with_the_round() -> None:
    def cohorts(seed: int) -> list[tuple[int, ...]]:
        federation = settings("ffa", rounds=4, cohort_fraction=0.3, seed=seed, evaluate_every=0)
        start = _state("ffa")
        strategy = build_strategy(federation)
        arrays = strategy.bind_run(RUN_ID, _run_settings(federation), start)
        grid = LoopGrid(10, _good(start))
        strategy.start(grid, arrays, num_rounds=4)
        trained = [node for kind, node in grid.asked if kind == "train"]
        assert sum(kind == "evaluate" for kind, _ in grid.asked) == 10  # The last round only.
        return [tuple(trained[i : i + 3]) for i in range(0, len(trained), 3)]

    first = cohorts(1)
    assert [len(cohort) for cohort in first] == [3, 3, 3, 3]
    assert len(set(first)) > 1
    assert cohorts(1) == first != cohorts(2)


def test_too_few_sites_end_the_wait_at_the_deadline_and_not_never() -> None:
    federation = settings("ffa", rounds=1, min_cohort=5, deadline_seconds=0.3)
    start = _state("ffa")
    strategy = build_strategy(federation)
    arrays = strategy.bind_run(RUN_ID, _run_settings(federation), start)
    grid = LoopGrid(2, _good(start))
    strategy.start(grid, arrays, num_rounds=1)
    assert [kind for kind, _ in grid.asked if kind == "train"] == []


def test_the_stock_loop_without_bind_run_is_told_what_to_call() -> None:
    strategy = build_strategy(settings("ffa"))
    with pytest.raises(FoedusError, match="bind_run"):
        strategy.configure_train(1, None, ConfigRecord(), LoopGrid(1, _good(_state("ffa"))))  # type: ignore[arg-type]
