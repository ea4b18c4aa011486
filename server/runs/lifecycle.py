"""Start, resume and stop the runs of one consortium."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from protocol.errors import FoedusError, SettingsError
from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings
from server.runs.control import ControlPlane, FlowerRun, installed_bundle
from server.runs.folder import RunFolder, RunRecord, RunStatus, next_name, run_folder
from server.runs.progress import read_events
from server.runs.standing import Standing, events_of_newest_start, judge, rounds_done
from server.runs.words import RESUME_KEY, RUN_KEY, consortium_words

log = logging.getLogger("foedus.server")

# The consortium's folder says these; two words for one thing would leave open which holds.
_GIVEN = ("output_dir", "roster", "nodes_file", "resume")
_STOP_PATIENCE_SECONDS = 60.0
_STOP_PAUSE_SECONDS = 0.2


@dataclass(frozen=True)
class Runs:
    """The runs in a consortium's folder. Errors of all methods: FoedusError; CoordinatorDown where
    the coordinator would have to be asked and does not answer."""

    folder: ConsortiumFolder
    settings: ConsortiumSettings

    def control(self) -> ControlPlane:
        """A connection to the coordinator on this machine."""
        return ControlPlane(f"127.0.0.1:{self.settings.control_port}", self.folder.ca)

    def run(self, name: str) -> RunFolder:
        """The run of that name, which need not exist. Errors: FoedusError for what is no name."""
        return run_folder(self.folder.runs, name)

    def start(self, name: str, overrides: Sequence[str]) -> RunFolder:
        """Check every setting, then have the coordinator start a run; returns its folder.

        name: empty = the next free one. Errors: SettingsError with all problems before anything is
        made. A run that Flower then does not start has failed: only `resume` starts it.
        """
        run = self.run(name or next_name(self.folder.runs))
        check_overrides(overrides)
        self._check_plan(run, overrides)
        with self.control() as control:
            # Asked first, so that no folder is made for a run that nobody could start.
            control.runs([])
            run.create(RunRecord(run.name, tuple(overrides), time.time()))
            with run.launching():
                self._launch(control, run, resume=False)
        return run

    def resume(self, name: str) -> RunFolder:
        """Go on with a run from its newest checkpoint, however it ended.

        Errors: FoedusError where it has finished or is at work.
        """
        run = self.run(name)
        record = run.read()
        with self.control() as control:
            standing = self.standing(run, control)
            if standing.status is RunStatus.FINISHED:
                raise FoedusError(f"Run {name} has finished; there is nothing to go on with.")
            if run.is_occupied or standing.status is RunStatus.STARTING:
                raise FoedusError(f"Run {name} is at work. foedus server status {name} shows it.")
            self._check_plan(run, record.overrides)
            fresh = run.change(lambda old: replace(old, resumes=0, resume_after=0.0))
            self.relaunch(control, run, fresh)
        return run

    def relaunch(self, control: ControlPlane, run: RunFolder, seen: RunRecord) -> None:
        """Start the run's ServerApp again, after Flower was told that the last one is gone.

        Does nothing where the record is not as it was `seen`: somebody was faster, or stopped it.
        Where Flower does not start it, the record is left as it was seen.
        """
        with run.launching():
            if run.is_occupied or run.read() != seen:
                return
            control.stop_run(seen.newest_flower_run)
            self._launch(control, run, resume=True)

    def stop(self, name: str) -> None:
        """Stop a run and wait until nothing works on it; `resume` goes on with it.

        Errors: FoedusError where it has ended already, is just being started, or does not end.
        """
        run = self.run(name)
        standing = self.standing(run)
        if not standing.status.is_open:
            raise FoedusError(f"Run {name} is not at work: it is {standing.status}.")
        with self.control() as control, run.launching():
            # First, so that the keeper does not take the end for a crash.
            run.note(RunStatus.STOPPED, "Stopped by the operator.")
            control.stop_run(run.read().newest_flower_run)
        _wait_until(lambda: not run.is_occupied, f"Run {name} was told to stop and has not.")

    def standing(self, run: RunFolder, control: ControlPlane | None = None) -> Standing:
        """Where the run stands. control: None = without asking Flower."""
        return self.look(run, control)[1]

    def look(
        self, run: RunFolder, control: ControlPlane | None = None
    ) -> tuple[RunRecord, Standing]:
        """The run's record and the verdict on it, see `standing`."""
        launching = run.is_launching
        record, flower = run.read(), None
        if launching and record.status.is_open:
            return record, Standing(RunStatus.STARTING)
        if record.status is RunStatus.RUNNING and run.is_occupied:
            # Known of this very start, so that a long run's events are not read every few seconds.
            return record, Standing(RunStatus.RUNNING)
        if control is not None and record.status.is_open and not run.is_occupied:
            flower = _flower_run(control, record.newest_flower_run)
        # A ServerApp may begin or end between any two of these lines. One that had begun before and
        # does not hold the run now has written its last event; one that begins now is at work.
        begun = events_of_newest_start(record, read_events(run.progress))
        occupied = run.is_occupied
        events = read_events(run.progress)
        just_begun = not begun and bool(events_of_newest_start(record, events))
        return record, judge(record, events, occupied or just_begun, flower)

    def _launch(self, control: ControlPlane, run: RunFolder, resume: bool) -> None:
        before = run.read()
        run.note(RunStatus.STARTING)
        try:
            number = control.start_run(installed_bundle(), {RUN_KEY: run.name, RESUME_KEY: resume})
        except BaseException as error:
            # An open record would have the keeper start what its operator was told did not start.
            status, message = before.status, before.message
            if not resume:
                status, message = RunStatus.FAILED, f"It was not started: {_told(error)}"
            run.note(status, message)
            raise
        done = rounds_done(read_events(run.progress))
        run.change(
            lambda old: replace(
                old, flower_run_ids=(*old.flower_run_ids, number), resumed_after_round=done
            )
        )
        log.info("Run %s is started as Flower's run %d.", run.name, number)

    def _check_plan(self, run: RunFolder, overrides: Sequence[str]) -> None:
        from server.app import checked_plan

        words = consortium_words(self.folder, run, overrides, resume=False)
        plan = checked_plan(words)
        newest = self.folder.chain()[-1]
        members = sum(not entry.expired(time.time()) for entry in newest.members)
        needed = max(plan.settings.federation.min_cohort, plan.settings.federation.quorum)
        if members < needed:
            raise SettingsError(
                "the run's settings",
                [
                    f"federation.min_cohort and federation.quorum: expected at most {members}, "
                    f"the members whose admission has not ended, got {needed}."
                ],
            )


def check_overrides(overrides: Sequence[str]) -> None:
    """Errors: SettingsError naming every override that the consortium's folder gives itself."""
    problems = [
        f"{key}: expected none, because the consortium's folder gives it; got {word!r}."
        for word in overrides
        for key in (word.lstrip("+~").partition("=")[0],)
        if key in {f"coordinator.{given}" for given in _GIVEN}
    ]
    if problems:
        raise SettingsError("the overrides", problems)


def _flower_run(control: ControlPlane, number: int) -> FlowerRun | None:
    try:
        return control.runs([number]).get(number)
    except FoedusError:
        # Down, or on its way down or up: then the files alone say where the run stands.
        return None


def _told(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _wait_until(done: Callable[[], bool], otherwise: str) -> None:
    give_up = time.monotonic() + _STOP_PATIENCE_SECONDS
    while not done():
        if time.monotonic() > give_up:
            raise FoedusError(f"{otherwise} Look at the coordinator's log.")
        time.sleep(_STOP_PAUSE_SECONDS)


def runs_of(consortium: Path) -> Runs:
    """The runs of the consortium in a folder. Errors: as ConsortiumFolder.settings."""
    folder = ConsortiumFolder(consortium)
    return Runs(folder, folder.settings())
