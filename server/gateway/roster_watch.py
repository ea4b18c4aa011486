"""Keeps SuperLink's registered nodes, and who is let in, the same as the newest signed roster."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

from protocol.consortium.signed_roster import SignedRoster
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.consortium.registry import NodeRegistry, sync_nodes
from server.lasting_problems import LastingProblems

log = logging.getLogger("foedus.gateway")

# Even without a change: somebody with the loopback port may have registered a node by hand.
RESYNC_SECONDS = 60.0
# After a comparison that failed: the next look, then ever later, as SuperLink logs each of them.
FIRST_RETRY_SECONDS = 1.0
_READING = "The roster is kept as it was"
_CHANGES = "SuperLink's nodes are not yet those of the roster"
_COMPARISON = "SuperLink's nodes could not be compared with the roster"


class RosterWatch:
    """The chain as it was last read whole; a file that does not hold changes nothing.

    registry: opens SuperLink's nodes for one comparison.
    Errors: FoedusError from the constructor where the first reading does not hold.
    """

    def __init__(
        self,
        folder: ConsortiumFolder,
        registry: Callable[[], AbstractContextManager[NodeRegistry]],
    ) -> None:
        self._folder = folder
        self._registry = registry
        self._read_mark = self._mark()
        self._take(folder.chain())
        self._synced_at = 0.0
        self._sync_due_at = 0.0
        self._retry_seconds = FIRST_RETRY_SECONDS
        self._problems = LastingProblems(log)

    @property
    def chain(self) -> Sequence[SignedRoster]:
        """All versions, oldest first, verified."""
        return self._chain

    @property
    def problems(self) -> tuple[str, ...]:
        """What has been wrong since the last look, one sentence each."""
        return self._problems.lasting

    def admits(self, supernode_key: bytes, now: float) -> bool:
        """True where the key is that of a member of the newest version whose time is not over.

        Reads no file: the firms' port asks it at every request. now: Unix seconds.
        """
        entry = self._by_key.get(supernode_key)
        return entry is not None and not entry.expired(now)

    def look(self, now: float) -> None:
        """Read the roster again if it changed; register and unregister what that asks for."""
        if self._read_again() or self._member_expired(now):
            self._sync_due_at, self._retry_seconds = now, FIRST_RETRY_SECONDS
        if now < self._sync_due_at:
            return
        if self._sync(now):
            self._sync_due_at, self._retry_seconds = now + RESYNC_SECONDS, FIRST_RETRY_SECONDS
        else:
            self._sync_due_at = now + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, RESYNC_SECONDS)

    def _read_again(self) -> bool:
        # Kept only once the file was taken: one that cannot be read now is read at the next look.
        mark = self._mark()
        if mark == self._read_mark:
            self._problems.over(_READING)
            return False
        try:
            chain = self._folder.chain()
        except (FoedusError, OSError) as error:
            self._problems.tell(_READING, str(error))
            return False
        if len(chain) < len(self._chain) or chain[len(self._chain) - 1] != self._chain[-1]:
            self._problems.tell(_READING, "the file's history is another one.")
            return False
        self._problems.over(_READING)
        self._read_mark = mark
        self._take(chain)
        return True

    def _take(self, chain: Sequence[SignedRoster]) -> None:
        self._chain = chain
        self._by_key = {entry.supernode_key: entry for entry in chain[-1].members}

    def _member_expired(self, now: float) -> bool:
        return any(self._synced_at < e.expires <= now for e in self._chain[-1].members)

    def _sync(self, now: float) -> bool:
        """True where SuperLink's nodes are those of the roster now."""
        newest = self._chain[-1]
        try:
            with self._registry() as registry:
                result = sync_nodes(registry, newest.members, self._folder.nodes, now)
        except (FoedusError, OSError) as error:
            self._problems.tell(_COMPARISON, str(error))
            return False
        self._problems.over(_COMPARISON)
        self._synced_at = now
        if result.problems:
            self._problems.tell(_CHANGES, " ".join(sorted(result.problems)))
        else:
            self._problems.over(_CHANGES)
        if result.registered or result.unregistered:
            log.info(
                "Roster version %d: registered %s; unregistered %d nodes.",
                newest.version,
                ", ".join(result.registered) or "nobody",
                result.unregistered,
            )
        return not result.problems

    def _mark(self) -> tuple[int, int, int]:
        try:
            status = os.stat(self._folder.roster)
        except OSError:
            return (0, 0, 0)
        return (status.st_ino, status.st_mtime_ns, status.st_size)
