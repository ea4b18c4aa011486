"""SIGKILL of each process at each moment of a round; then power cuts of whole machines."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from protocol.secure_aggregation.wire import Phase
from tests.faults.processes import is_alive, send, wait_for
from tests.faults.scene import Said, Scenario, Scene

# Sites take up to a quarter of a minute to find a coordinator again that was away.
_UNHURRIED_SECONDS, _HURRIED_SECONDS = 180, 60
_ALL = "every round with all three sites"
# A masked update of the harness's takes some seconds at this rate.
_SLOW_BYTES_PER_SECOND = 2_000
_PART_BYTES = 4_000
_SITE = "that round (after a checkpoint, the next) with at least the two others; then all three"


@dataclass(frozen=True)
class Target:
    """A process. shared: its loss stops the run, which then is resumed, and costs no site. said:
    what people are told."""

    name: str
    words: str
    pid: Callable[[Scene], int | None]
    shared: bool
    said: Said


@dataclass(frozen=True)
class Moment:
    """When it is killed. reach: begins the run and waits, for a moment of round 1. hits: the round
    that may lack a site for it. begun: a ServerApp is at work; until then Flower starts it again by
    itself, and there is nothing to tell. uploading: the update is only half there."""

    name: str
    words: str
    reach: Callable[[Scene], None]
    hits: int = 1
    begun: bool = True
    uploading: bool = False


TARGETS = (
    Target(
        "gateway",
        "the coordinator's gateway",
        lambda scene: scene.coordinator.gateway(),
        shared=True,
        said=Said("coordinator", "The coordinator's process ended with -9; again in"),
    ),
    Target(
        "serverapp",
        "the run's ServerApp",
        lambda scene: scene.coordinator.server_app(),
        shared=True,
        said=Said("coordinator", "was interrupted and is resumed"),
    ),
    Target(
        "supernode",
        "a site's SuperNode",
        lambda scene: scene.victim.supernode(),
        shared=False,
        said=Said("site", "The SuperNode ended by signal 9"),
    ),
    Target(
        "runner",
        "a site's runner",
        lambda scene: scene.victim.runner(),
        shared=False,
        said=Said("site", "The runner ended by signal 9"),
    ),
)


def _before(scene: Scene) -> None:
    scene.begin()
    wait_for("the run's process", scene.coordinator.server_app)


def _training(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)


def _upload(scene: Scene) -> None:
    scene.begin()
    scene.at_upload(Phase.MASKED_INPUT, 1)


def _in_upload(scene: Scene) -> None:
    """Slowed first, so that it is surely killed in the middle."""
    route = scene.victim.route
    scene.begin()
    scene.at_training(1)
    route.bytes_per_second = _SLOW_BYTES_PER_SECOND
    scene.at_upload(Phase.MASKED_INPUT, 1)
    uploading = scene.deployment.is_uploading
    wait_for("the masked update's upload", lambda: uploading(scene.victim))
    before = route.bytes_up
    wait_for("a part of the masked update", lambda: route.bytes_up >= before + _PART_BYTES)


def _between(scene: Scene) -> None:
    scene.begin()
    scene.at_phase(Phase.CONFIRM, 1)


def _checkpoint(scene: Scene) -> None:
    scene.begin()
    scene.at_checkpoint(1)


MOMENTS = (
    Moment("before", "as the run begins, before anybody is asked", _before, begun=False),
    Moment("in-training", "while the site trains", _training),
    Moment("at-upload", "as the masked update leaves", _upload),
    Moment("in-upload", "halfway through the masked update's upload", _in_upload, uploading=True),
    Moment("between-phases", "after the masked inputs, before the list is confirmed", _between),
    # Then the next round asks at once, while the site's processes start again.
    Moment("at-checkpoint", "as the round's checkpoint is written", _checkpoint, hits=2),
)


def _kill(target: Target, moment: Moment) -> Callable[[Scene], None]:
    def act(scene: Scene) -> None:
        moment.reach(scene)
        pid = wait_for(target.words, lambda: target.pid(scene))
        send(pid, signal.SIGKILL)
        scene.mark()
        wait_for(f"the end of {target.words}", lambda: not is_alive(pid))
        if moment.uploading:
            assert scene.deployment.is_uploading(scene.victim), "the upload was over already"
        scene.victim.route.bytes_per_second = 0

    return act


def _killed() -> Iterator[Scenario]:
    for target in TARGETS:
        for moment in MOMENTS:
            if moment.uploading and target.name == "runner":
                # It has handed the update over by then.
                continue
            yield Scenario(
                f"{target.name}-killed-{moment.name}",
                f"SIGKILL of {target.words}",
                moment.words,
                _ALL if target.shared else _SITE,
                _kill(target, moment),
                rounds=moment.hits + 1,
                deadline_seconds=_UNHURRIED_SECONDS if target.shared else _HURRIED_SECONDS,
                cohorts={} if target.shared else {moment.hits: {2, 3}},
                said=(target.said,) if moment.begun or target.name != "serverapp" else (),
            )


def _kill_executor(scene: Scene) -> None:
    coordinator = scene.coordinator
    executor = wait_for("Flower's executor", coordinator.executor)
    send(executor, signal.SIGKILL)
    scene.mark()
    scene.begin()


def _cut_power_at_coordinator(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)
    scene.coordinator.kill_all()
    scene.coordinator.start()
    scene.mark()


def _cut_power_at_site(scene: Scene) -> None:
    scene.begin()
    scene.at_training(1)
    scene.victim.kill_all()
    scene.victim.start()
    scene.mark()


KILLS = (
    *_killed(),
    Scenario(
        "executor-killed-before",
        "SIGKILL of the process that starts ServerApps",
        "before the run",
        _ALL,
        _kill_executor,
        rounds=2,
        said=(Said("coordinator", "Flower's executor ended with -9; starting another"),),
    ),
    Scenario(
        "power-cut-at-coordinator",
        "SIGKILL of all the coordinator's processes; `foedus server up` again",
        "while the sites train",
        _ALL,
        _cut_power_at_coordinator,
        rounds=2,
        deadline_seconds=_UNHURRIED_SECONDS,
        said=(Said("coordinator", "was interrupted and is resumed"),),
    ),
    Scenario(
        "power-cut-at-site",
        "SIGKILL of all a site's processes; `foedus client up` again",
        "while the site trains",
        _SITE,
        _cut_power_at_site,
        rounds=2,
        cohorts={1: {2, 3}},
        said=(Said("coordinator", "is given up, nothing was revealed by it"),),
    ),
)
