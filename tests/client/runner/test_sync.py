"""The thread beside the runs: what fails is told once and tried until it succeeds."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client.enrolment.joining import rotate
from client.enrolment.kept_roster import refresh_roster, take_up_new_keys
from client.runner.sync import Job, Synchroniser, site_jobs
from protocol.errors import FoedusError
from tests.client.enrolment.coordinators import coordinating
from tests.client.enrolment.sites import joined
from tests.client.enrolment.test_kept_roster import entry, follow
from tests.client.runner.federations import wait_until
from tests.protocol.consortium.leagues import COORDINATOR, founded, with_members
from tests.small_runs import open_site


def test_a_job_that_fails_is_told_of_once_and_tried_until_it_succeeds() -> None:
    said: list[tuple[str, str]] = []
    tries: list[int] = []

    def flaky() -> None:
        tries.append(len(tries))
        if len(tries) < 3:
            raise FoedusError("The coordinator is away.")

    Synchroniser([Job("fetch it", flaky)], lambda *words: said.append(words)).start()
    wait_until(lambda: len(said) == 2, "both lines")
    (begun, warning), (ended, information) = said
    assert "Could not fetch it" in begun and "is away" in begun and warning == "WARNING"
    assert ended == "Could fetch it again." and information == "INFO" and len(tries) == 3


def test_an_unforeseen_failure_stops_no_other_job_and_shows_no_text() -> None:
    said: list[tuple[str, str]] = []
    done = threading.Event()

    def broken() -> None:
        raise ValueError("a line of a contract")

    jobs = [Job("break", broken), Job("work", done.set)]
    Synchroniser(jobs, lambda *words: said.append(words)).start()
    assert done.wait(60.0)
    assert "ValueError at test_sync.py" in said[0][0] and "contract" not in said[0][0]


def test_woken_it_runs_again_soon() -> None:
    runs: list[None] = []
    synchroniser = Synchroniser([Job("count", lambda: runs.append(None))], lambda *_: None)
    synchroniser.start()
    wait_until(lambda: len(runs) == 1, "the first run")
    synchroniser.wake()
    wait_until(lambda: len(runs) == 2, "the second run")


def test_a_site_that_has_not_joined_exchanges_nothing(tmp_path: Path) -> None:
    assert site_jobs(open_site(tmp_path), lambda: None) == ()


@pytest.mark.parametrize("by_command", [True, False])
def test_new_keys_are_noticed_also_where_a_command_beside_it_took_them_up(
    tmp_path: Path, by_command: bool
) -> None:
    with coordinating(tmp_path, [founded()]) as coordinator:
        site, firm = joined(tmp_path / "site", coordinator.invitation(), "Vane")
        coordinator.chain = follow([founded()], firm)
        changed: list[None] = []
        keep_roster, _ = site_jobs(site, lambda: changed.append(None))
        keep_roster.run()
        assert changed == []
        request = rotate(tmp_path / "site", int(time.time()))
        new = replace(
            entry(firm), public_key=request.identity_key, supernode_key=request.supernode_key
        )
        after = with_members(coordinator.chain[-1], new, issued=coordinator.chain[-1].issued)
        coordinator.chain = [*coordinator.chain, after.signed_by(COORDINATOR)]
        if by_command:
            assert take_up_new_keys(site, refresh_roster(site)) != []
        for _ in range(2):
            keep_roster.run()
        assert len(changed) == 1
