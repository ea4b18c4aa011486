"""Keeps runs going: one that crashed is resumed, one that people or its settings ended is not."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.consortium.settings import ConsortiumSettings
from server.lasting_problems import LastingProblems
from server.runs.control import ControlPlane, CoordinatorDown
from server.runs.folder import Occupied, RunFolder, RunRecord, RunStatus, run_folders
from server.runs.lifecycle import Runs
from server.runs.progress import read_events
from server.runs.standing import Standing, rounds_done

log = logging.getLogger("foedus.server")

_FIRST_WAIT_SECONDS = 2.0
_LONGEST_WAIT_SECONDS = 300.0


class Keeper:
    """`step` looks at every open run once; the coordinator calls it every few seconds.

    It asks the Control API and so must not be called from the event loop that serves it.
    """

    def __init__(self, folder: ConsortiumFolder, settings: ConsortiumSettings) -> None:
        self._runs = Runs(folder, settings)
        self._attempts = settings.resume_attempts
        self._problems = LastingProblems(log)

    def step(self) -> None:
        """Write down where each open run stands and resume what was interrupted.

        Raises nothing: what is wrong with one run is logged and does not keep the others.
        """
        for run in run_folders(self._runs.folder.runs):
            try:
                if run.read().status.is_open:
                    self._look_at(run)
                self._problems.over(f"Run {run.name}")
            except CoordinatorDown:
                log.info("The coordinator does not answer yet; runs wait for it.")
                return
            except FoedusError as error:
                self._problems.tell(f"Run {run.name}", str(error))
            except OSError as error:
                problem = f"its record cannot be written: {error}"
                self._problems.tell(f"Run {run.name}", problem)

    def _look_at(self, run: RunFolder) -> None:
        with self._runs.control() as control:
            record, standing = self._runs.look(run, control)
            if standing.status is not RunStatus.INTERRUPTED:
                new = replace(record, status=standing.status, message=standing.message)
                self._note(run, record, new)
            elif record.status is not RunStatus.INTERRUPTED:
                self._note(run, record, self._planned(run, record, standing.message))
            else:
                self._go_on(control, run, record, standing)

    def _go_on(
        self, control: ControlPlane, run: RunFolder, record: RunRecord, standing: Standing
    ) -> None:
        if time.time() >= record.resume_after:
            log.warning("Run %s was interrupted and is resumed: %s", run.name, standing.message)
            try:
                self._runs.relaunch(control, run, record)
            except (CoordinatorDown, Occupied):
                raise
            except FoedusError as error:
                # Counted as an attempt, so that what Flower always refuses is given up.
                log.warning("Run %s could not be resumed: %s", run.name, error)
                self._note(run, record, self._planned(run, record, str(error)))

    def _planned(self, run: RunFolder, record: RunRecord, message: str) -> RunRecord:
        """The record with the next resume planned, or given up. A round that was finished since the
        last resume makes up for all before."""
        done = rounds_done(read_events(run.progress))
        resumes = 0 if done > record.resumed_after_round else record.resumes
        if resumes >= self._attempts:
            message = f"Given up after {resumes} resumes without a finished round. {message}"
            return replace(record, resumes=resumes, status=RunStatus.FAILED, message=message)
        wait = min(_FIRST_WAIT_SECONDS * 4**resumes, _LONGEST_WAIT_SECONDS)
        return replace(
            record,
            status=RunStatus.INTERRUPTED,
            message=message,
            resumes=resumes + 1,
            resume_after=time.time() + wait,
        )

    def _note(self, run: RunFolder, seen: RunRecord, new: RunRecord) -> None:
        """Write the verdict down, unless somebody has changed the record since it was seen."""
        run.change(lambda record: new if record == seen else record)
        if new.status is RunStatus.FAILED:
            log.error("Run %s has failed: %s", run.name, new.message)
