"""Where a run stands, from what people decided, what the ServerApp wrote, and what Flower says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from server.runs.control import FlowerRun
from server.runs.folder import RunRecord, RunStatus
from server.runs.progress import Event

# How Flower begins the details of a ServerApp that raised; others were killed or never begun.
_RAISED = "ServerApp failed with exception"
LOST = "Its ServerApp ended without a word, as after a crash or a kill."


@dataclass(frozen=True)
class Standing:
    """A verdict. message: of the failure or interruption, in words; else empty."""

    status: RunStatus
    message: str = ""


def judge(
    record: RunRecord, events: Sequence[Event], occupied: bool, flower: FlowerRun | None
) -> Standing:
    """The verdict on a run's newest start.

    events: all of progress.jsonl. occupied: a process works on the run. flower: of the newest
    start; None where Flower cannot be asked or does not know it.
    """
    if not record.status.is_open:
        # People stopped or released it, or it was given up; only people start it again.
        return Standing(record.status, record.message)
    newest = events_of_newest_start(record, events)
    ended = _ended(newest)
    if ended is not None:
        return ended
    if occupied:
        return Standing(RunStatus.RUNNING)
    if flower is not None and flower.ending == "stopped":
        return Standing(RunStatus.STOPPED, "Stopped through Flower.")
    if newest:
        return Standing(RunStatus.INTERRUPTED, LOST)
    return _never_begun(record, flower)


def events_of_newest_start(record: RunRecord, events: Sequence[Event]) -> list[Event]:
    """What came since the ServerApp of the newest start began; empty where it has not begun."""
    wanted = str(record.newest_flower_run)
    begun = [
        place
        for place, event in enumerate(events)
        if event.kind == "started" and event.values.get("flower_run_id") == wanted
    ]
    return list(events[begun[-1] :]) if begun else []


def rounds_done(events: Sequence[Event]) -> int:
    """The last round that was finished, over all starts; 0 = none."""
    done = [event.values.get("round", 0) for event in events if event.kind == "round_finished"]
    return int(done[-1]) if done else 0


def _ended(newest: Sequence[Event]) -> Standing | None:
    for event in reversed(newest):
        if event.kind == "finished":
            return Standing(RunStatus.FINISHED)
        if event.kind == "failed":
            message = str(event.values.get("message", ""))
            again = bool(event.values.get("resumable"))
            return Standing(RunStatus.INTERRUPTED if again else RunStatus.FAILED, message)
    return None


def _never_begun(record: RunRecord, flower: FlowerRun | None) -> Standing:
    if flower is None or not flower.is_over:
        return Standing(record.status if record.newest_flower_run else RunStatus.INTERRUPTED)
    if flower.ending == "completed":
        return Standing(RunStatus.INTERRUPTED, LOST)
    if not flower.details.startswith(_RAISED):
        return Standing(RunStatus.INTERRUPTED, flower.details or LOST)
    # It failed before it could write: what it said reached Flower alone.
    return Standing(RunStatus.FAILED, flower.details)
