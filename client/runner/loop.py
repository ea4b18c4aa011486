"""The runner's loop: take a message, check the bundle it came with, answer with installed code."""

from __future__ import annotations

import hashlib
import logging
import time
from contextlib import suppress

from flwr.app import Message

from client.app import make_app
from client.runner.bundle import Release, check_bundle
from client.runner.supernode_tasks import SuperNodeSilent, SuperNodeTasks, Task, TaskLost, no_reply
from client.runner.task_phase import PhaseMark, TaskPhase
from client.site import Site
from protocol.errors import Refusal, place_of

log = logging.getLogger("foedus.client")

# Right after a message the next one of a session follows at once; later nobody is in a hurry.
_SHORTEST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS, _PAUSE_GROWTH = 0.05, 0.2, 1.05
_SILENT_PAUSE_SECONDS = 0.5
_REMEMBERED_BUNDLES = 64


class Runner:
    """Answers messages one after the other."""

    def __init__(
        self, tasks: SuperNodeTasks, site: Site, release: Release, mark: PhaseMark
    ) -> None:
        self._tasks = tasks
        self._site = site
        self._release = release
        self._mark = mark
        self._verdicts: dict[tuple[str, str], Refusal | None] = {}

    def run(self) -> None:
        """For ever; only what ends the process (SystemExit from a signal) ends it."""
        self.answer_for_predecessor()
        pause = _SHORTEST_PAUSE_SECONDS
        silent = False
        while True:
            try:
                worked = self.work_once()
                silent = False
            except SuperNodeSilent as error:
                if not silent:
                    log.info("%s Waiting for it.", error)
                silent, worked = True, False
                pause = _SILENT_PAUSE_SECONDS
            pause = _SHORTEST_PAUSE_SECONDS if worked else min(pause, _LONGEST_PAUSE_SECONDS)
            time.sleep(_SILENT_PAUSE_SECONDS if silent else pause)
            pause *= _PAUSE_GROWTH

    def answer_for_predecessor(self) -> None:
        """Say that no reply will come to the message that another runner died over, if any."""
        if self._mark.get() is TaskPhase.WORKING:
            try:
                self._tasks.give_up(self._mark.note)
                log.warning("The last message gets no reply: its runner ended over it.")
            except TaskLost as lost:
                log.warning("The last message goes without a reply. %s", lost)
        self._mark.set(TaskPhase.IDLE)

    def work_once(self) -> bool:
        """Deal with one message; False where none waits. Errors: SuperNodeSilent."""
        # Marked before it is asked for: whoever dies in between may have taken one.
        self._mark.set(TaskPhase.FETCHING)
        token = self._tasks.acquire()
        if token is None:
            self._mark.set(TaskPhase.IDLE)
            return False
        try:
            self._work(self._tasks.open(token))
        except TaskLost as lost:
            log.error("A message of the coordinator's goes without a reply. %s", lost)
        except Exception as error:
            log.error("A message of the coordinator's goes without a reply: %s", place_of(error))
        self._mark.set(TaskPhase.IDLE)
        self._mark.count()
        return True

    def _work(self, opened: Task) -> None:
        with opened as task:
            self._mark.work_on(task.note)
            try:
                reply = self._answer(task)
            except BaseException:
                # The process is told to end: the coordinator need not wait for this site.
                self._mark.set(TaskPhase.REPLYING)
                with suppress(TaskLost):
                    task.fail()
                    self._mark.set(TaskPhase.IDLE)
                raise
            self._mark.set(TaskPhase.REPLYING)
            task.finish(reply)

    def _answer(self, task: Task) -> Message:
        """The installed app's reply, or its refusal where the bundle is another release."""
        try:
            app = make_app(lambda _: self._site, self._verdict(task))
            return app(task.message, task.context)
        except Exception as error:
            log.error("No reply could be given: %s", place_of(error))
            return no_reply(task.message)

    def _verdict(self, task: Task) -> Refusal | None:
        """Why nothing is done for runs of this bundle; None where it is the installed release."""
        content, named = task.bundle.content, task.bundle.hash_str
        key = (named, hashlib.sha256(content).hexdigest())
        if key not in self._verdicts:
            if len(self._verdicts) >= _REMEMBERED_BUNDLES:
                self._verdicts.clear()
            try:
                check_bundle(content, named, self._release)
                self._verdicts[key] = None
                log.info("The bundle %s… is the installed release.", named[:12])
            except Refusal as refusal:
                self._verdicts[key] = refusal
        return self._verdicts[key]
