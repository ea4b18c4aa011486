"""Full disks and damaged files, at a site and at the coordinator."""

from __future__ import annotations

import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path

from server.app import checkpoint_folder
from server.runs.folder import RunStatus
from tests.faults.deployment import Deployment
from tests.faults.disk import moved_to_small_disk
from tests.faults.processes import wait_for
from tests.faults.scene import PLAIN_RUN, Said, Scenario, Scene

_ALL = "every round with all three sites"
_WITHOUT = "rounds without it; with all three once it is put right"
_LATER = {1: {2}, 2: {2, 3}}
_PLAIN = ("federation.evaluate_every=0",)
_FULL = Said("coordinator", "database or disk is full")
_FULL_SECONDS = 5.0


def _no_disk(deployment: Deployment) -> str:
    return "" if deployment.disks else "needs the right to mount a small disk (root)"


def _full_at_site(scene: Scene) -> None:
    disk = scene.deployment.disks[scene.victim.name]
    disk.fill()
    try:
        scene.begin()
        scene.after_round(1)
    finally:
        disk.make_room()
    scene.mark()


def _full_at_coordinator(scene: Scene) -> None:
    disk = scene.deployment.disks["runs"]
    scene.begin()
    scene.at_training(1)
    disk.fill()
    try:
        scene.after_failure()
    finally:
        disk.make_room()
    scene.mark()


def _full_beside_superlink(scene: Scene) -> None:
    """SuperLink's database and the coordinator's logs; it is moved there and back."""
    coordinator = scene.coordinator
    coordinator.end()
    with moved_to_small_disk(coordinator.folder.state) as disk:
        scene.deployment.make_whole()
        scene.begin()
        scene.at_training(1)
        _empty_write_ahead_log(coordinator.folder.database)
        disk.fill()
        try:
            wait_for("what is said", lambda: scene.was_said(_FULL))
            time.sleep(_FULL_SECONDS)
        finally:
            disk.make_room()
        scene.mark()
        scene.wait_for_end()
        coordinator.end()


def _empty_write_ahead_log(database: Path) -> None:
    """Else SQLite goes on for a while in the space that it has there already."""
    with closing(sqlite3.connect(database, timeout=30.0)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def _damaged_checkpoint(scene: Scene) -> None:
    scene.begin()
    scene.at_round(3)
    _go_on_without_newest_checkpoint(scene)


def _damaged_checkpoint_masked(scene: Scene) -> None:
    scene.begin()
    scene.at_training(3)
    _go_on_without_newest_checkpoint(scene)


def _go_on_without_newest_checkpoint(scene: Scene) -> None:
    scene.coordinator.runs.stop(scene.run.name)
    damage(_checkpoints(scene)[-1])
    scene.coordinator.runs.resume(scene.run.name)
    scene.mark()


def _every_checkpoint_damaged(scene: Scene) -> None:
    scene.begin()
    scene.after_round(1)
    scene.coordinator.runs.stop(scene.run.name)
    for path in _checkpoints(scene):
        damage(path)
    scene.coordinator.runs.resume(scene.run.name)
    assert scene.wait_for_end() is RunStatus.FAILED
    expect_told(scene, "Restore the folder from a backup")
    for path in _checkpoints(scene):
        damage(path)
    scene.coordinator.runs.resume(scene.run.name)
    scene.mark()


def _damaged_ledger(scene: Scene) -> None:
    """One number in it, so that SQLite still reads it."""
    scene.begin()
    scene.after_round(1)
    path = scene.victim.open().ledger.path
    sigma = _first_sigma(path)
    _set_first_sigma(path, sigma + 1.0)
    try:
        scene.after_round(2)
    finally:
        _set_first_sigma(path, sigma)
    scene.mark()


def _damaged_receipts(scene: Scene) -> None:
    scene.begin()
    scene.after_round(1)
    path = scene.victim.open().receipts.path
    place = path.stat().st_size // 2
    damage(path, place)
    try:
        scene.after_round(2)
    finally:
        damage(path, place)
    scene.mark()


def _checkpoints(scene: Scene) -> list[Path]:
    return sorted(checkpoint_folder(scene.run.path).glob("round-*.checkpoint"))


def damage(path: Path, place: int | None = None) -> None:
    """Turn over the byte at a place, or in the middle; done twice, the file is as it was."""
    with path.open("rb+") as stream:
        at = path.stat().st_size // 2 if place is None else place
        stream.seek(at)
        (byte,) = stream.read(1)
        stream.seek(at)
        stream.write(bytes([byte ^ 0xFF]))
        os.fsync(stream.fileno())


def _first_sigma(path: Path) -> float:
    with closing(sqlite3.connect(path)) as connection:
        (sigma,) = connection.execute("SELECT sigma FROM rounds WHERE sequence = 1").fetchone()
    return float(sigma)


def _set_first_sigma(path: Path, sigma: float) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("UPDATE rounds SET sigma = ? WHERE sequence = 1", (sigma,))
        connection.commit()


def expect_told(scene: Scene, text: str) -> None:
    """The run's record says it, where `foedus server status` shows it."""
    message = scene.run.read().message
    assert text in message, message


STORAGE = (
    Scenario(
        "disk-full-at-site",
        "the disk with a site's `state/` is full, and then is not",
        "before the run until after round 1",
        _WITHOUT,
        _full_at_site,
        cohorts=_LATER,
        said=(Said("site", "No space left on device"),),
        needs=_no_disk,
    ),
    Scenario(
        "disk-full-at-coordinator",
        "the disk with `runs/` is full, and then is not",
        "while the sites train",
        "the run stops and says why; once there is room, every round with all three sites",
        _full_at_coordinator,
        rounds=2,
        deadline_seconds=180,
        said=(Said("run", "No space left on device"),),
        needs=_no_disk,
    ),
    Scenario(
        "disk-full-at-coordinator-state",
        "the disk with the coordinator's `state/` is full until this is in its log and "
        f"{_FULL_SECONDS:.0f} s longer",
        "while the sites train",
        "the coordinator says so, and who asked it asks again; the round at hand, and the next, "
        "with at least the two others; then all three",
        _full_beside_superlink,
        rounds=3,
        cohorts={1: {2, 3}, 2: {2, 3}},
        said=(_FULL,),
        needs=_no_disk,
    ),
    Scenario(
        "damaged-checkpoint",
        "a byte of the newest checkpoint is turned over; `foedus server resume`",
        f"the run is stopped in round 3; {PLAIN_RUN}",
        "the one before is used; rounds after it are trained, and paid for, again; every round is "
        "there with all three sites",
        _damaged_checkpoint,
        settings=_PLAIN,
        redone_rounds=frozenset({2, 3}),
        said=(Said("coordinator", "is damaged"),),
    ),
    Scenario(
        "damaged-checkpoint-masked",
        "the same in a run with secure aggregation",
        "the run is stopped while the sites train for round 3",
        "no site goes back, so rounds 2 and 3 are lost, and counted as lost; then all three",
        _damaged_checkpoint_masked,
        rounds=5,
        cohorts={2: {0}, 3: {0}},
        lost_rounds=frozenset({2, 3}),
        said=(Said("coordinator", "is damaged"),),
    ),
    Scenario(
        "every-checkpoint-damaged",
        "a byte of each checkpoint is turned over; they are restored; `foedus server resume`",
        f"the run is stopped after round 1; {PLAIN_RUN}",
        "the run does not start anew by itself, and says why; restored, every round is there",
        _every_checkpoint_damaged,
        rounds=2,
        settings=_PLAIN,
        redone_rounds=frozenset({2}),
        said=(Said("run", "Restore the folder from a backup"),),
    ),
    Scenario(
        "damaged-ledger",
        "a number in a site's privacy ledger is altered, and put back",
        "from the end of round 1 to that of round 2",
        _WITHOUT,
        _damaged_ledger,
        cohorts={2: {2}},
        said=(Said("site", "ledger_broken"),),
    ),
    Scenario(
        "damaged-receipts",
        "a byte of a site's receipts is turned over, and put back",
        "from the end of round 1 to that of round 2",
        _WITHOUT,
        _damaged_receipts,
        cohorts={2: {2}},
        said=(Said("site", "receipts are damaged"),),
    ),
)
