"""`foedus client up`: keeps a SuperNode and a runner going for as long as it lives."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from client.runner.child import Child, Ended
from client.runner.launch import Launch
from client.runner.node_state import NodeState, has_lost_track, state_after
from client.runner.outage import ask_coordinator, explain_end
from client.runner.service_manager import ServiceManager
from client.runner.sync import Synchroniser, site_jobs
from client.runner.task_phase import PhaseMark, TaskPhase
from client.runner.up_log import UpLog
from client.site import Site
from protocol.errors import FoedusError
from protocol.files import write_atomically

UP_STATE, UP_LOCK = "up.json", "up.lock"
_LOOK_SECONDS = 0.1
_LOCK_TRIES = 10
# A full disk is not asked ten times a second whether it still is.
_REPORT_PAUSE_SECONDS = 5.0
_RUNNER_GRACE_SECONDS, _SUPERNODE_GRACE_SECONDS = 20.0, 10.0
# The SuperNode looks for a reply every 0.5 s, and then has to send it.
_LAST_REPLY_SECONDS = 2.0


@contextmanager
def only_one(state_folder: Path) -> Iterator[None]:
    """Errors: FoedusError where another supervisor of this site is running."""
    state_folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state_folder / UP_LOCK
    with path.open("a+", encoding="ascii") as stream:
        if not _locked(stream):
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise FoedusError(
                f"Expected no other `foedus client up` for this site, process {holder} is one "
                f"(it holds {path}). End it first: kill {holder}"
            )
        stream.truncate(0)
        stream.write(str(os.getpid()))
        stream.flush()
        yield


def is_up(state_folder: Path) -> bool:
    """True while a supervisor of this site is running. Nothing is written."""
    try:
        with (state_folder / UP_LOCK).open(encoding="ascii") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _locked(stream: TextIO) -> bool:
    """Whoever looks (`is_up`) holds the lock for a moment, which is waited for."""
    for _ in range(_LOCK_TRIES):
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
    return False


class Supervisor:
    """Run it in the main thread; the children end with that thread."""

    def __init__(self, launch: Launch, site: Site, log: UpLog) -> None:
        self._launch = launch
        self._state_file = site.state_folder / UP_STATE
        self._log = log
        self._manager = ServiceManager()
        self._phase = PhaseMark(launch.phase.path)
        self._supernode = Child("supernode", launch.supernode, self._supernode_wrote)
        self._runner = Child("runner", launch.runner, self._runner_wrote)
        self._stop, self._keys_changed = threading.Event(), threading.Event()
        self._lost_track = threading.Event()
        self._synchroniser = Synchroniser(site_jobs(site, self._keys_changed.set), log.say)
        self._num_done = 0
        self._lock = threading.Lock()
        self._node: tuple[NodeState, int | None] = (NodeState.STOPPED, None)
        self._problem = ""
        self._reported: dict[str, Any] = {}
        self._report_at, self._report_failed = 0.0, False

    def run(self) -> None:
        """Until SIGTERM or SIGINT; then both processes are ended."""
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._asked_to_stop)
        self._log.say(f"Started as process {os.getpid()}.")
        self._manager.ready()
        self._synchroniser.start()
        try:
            while not self._stop.wait(_LOOK_SECONDS):
                self._look_after_supernode()
                self._look_after_runner()
                self._look_after_exchange()
                self._report()
                self._manager.beat()
        finally:
            self._end_both()

    def _asked_to_stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stop.set()

    def _look_after_supernode(self) -> None:
        if self._lost_track.is_set():
            self._lost_track.clear()
            self._log.say("The SuperNode gave up a message half way: starting it anew.")
            # Killed, for it would take leave of the coordinator, which then gives up what it has
            # asked this site since.
            self._supernode.start_anew(0.0)
        starts = self._supernode.num_starts
        ended = self._tick_supernode()
        if self._supernode.num_starts > starts:
            self._set_node(NodeState.CONNECTING)
            self._log.say(f"SuperNode started for {self._launch.coordinator.address}.")
        if ended and (not ended.asked or ended.pause_seconds):
            self._log.say(f"The SuperNode ended {_again(ended)}", "WARNING")
        if ended and not ended.asked:
            # Status 0 without being asked: Flower ends its SuperNode so where it is answered 401.
            refused = ended.status == 0 or self._node[0] is NodeState.REFUSED
            # Asking may take seconds in which the other child must not wait.
            threading.Thread(target=self._explain, args=(refused,), daemon=True).start()
        if ended:
            self._set_node(NodeState.STOPPED)

    def _tick_supernode(self) -> Ended | None:
        if self._supernode.pid is None:
            try:
                if self._launch.move_from_taken_port():
                    self._runner.start_anew(_RUNNER_GRACE_SECONDS)
            except FoedusError as error:
                self._tell(str(error))
                return None
        return self._supernode.tick()

    def _look_after_runner(self) -> None:
        ended = self._runner.tick()
        if ended is None:
            return
        if not ended.asked or ended.pause_seconds:
            self._log.say(f"The runner ended {_again(ended)}", "WARNING")
        if self._phase.get().hangs_the_supernode:
            self._log.say("It ended in the middle of a message: starting the SuperNode anew.")
            # By SIGTERM, unlike one that lost track: as it takes leave, SuperLink answers in the
            # site's place, and the round does not wait for a reply that nobody is left to make.
            self._supernode.start_anew(_SUPERNODE_GRACE_SECONDS)
            self._phase.set(TaskPhase.IDLE)

    def _look_after_exchange(self) -> None:
        if self._num_done != self._phase.num_done:
            self._num_done = self._phase.num_done
            self._synchroniser.wake()
        if self._keys_changed.is_set() and self._phase.get() is TaskPhase.IDLE:
            self._keys_changed.clear()
            try:
                self._launch.load_keys()
            except FoedusError as error:
                self._tell(str(error))
                return
            self._log.say("This site's keys are new ones: starting both processes anew.")
            self._supernode.start_anew(_SUPERNODE_GRACE_SECONDS)
            self._runner.start_anew(_RUNNER_GRACE_SECONDS)

    def _supernode_wrote(self, line: str) -> None:
        text = self._log.heard("supernode", line, shown=False)
        if has_lost_track(text):
            self._lost_track.set()
        state, node_id = self._node
        after = state_after(text, state, node_id)
        if after != self._node:
            self._set_node(*after)
            words = {
                NodeState.CONNECTED: f"Connected to the coordinator as node {after[1]}.",
                NodeState.UNREACHABLE: "The coordinator does not answer; trying until it does.",
            }
            if after[0] in words:
                self._tell(words[after[0]], problem=after[0] is not NodeState.CONNECTED)

    def _runner_wrote(self, line: str) -> None:
        self._log.heard("runner", line, shown=True)

    def _explain(self, refused: bool) -> None:
        certificates = self._launch.coordinator.root_certificates
        if certificates and not self._stop.is_set():
            answer = ask_coordinator(self._launch.coordinator.address, certificates)
            self._tell(explain_end(refused, answer), unless=NodeState.CONNECTED)

    def _tell(self, text: str, problem: bool = True, unless: NodeState | None = None) -> None:
        """Say it once: a lasting problem must not fill the log. unless: the state that shows that
        it is over."""
        with self._lock:
            if problem and (text == self._problem or self._node[0] is unless):
                return
            self._problem = text if problem else ""
        self._log.say(text, "WARNING" if problem else "INFO")
        self._manager.status(text)

    def _set_node(self, state: NodeState, node_id: int | None = None) -> None:
        with self._lock:
            self._node = (state, node_id if node_id is not None else self._node[1])

    def _report(self) -> None:
        """up.json, for `foedus client check` and for people; written when something changed."""
        with self._lock:
            (state, node_id), problem = self._node, self._problem
        facts = {
            "pid": os.getpid(),
            "coordinator": self._launch.coordinator.address,
            "node_state": str(state),
            "node_id": str(node_id) if node_id is not None else None,
            "supernode_pid": self._supernode.pid,
            "supernode_starts": self._supernode.num_starts,
            "runner_pid": self._runner.pid,
            "runner_starts": self._runner.num_starts,
            "problem": problem,
        }
        if facts != self._reported and time.monotonic() >= self._report_at:
            changed = datetime.now(UTC).isoformat(timespec="seconds")
            text = json.dumps({**facts, "changed": changed}, indent=2) + "\n"
            try:
                write_atomically(self._state_file, text.encode())
                self._reported, self._report_failed = facts, False
            except OSError as error:
                # Not `_tell`: what keeps the site from working is the problem, and not this.
                if not self._report_failed:
                    text = f"{self._state_file} could not be written: {error.strerror}."
                    self._log.say(f"{text} It is tried until it can.", "WARNING")
                self._report_at = time.monotonic() + _REPORT_PAUSE_SECONDS
                self._report_failed = True

    def _end_both(self) -> None:
        """The runner first, so that the SuperNode can still send what it says last."""
        self._log.say("Stopping.")
        self._manager.stopping()
        working = self._phase.get() in (TaskPhase.WORKING, TaskPhase.REPLYING)
        if not self._runner.stop(_RUNNER_GRACE_SECONDS):
            self._log.say("The runner did not end in time and was killed.", "WARNING")
        if working:
            time.sleep(_LAST_REPLY_SECONDS)
        if not self._supernode.stop(_SUPERNODE_GRACE_SECONDS):
            self._log.say("The SuperNode did not end in time and was killed.", "WARNING")
        self._state_file.unlink(missing_ok=True)
        self._log.say("Stopped.")


def _again(ended: Ended) -> str:
    return (
        f"{ended.how} after {ended.ran_seconds:.0f} s; started again in "
        f"{ended.pause_seconds:.0f} s."
    )
