"""How long a site works on one request, by its own policy."""

from __future__ import annotations

import time
from collections.abc import Callable

from protocol.errors import Refusal
from protocol.reasons import RefusalReason


class TimeLimit:
    """Counts from when it is made. seconds: 0 = no limit. clock: seconds that never go back."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._seconds = seconds
        self._clock = clock
        self._started = clock()

    def check(self) -> None:
        """Call between steps and batches. Errors: Refusal(TIME_LIMIT) once the time is up."""
        if self._seconds and self._clock() - self._started > self._seconds:
            raise Refusal(
                RefusalReason.TIME_LIMIT,
                f"Expected to be done within {self._seconds:g} s (maximum_wall_seconds), and the "
                "time is up. Allow more in site.yaml, or ask for rounds of fewer steps. What the "
                "round had reserved in the privacy ledger counts as spent.",
            )
