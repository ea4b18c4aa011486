"""The verdict on a run, from people's decisions, the ServerApp's lines and Flower's word."""

from __future__ import annotations

from dataclasses import replace

import pytest

from server.runs.control import FlowerRun
from server.runs.folder import RunRecord, RunStatus
from server.runs.progress import Event
from server.runs.standing import LOST, judge

RECORD = RunRecord("run-1", (), 0.0, (11, 12), RunStatus.RUNNING)
GOES_ON = FlowerRun(12, "running", "", "")


def started(number: int) -> Event:
    return Event("started", "", {"flower_run_id": str(number), "rounds": 3})


def failed(resumable: bool) -> Event:
    return Event("failed", "", {"message": "no room", "resumable": resumable})


DONE = Event("round_finished", "", {"round": 1})
FINISHED = Event("finished", "", {})


@pytest.mark.parametrize(
    ("events", "occupied", "flower", "expected"),
    [
        # At work.
        ([started(12)], True, GOES_ON, RunStatus.RUNNING),
        ([started(12), DONE], True, None, RunStatus.RUNNING),
        # Its process is gone without a word, whatever Flower still believes.
        ([started(12), DONE], False, GOES_ON, RunStatus.INTERRUPTED),
        ([started(12)], False, None, RunStatus.INTERRUPTED),
        ([started(12)], False, FlowerRun(12, "finished", "failed", ""), RunStatus.INTERRUPTED),
        # It said how it ended.
        ([started(12), FINISHED], False, None, RunStatus.FINISHED),
        ([started(12), failed(True)], False, None, RunStatus.INTERRUPTED),
        ([started(12), failed(False)], False, None, RunStatus.FAILED),
        # What an earlier start said does not count.
        ([started(11), failed(False)], False, GOES_ON, RunStatus.RUNNING),
        ([started(11), FINISHED, started(12)], True, GOES_ON, RunStatus.RUNNING),
        # The newest start never began.
        (
            [started(11)],
            False,
            FlowerRun(12, "finished", "failed", "ServerApp failed with exception: x"),
            RunStatus.FAILED,
        ),
        (
            [started(11)],
            False,
            FlowerRun(12, "finished", "failed", "No heartbeat received from the task"),
            RunStatus.INTERRUPTED,
        ),
        # Somebody used Flower's own command.
        ([started(12)], False, FlowerRun(12, "finished", "stopped", ""), RunStatus.STOPPED),
    ],
)
def test_a_run_stands_where_the_evidence_says(
    events: list[Event], occupied: bool, flower: FlowerRun | None, expected: RunStatus
) -> None:
    assert judge(RECORD, events, occupied, flower).status is expected


@pytest.mark.parametrize("status", [RunStatus.STOPPED, RunStatus.FAILED, RunStatus.FINISHED])
def test_what_people_or_the_keeper_ended_stays_ended(status: RunStatus) -> None:
    record = replace(RECORD, status=status, message="why")
    standing = judge(record, [started(12)], True, GOES_ON)
    assert (standing.status, standing.message) == (status, "why")


def test_a_run_that_flower_never_took_is_started_again() -> None:
    record = replace(RECORD, status=RunStatus.STARTING, flower_run_ids=())
    assert judge(record, [], False, None).status is RunStatus.INTERRUPTED


def test_the_message_says_what_happened_in_words() -> None:
    assert judge(RECORD, [started(12)], False, None).message == LOST
    assert judge(RECORD, [started(12), failed(False)], False, None).message == "no room"
    flower = FlowerRun(12, "finished", "failed", "ServerApp failed with exception: no labels")
    assert judge(RECORD, [], False, flower).message.endswith("no labels")
