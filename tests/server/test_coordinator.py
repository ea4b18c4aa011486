"""The round loop: who is asked, what is folded, when a round counts, and where a run goes on."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from flwr.app import RecordDict

from protocol.adapter import AdapterState, factor_of
from protocol.errors import FoedusError
from protocol.messages import Reply, Request
from protocol.methods import METHODS, downloaded_factors
from protocol.reasons import RefusalReason
from simulations.engines.in_process import InProcessGrid
from strategies.registry import build_strategy
from tests.little_sites import (
    UnreliableGrid,
    coordinate,
    good_reply,
    little_app,
    little_run,
    little_state,
    little_update,
)
from tests.small_runs import RUN_ID
from tests.strategies.adapters import run_round


def grid(num_sites: int = 3, **faults: Any) -> InProcessGrid:
    return UnreliableGrid(little_app(), num_sites, **faults)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("optimizer", ["none", "momentum"])
def test_a_run_is_the_strategy_s_rounds_over_the_sites_updates(
    tmp_path: Path, method: str, optimizer: str
) -> None:
    run = little_run(method, rounds=3, server_optimizer=optimizer, weighting="examples")
    result = coordinate(grid(), run, tmp_path)

    strategy = build_strategy(run.federation)
    state = strategy.initial_state(little_state(run))
    for round_ in (1, 2, 3):
        request = Request("train", RUN_ID, round_, run, state)
        sites = [state.replace_tensors(little_update(node, request)) for node in (1, 2, 3)]
        state = run_round(strategy, round_, state, sites, [10, 20, 30])
    assert result.state.digest() == state.digest()
    assert [record.round for record in result.records] == [1, 2, 3]
    assert all(record.aggregated for record in result.records)


@pytest.mark.parametrize("method", METHODS)
def test_sites_are_sent_what_the_method_downloads(tmp_path: Path, method: str) -> None:
    sent: list[set[str]] = []

    def respond(node: int, request: Request) -> RecordDict:
        sent.append({factor_of(name) for name in request.state.tensors})
        return good_reply(node, request)

    coordinate(InProcessGrid(little_app(respond), 1), little_run(method), tmp_path)
    assert all(factors == downloaded_factors(method) for factors in sent)
    assert len(sent) == 4  # Two rounds of training and evaluation.


def test_a_record_says_who_was_asked_who_answered_and_what_it_cost(tmp_path: Path) -> None:
    def respond(node: int, request: Request) -> RecordDict:
        if node == 2 and request.kind == "train":
            return Reply(request.run_id, request.round, RefusalReason.POLICY).to_content()
        return good_reply(node, request)

    faulty = UnreliableGrid(little_app(respond), 4, silent={3})
    run = little_run("ffa", rounds=1, deadline_seconds=0.2, weighting="examples")
    record = coordinate(faulty, run, tmp_path, names=["ann", "bob", "cem"]).records[0]
    assert record.cohort == ("ann", "bob", "cem", "4")
    assert record.admitted == ("ann", "4")
    assert record.silent == ("cem",)
    assert record.rejected == ({"site": "bob", "reason": "refused_by_site", "detail": "policy"},)
    # B and the head travel: B (7, 3) and (5, 3), the head (4, 6).
    assert record.bytes_up == 2 * 4 * (21 + 15 + 24)
    assert record.bytes_down == 4 * 4 * (21 + 15 + 24)
    assert record.metrics["num_examples"] == 10 + 40
    assert record.metrics["train_loss"] == pytest.approx((10 * 1 + 40 * 4) / 50)
    assert record.train_seconds == 1.0
    assert (
        record.seconds >= 0.2
    )  # Training waits for the silent site; evaluation no longer asks it.
    assert record.bytes_evaluation == 3 * 4 * (21 + 15 + 24)
    assert record.site_metrics.keys() == {"ann", "bob", "4"}
    assert record.metrics["sites_loss"] == pytest.approx((10 * 1 + 20 / 2 + 40 / 4) / 70)


@pytest.mark.parametrize(
    ("weighting", "accuracy"),
    [("uniform", (0.9 + 0.9 + 0.0) / 3), ("examples", (20 * 0.9 + 20 * 0.9 + 30 * 0.0) / 70)],
)
def test_a_site_that_boasts_of_its_size_decides_no_score(
    tmp_path: Path, weighting: str, accuracy: float
) -> None:
    def respond(node: int, request: Request) -> RecordDict:
        if request.kind == "train":
            return good_reply(node, request)
        boast = {"num_examples": 1e12, "accuracy": 0.0}
        honest = {"num_examples": 20.0, "accuracy": 0.9}
        numbers = boast if node == 3 else honest
        return Reply(request.run_id, request.round, "ok", numbers).to_content()

    run = little_run(rounds=1, weighting=weighting, weight_cap=30)
    record = coordinate(InProcessGrid(little_app(respond), 3), run, tmp_path).records[0]
    assert record.metrics["sites_accuracy"] == pytest.approx(accuracy)
    assert record.metrics["sites_num_examples"] == 1e12 + 40


def test_an_impossible_score_is_set_aside_and_the_others_count(tmp_path: Path) -> None:
    def respond(node: int, request: Request) -> RecordDict:
        if request.kind == "evaluate" and node == 3:
            numbers = {"num_examples": 1.0, "accuracy": 1e300}
            return Reply(request.run_id, request.round, "ok", numbers).to_content()
        return good_reply(node, request)

    run = little_run(rounds=1)
    record = coordinate(InProcessGrid(little_app(respond), 3), run, tmp_path).records[0]
    assert record.metrics["sites_accuracy"] == pytest.approx((0.1 + 0.2) / 2)
    assert record.site_metrics.keys() == {"1", "2"}


def test_below_the_quorum_the_adapter_and_the_optimiser_stay_and_the_run_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def respond(node: int, request: Request) -> RecordDict:
        if request.round == 2 and node > 1:
            return Reply(request.run_id, request.round, RefusalReason.NO_DATA).to_content()
        return good_reply(node, request)

    run = little_run("ffa", rounds=3, quorum=2, min_cohort=3, server_optimizer="momentum")
    result = coordinate(InProcessGrid(little_app(respond), 3), run, tmp_path)
    assert [record.aggregated for record in result.records] == [True, False, True]
    assert "1 good replies of 2 needed" in caplog.text

    strategy = build_strategy(run.federation)
    state = strategy.initial_state(little_state(run))
    for round_ in (1, 3):
        request = Request("train", RUN_ID, round_, run, state)
        sites = [state.replace_tensors(little_update(node, request)) for node in (1, 2, 3)]
        state = run_round(strategy, round_, state, sites)
    assert result.state.digest() == state.digest()


def test_a_federation_without_sites_ends_and_says_so(tmp_path: Path) -> None:
    run = little_run(rounds=2, min_cohort=2, deadline_seconds=0.2)
    result = coordinate(grid(1), run, tmp_path)
    assert [record.cohort for record in result.records] == [(), ()]
    assert not any(record.aggregated for record in result.records)
    start = build_strategy(run.federation).initial_state(little_state(run))
    assert result.state.digest() == start.digest()


def test_a_site_that_answers_twice_counts_once(tmp_path: Path) -> None:
    run = little_run("fedit", rounds=1)
    once = coordinate(grid(), run, tmp_path / "once")
    twice = coordinate(grid(twice={1}), run, tmp_path / "twice")
    assert twice.state.digest() == once.state.digest()
    assert twice.records[0].rejected == ({"site": "1", "reason": "duplicate", "detail": ""},)


def test_a_cohort_is_a_share_drawn_from_the_seed(tmp_path: Path) -> None:
    run = little_run(rounds=6, cohort_fraction=0.5)
    first = coordinate(grid(6), run, tmp_path / "a")
    again = coordinate(grid(6), run, tmp_path / "b")
    cohorts = [record.cohort for record in first.records]
    assert cohorts == [record.cohort for record in again.records]
    assert {len(cohort) for cohort in cohorts} == {3} and len(set(cohorts)) > 1


@pytest.mark.parametrize(("every", "rounds"), [(1, [1, 2, 3]), (2, [2, 3]), (0, [3])])
def test_evaluation_comes_when_it_is_due_and_always_at_the_end(
    tmp_path: Path, every: int, rounds: list[int]
) -> None:
    def central(state: AdapterState) -> dict[str, float]:
        return {"accuracy": 0.75}

    run = little_run(rounds=3, evaluate_every=every)
    result = coordinate(grid(), run, tmp_path, central_evaluation=central)
    due = [r.round for r in result.records if "sites_accuracy" in r.metrics]
    assert due == rounds
    assert [r.round for r in result.records if r.metrics.get("central_accuracy")] == rounds


def test_central_evaluation_sees_the_round_s_new_adapter(tmp_path: Path) -> None:
    seen: list[str] = []

    def central(state: AdapterState) -> dict[str, float]:
        seen.append(state.digest())
        return {}

    result = coordinate(grid(), little_run(), tmp_path, central_evaluation=central)
    assert seen[-1] == result.state.digest() and len(set(seen)) == 2


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not_been(tmp_path: Path, method: str) -> None:
    run = little_run(method, rounds=4, server_optimizer="adam", cohort_fraction=0.5)
    whole = coordinate(grid(4), run, tmp_path / "whole")

    class Killed(BaseException):
        pass

    def dies_in_round_3(node: int, request: Request) -> RecordDict:
        if request.round == 3:
            raise Killed
        return good_reply(node, request)

    with pytest.raises(Killed):
        coordinate(InProcessGrid(little_app(dies_in_round_3), 4), run, tmp_path / "cut")
    resumed = coordinate(grid(4), run, tmp_path / "cut", resume=True)
    assert resumed.state.digest() == whole.state.digest()
    assert [r.round for r in resumed.records] == [1, 2, 3, 4]
    assert [r.cohort for r in resumed.records] == [r.cohort for r in whole.records]


def test_a_new_run_does_not_write_over_another_s_checkpoints(tmp_path: Path) -> None:
    coordinate(grid(), little_run(), tmp_path)
    with pytest.raises(FoedusError, match=r"holds a run.*round-00002.*resume=true"):
        coordinate(grid(), little_run(), tmp_path)


def test_resuming_a_finished_run_gives_its_result_again(tmp_path: Path) -> None:
    first = coordinate(grid(), little_run(), tmp_path)
    again = coordinate(grid(), little_run(), tmp_path, resume=True)
    assert (again.run_id, again.records) == (first.run_id, first.records)
    assert again.state.digest() == first.state.digest()


def test_resume_without_a_checkpoint_starts_a_run(tmp_path: Path) -> None:
    assert len(coordinate(grid(), little_run(), tmp_path, resume=True).records) == 2


def test_two_runs_have_different_ids_so_that_replies_cannot_cross(tmp_path: Path) -> None:
    first = coordinate(grid(), little_run(), tmp_path / "a")
    second = coordinate(grid(), little_run(), tmp_path / "b")
    assert first.run_id != second.run_id and len(first.run_id) == 32


def test_an_operator_without_a_terminal_reads_each_round_in_the_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="foedus.server"):
        coordinate(grid(), little_run(), tmp_path)
    assert "Round 1 of 2: asking 3 sites." in caplog.text
    assert "Round 2: 3 of 3 sites in" in caplog.text
