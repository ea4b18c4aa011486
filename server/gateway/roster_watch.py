"""Keeps SuperLink's registered nodes, and the member API, the same as the newest signed roster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence

from protocol.consortium.signed_roster import SignedRoster
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.consortium.registry import NodeRegistry, sync_nodes
from server.lasting_problems import LastingProblems

log = logging.getLogger("foedus.gateway")

# Even without a change: somebody with the loopback port may have registered a node by hand.
RESYNC_SECONDS = 60.0
_COMPARISON = "SuperLink's nodes could not be compared with the roster"


class RosterWatch:
    """The chain as it was last read whole; a file that does not hold changes nothing.

    Errors: FoedusError from the constructor where the first reading does not hold.
    """

    def __init__(self, folder: ConsortiumFolder, registry: Callable[[], NodeRegistry]) -> None:
        self._folder = folder
        self._registry = registry
        self._read_mark = self._mark()
        self._chain: Sequence[SignedRoster] = folder.chain()
        self._synced_at = 0.0
        self._problems = LastingProblems(log)

    @property
    def chain(self) -> Sequence[SignedRoster]:
        """All versions, oldest first, verified."""
        return self._chain

    def look(self, now: float) -> None:
        """Read the roster again if it changed; register and unregister what that asks for."""
        changed = self._read_again()
        if changed or self._member_expired(now) or now - self._synced_at >= RESYNC_SECONDS:
            self._sync(now)

    def _read_again(self) -> bool:
        mark = self._mark()
        if mark == self._read_mark:
            return False
        self._read_mark = mark
        try:
            chain = self._folder.chain()
        except FoedusError as error:
            log.error("The roster is kept as it was: %s", error)
            return False
        if len(chain) < len(self._chain) or chain[len(self._chain) - 1] != self._chain[-1]:
            log.error("The roster is kept as it was: the file's history is another one.")
            return False
        self._chain = chain
        return True

    def _member_expired(self, now: float) -> bool:
        return any(self._synced_at < e.expires <= now for e in self._chain[-1].members)

    def _sync(self, now: float) -> None:
        newest = self._chain[-1]
        try:
            result = sync_nodes(self._registry(), newest.members, self._folder.nodes, now)
        except FoedusError as error:
            self._problems.tell(_COMPARISON, str(error))
            return
        self._problems.over(_COMPARISON)
        self._synced_at = now
        for problem in result.problems:
            log.error("%s", problem)
        if result.registered or result.unregistered:
            log.info(
                "Roster version %d: registered %s; unregistered %d nodes.",
                newest.version,
                ", ".join(result.registered) or "nobody",
                result.unregistered,
            )

    def _mark(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._folder.roster)
        except OSError:
            return (0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_size)
