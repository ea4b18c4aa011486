"""Pauses between tries that grow, so that what is down is not hammered by all sites at once."""

from __future__ import annotations

import random

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
_JITTER = 0.25


class Backoff:
    """1 s, 2 s, 4 s … 60 s, each up to a quarter shorter or longer by chance.

    >>> backoff = Backoff(random.Random(7))
    >>> pauses = [backoff.next_pause() for _ in range(9)]
    >>> all(0.75 * 2**n <= pause <= 1.25 * 2**n for n, pause in enumerate(pauses[:6]))
    True
    >>> max(pauses) <= 60.0
    True
    """

    def __init__(self, chance: random.Random | None = None) -> None:
        self._chance = chance or random.Random()
        self._next_seconds = FIRST_SECONDS

    def next_pause(self) -> float:
        """Seconds to wait before the next try."""
        pause = self._next_seconds * self._chance.uniform(1 - _JITTER, 1 + _JITTER)
        self._next_seconds = min(2 * self._next_seconds, LONGEST_SECONDS)
        return min(pause, LONGEST_SECONDS)

    def reset(self) -> None:
        """Begin anew, after a success."""
        self._next_seconds = FIRST_SECONDS
