"""What a site exchanges with the coordinator beside its runs, in a thread of the supervisor."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from client.countersigned import ReceiptExchange
from client.enrolment.kept_roster import refresh_roster, take_up_new_keys
from client.runner.backoff import Backoff
from client.site import Site
from protocol.errors import FoedusError, place_of

_PERIOD_SECONDS = 600.0
# Rounds of a small adapter take a second or two: one exchange for some of them is enough.
_GATHER_SECONDS = 5.0


@dataclass(frozen=True)
class Job:
    """what: for the log, such as "fetch the roster". `run` raises where it does not succeed."""

    what: str
    run: Callable[[], None]


def site_jobs(site: Site, keys_changed: Callable[[], None]) -> tuple[Job, ...]:
    """Keeping the signed roster and having receipts countersigned, for a site that has joined.

    keys_changed: called where keys that waited for their admission are in force now.
    """
    if site.invitation_file is None or site.identity_file is None or site.roster_file is None:
        return ()
    if site.roster_file.suffix != ".jsonl":
        return ()
    exchange: list[ReceiptExchange] = []
    keys = _key_files(site)

    def keep_roster() -> None:
        nonlocal keys
        take_up_new_keys(site, refresh_roster(site))
        # The files tell, for `foedus client roster` may have taken new keys up beside this process.
        if (found := _key_files(site)) != keys:
            keys = found
            exchange.clear()
            keys_changed()

    def countersign() -> None:
        if not exchange:
            exchange.append(ReceiptExchange(site))
        exchange[0].submit()

    return (
        Job("fetch the consortium's roster", keep_roster),
        Job("have this site's receipts countersigned", countersign),
    )


def _key_files(site: Site) -> list[bytes]:
    files = (site.identity_file, site.supernode_key_file)
    return [file.read_bytes() for file in files if file]


class Synchroniser:
    """Runs its jobs at the start, after messages and every ten minutes; never in anyone's way.

    A job that fails is told of when it begins to, tried again with growing pauses, and told of
    again when it succeeds. say: hears (text, level).
    """

    def __init__(self, jobs: Sequence[Job], say: Callable[[str, str], None]) -> None:
        self._jobs = tuple(jobs)
        self._say = say
        self._woken = threading.Event()
        self._failing: set[str] = set()

    def start(self) -> None:
        """Begin, where there is anything to do; the thread ends with the process."""
        if self._jobs:
            threading.Thread(target=self._run, name="synchroniser", daemon=True).start()

    def wake(self) -> None:
        """Have the jobs run soon."""
        self._woken.set()

    def _run(self) -> None:
        backoff, pause = Backoff(), threading.Event()
        while True:
            self._woken.clear()
            succeeded = [self._tried(job) for job in self._jobs]
            if all(succeeded):
                backoff.reset()
                if self._woken.wait(_PERIOD_SECONDS):
                    pause.wait(_GATHER_SECONDS)
            else:
                pause.wait(backoff.next_pause())

    def _tried(self, job: Job) -> bool:
        try:
            job.run()
        except Exception as error:
            if job.what not in self._failing:
                self._failing.add(job.what)
                text = str(error) if isinstance(error, FoedusError) else place_of(error)
                self._say(f"Could not {job.what}; it is tried until it succeeds. {text}", "WARNING")
            return False
        if job.what in self._failing:
            self._failing.discard(job.what)
            self._say(f"Could {job.what} again.", "INFO")
        return True
