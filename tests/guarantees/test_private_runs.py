"""A private federation: every round is paid for before it is trained, a site whose budget is spent
drops out while the others go on, and no number without noise leaves."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message
from flwr.clientapp import ClientApp

from client.app import make_app
from client.privacy.composition import Budget
from client.rounds import answer
from client.site import Site
from client.trained_update import round_sigma
from protocol.messages import CONFIG, METRICS, evaluate_request, train_request
from protocol.reasons import RefusalReason
from protocol.settings import PrivacySettings, RunSettings
from server.app import CoordinatorSettings, Plan, run_plan
from server.coordinator import RunResult
from server.observer import LogObserver
from simulations.engines.in_process import InProcessGrid
from tests.small_runs import RUN_ID, downloaded, open_site, small_run, start_state, write_site


def private_run(rounds: int = 3, **privacy: Any) -> RunSettings:
    settings = {"mode": "dp", "unit": "matter", "sampling_rate": 0.5, "steps_per_round": 2}
    run = small_run(rounds=rounds)
    return replace(run, privacy=PrivacySettings(**{**settings, **privacy}))


def with_policy(path: Path, **policy: Any) -> Path:
    lines = "".join(f"  {key}: {value}\n" for key, value in policy.items())
    path.write_text(f"{path.read_text(encoding='utf-8')}policy:\n{lines}", encoding="utf-8")
    return path


class RepliesKept(InProcessGrid):
    """Keeps what sites sent."""

    def __init__(self, client_app: ClientApp, num_sites: int) -> None:
        super().__init__(client_app, num_sites)
        self.replies: list[Message] = []

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        replies = list(super().pull_messages(message_ids))
        self.replies += replies
        return replies


def federate(
    folder: Path, run: RunSettings, paths: Sequence[Path]
) -> tuple[RunResult, RepliesKept]:
    sites = [Site.from_file(path) for path in paths]
    grid = RepliesKept(make_app(lambda context: sites[context.node_id - 1]), len(sites))
    plan = Plan(run, CoordinatorSettings(str(folder / "output")), LogObserver())
    return run_plan(grid, plan), grid


def sites_in(folder: Path, count: int) -> list[Path]:
    return [write_site(folder / f"firm-{number}", number) for number in range(1, count + 1)]


def spent(path: Path, run: RunSettings) -> float:
    budget = Budget(run.privacy.unit, math.inf, run.privacy.delta)
    (account,) = Site.from_file(path).ledger.account(budget)
    return account.epsilon_spent


def asked_to_train(site: Site, run: RunSettings, round_: int = 1, run_id: str = RUN_ID) -> str:
    """The status of the site's reply."""
    sent = downloaded(run, start_state(run))
    content = answer(site, train_request(run_id, round_, run, sent).to_content(), "train")
    return str(content.config_records[CONFIG]["status"])


def test_all_planned_rounds_together_cost_the_target_and_not_more(tmp_path: Path) -> None:
    run = private_run(target_epsilon=4.0)
    paths = sites_in(tmp_path, 2)
    result, _ = federate(tmp_path, run, paths)
    assert all(record.aggregated and len(record.admitted) == 2 for record in result.records)
    for path in paths:
        assert 3.9 < spent(path, run) <= 4.0


def test_only_the_noised_update_and_the_number_of_steps_leave(tmp_path: Path) -> None:
    run = private_run(rounds=2)
    _, grid = federate(tmp_path, run, sites_in(tmp_path, 2))
    assert len(grid.replies) == 4  # two rounds, two sites, no evaluation at the sites
    for reply in grid.replies:
        assert reply.metadata.message_type == "train"
        assert dict(reply.content[METRICS]) == {"num_steps": 2.0}


def test_a_site_gives_no_scores_on_its_contracts_in_a_private_run(tmp_path: Path) -> None:
    run = private_run()
    request = evaluate_request(RUN_ID, 1, run, downloaded(run, start_state(run)))
    content = answer(open_site(tmp_path), request.to_content(), "evaluate")
    assert content.config_records[CONFIG]["status"] == RefusalReason.PRIVATE_TRAINING
    assert not dict(content[METRICS])


def test_a_site_whose_budget_is_spent_declines_and_the_others_go_on(tmp_path: Path) -> None:
    run = private_run(target_epsilon=6.0)
    paths = sites_in(tmp_path, 3)
    with_policy(paths[1], budget_epsilon=4.5)
    result, _ = federate(tmp_path, run, paths)
    admitted = [record.admitted for record in result.records]
    assert admitted[0] == ("1", "2", "3") and admitted[-1] == ("1", "3")
    assert all(record.aggregated for record in result.records)
    assert result.records[-1].rejected == (
        {"site": "2", "reason": "refused_by_site", "detail": "budget_spent"},
    )
    assert spent(paths[1], run) <= 4.5 < spent(paths[0], run)


def test_a_second_run_over_the_same_contracts_adds_up(tmp_path: Path) -> None:
    run = private_run(rounds=1, target_epsilon=3.0)
    path = with_policy(write_site(tmp_path, 1), budget_epsilon=4.0)
    assert asked_to_train(Site.from_file(path), run) == "ok"
    once = spent(path, run)
    assert asked_to_train(Site.from_file(path), run, run_id="f" * 32) == "budget_spent"
    assert spent(path, run) == once


def test_asking_again_for_the_same_round_costs_again(tmp_path: Path) -> None:
    """Fresh noise on the same data is a second look at it."""
    run = private_run()
    path = write_site(tmp_path, 1)
    site = Site.from_file(path)
    assert asked_to_train(site, run) == "ok"
    once = spent(path, run)
    assert asked_to_train(site, run) == "ok"
    assert spent(path, run) > once


def test_a_ledger_that_was_deleted_stops_the_site_before_it_trains(tmp_path: Path) -> None:
    run = private_run()
    site = open_site(tmp_path)
    assert asked_to_train(site, run) == "ok"
    site.ledger.path.unlink()
    assert asked_to_train(Site.from_file(tmp_path / "site.yaml"), run, 2) == "ledger_broken"


@pytest.mark.parametrize(
    ("policy", "privacy"),
    [
        ({"minimum_privacy": "matter"}, {"unit": "example"}),
        ({"minimum_privacy": "example"}, {"mode": "none"}),
        ({"budget_epsilon": 50.0}, {"mode": "none"}),
        ({"budget_epsilon": 50.0}, {"unit": "example"}),
        ({"budget_epsilon": 50.0, "budget_delta": 1e-6}, {"delta": 1e-5}),
    ],
)
def test_the_coordinator_cannot_talk_a_site_out_of_its_policy(
    tmp_path: Path, policy: dict[str, Any], privacy: dict[str, Any]
) -> None:
    path = with_policy(write_site(tmp_path, 1), **policy)
    assert asked_to_train(Site.from_file(path), private_run(**privacy)) == "policy"
    assert not Site.from_file(path).ledger.path.exists()


def test_contracts_without_matters_are_not_quietly_protected_one_by_one(tmp_path: Path) -> None:
    records = [{"text": f"Clause {i} of no matter.", "label": "payment"} for i in range(6)]
    site = open_site(tmp_path, records=records)
    assert asked_to_train(site, private_run()) == "no_matters"
    assert asked_to_train(site, private_run(unit="example")) == "ok"


def test_every_site_and_every_document_derives_the_same_noise() -> None:
    run = private_run(target_epsilon=8.0)
    assert round_sigma(run) == round_sigma(private_run(target_epsilon=8.0)) > 0
    assert round_sigma(private_run(target_epsilon=3.0)) > round_sigma(run)
    assert round_sigma(private_run(rounds=30)) > round_sigma(run)


def test_a_private_run_that_was_killed_resumes_and_pays_for_what_it_repeats(
    tmp_path: Path,
) -> None:
    run = private_run(rounds=3)
    paths = sites_in(tmp_path, 2)
    whole, _ = federate(tmp_path, run, paths)
    assert len(whole.records) == 3
    before = spent(paths[0], run)
    newest = sorted((tmp_path / "output" / "checkpoints").glob("*.checkpoint"))[-1]
    newest.unlink()  # As if the coordinator had died before it kept the last round.
    sites = [Site.from_file(path) for path in paths]
    grid = InProcessGrid(make_app(lambda context: sites[context.node_id - 1]), 2)
    settings = CoordinatorSettings(str(tmp_path / "output"), resume=True)
    resumed = run_plan(grid, Plan(run, settings, LogObserver()))
    assert len(resumed.records) == 3 and resumed.run_id == whole.run_id
    assert spent(paths[0], run) > before
