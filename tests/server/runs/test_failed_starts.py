"""Starts that Flower refuses: nothing goes on that the operator was told was not started.

Flower itself is what is replaced here: its Control API answers as each test has it.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from protocol.errors import FoedusError
from server.runs import keeper as keeper_module
from server.runs.control import ControlPlane, CoordinatorDown, FlowerRun
from server.runs.folder import RunFolder, RunRecord, RunStatus
from server.runs.keeper import Keeper
from server.runs.lifecycle import Runs
from tests.server.runs.little_consortium import found
from tests.server.runs.test_run_lifecycle import SMALL


@dataclass
class LittleFlower:
    """Numbers the runs that it starts; with `error` it starts none."""

    error: FoedusError | None = None
    asked: int = 0
    started: list[Mapping[str, Any]] = field(default_factory=list)

    def start_run(self, bundle: bytes, config: Mapping[str, Any]) -> int:
        self.asked += 1
        if self.error is not None:
            raise self.error
        assert bundle
        self.started.append(config)
        return len(self.started)

    def runs(self, run_ids: Iterable[int]) -> dict[int, FlowerRun]:
        return {}


@pytest.fixture
def flower(monkeypatch: pytest.MonkeyPatch) -> LittleFlower:
    made = LittleFlower()
    for name in ("start_run", "runs"):
        answer = getattr(made, name)
        monkeypatch.setattr(ControlPlane, name, lambda self, *given, a=answer: a(*given))
    return made


@pytest.fixture
def runs(tmp_path: Path) -> Runs:
    return found(tmp_path / "oak")


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """No wait between the keeper's attempts."""
    monkeypatch.setattr(keeper_module, "_FIRST_WAIT_SECONDS", 0.0)


def kept(runs: Runs, status: RunStatus) -> RunFolder:
    run = runs.run("old")
    run.create(RunRecord("old", SMALL, time.time(), (1,), status, "as it was", 1))
    return run


@pytest.mark.parametrize("error", [FoedusError("no room"), CoordinatorDown("no room")])
def test_a_start_that_flower_refuses_is_started_by_people_only(
    runs: Runs, flower: LittleFlower, error: FoedusError
) -> None:
    flower.error = error
    with pytest.raises(FoedusError, match="no room"):
        runs.start("first", SMALL)
    run = runs.run("first")
    record = run.read()
    assert record.status is RunStatus.FAILED and record.flower_run_ids == ()
    assert record.message == "It was not started: no room"
    flower.error = None
    for _ in range(5):
        Keeper(runs.folder, runs.settings).step()
    assert run.read() == record and not flower.started
    runs.resume("first")
    assert len(flower.started) == 1 and run.read().status is RunStatus.STARTING


@pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.FAILED])
def test_a_resume_that_flower_refuses_leaves_the_run_as_it_was(
    runs: Runs, flower: LittleFlower, status: RunStatus
) -> None:
    run = kept(runs, status)
    flower.error = FoedusError("no room")
    with pytest.raises(FoedusError, match="no room"):
        runs.resume("old")
    record = run.read()
    assert (record.status, record.message, record.flower_run_ids) == (status, "as it was", (1,))
    flower.error = None
    Keeper(runs.folder, runs.settings).step()
    assert run.read() == record and not flower.started


def test_the_keeper_gives_up_on_what_flower_always_refuses(
    runs: Runs, flower: LittleFlower, now: None
) -> None:
    run = kept(runs, RunStatus.INTERRUPTED)
    flower.error = FoedusError("no room")
    keeper = Keeper(runs.folder, replace(runs.settings, resume_attempts=3))
    for _ in range(10):
        keeper.step()
    assert flower.asked == 3
    assert run.read().status is RunStatus.FAILED
    assert "Given up after 3 resumes" in run.read().message and "no room" in run.read().message


def test_the_keeper_goes_on_once_flower_takes_the_run(
    runs: Runs, flower: LittleFlower, now: None
) -> None:
    run = kept(runs, RunStatus.INTERRUPTED)
    flower.error = FoedusError("no room")
    keeper = Keeper(runs.folder, replace(runs.settings, resume_attempts=3))
    keeper.step()
    assert run.read().status is RunStatus.INTERRUPTED and run.read().resumes == 2
    flower.error = None
    keeper.step()
    assert len(flower.started) == 1 and run.read().status is RunStatus.STARTING


def test_a_coordinator_that_is_down_costs_no_attempt(runs: Runs, flower: LittleFlower) -> None:
    run = kept(runs, RunStatus.INTERRUPTED)
    before = run.read()
    flower.error = CoordinatorDown("no answer")
    keeper = Keeper(runs.folder, runs.settings)
    for _ in range(10):
        keeper.step()
    assert run.read() == before and flower.asked == 10
