"""Problems that last, logged once: what is looked at every second would else fill the log."""

from __future__ import annotations

import logging


class LastingProblems:
    """One for each thing that can have a problem, by name."""

    def __init__(self, log: logging.Logger) -> None:
        self._log = log
        self._told: dict[str, str] = {}

    def tell(self, about: str, problem: str) -> None:
        """An error in the log, unless it is the last one told of this thing."""
        if self._told.get(about) != problem:
            self._told[about] = problem
            self._log.error("%s: %s", about, problem)

    @property
    def lasting(self) -> tuple[str, ...]:
        """One sentence for each thing that has a problem now."""
        return tuple(f"{about}: {problem}" for about, problem in self._told.copy().items())

    def over(self, about: str) -> None:
        """It has none now; the same one is told again when it comes back."""
        self._told.pop(about, None)
