"""Refusals in the log, each kind from each address at most once in a while, with its count.

Else whoever floods the coordinator also fills its log, and what happened before is rotated away.
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable

QUIET_SECONDS = 10.0
MAX_KEPT = 10_000


class RefusalLog:
    """write: given how many of this kind were left out since the last one that was written."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._written: OrderedDict[tuple[str, str], tuple[float, int]] = OrderedDict()

    def note(self, reason: str, address: str, write: Callable[[int], None]) -> None:
        """Write it, or count it for the next time."""
        now = self._clock()
        written_at, left_out = self._written.get((reason, address), (-QUIET_SECONDS, 0))
        if now - written_at < QUIET_SECONDS:
            self._written[reason, address] = (written_at, left_out + 1)
            return
        write(left_out)
        self._written[reason, address] = (now, 0)
        self._written.move_to_end((reason, address))
        while len(self._written) > MAX_KEPT:
            self._written.popitem(last=False)
