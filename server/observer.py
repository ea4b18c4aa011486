"""Who hears of a run's progress: several at once, and the log of a coordinator."""

from __future__ import annotations

import logging
from typing import Protocol

from server.records import RoundRecord

log = logging.getLogger("foedus.server")


class Observer(Protocol):
    """Hears of a run as it goes on, for progress bars and logs; changes nothing."""

    def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
        """A round's requests go out."""

    def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
        """A phase of secure aggregation asks so many sites."""

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """One reply was admitted or set aside."""

    def checkpoint_started(self, round_: int) -> None:
        """A round is complete and its checkpoint is about to be written."""

    def round_finished(self, record: RoundRecord) -> None:
        """A round is complete and its checkpoint is on disk."""


class Observers:
    """Several observers that hear the same, as one."""

    def __init__(self, *observers: Observer) -> None:
        self._observers = observers

    def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.round_started(round_, rounds, cohort_size)

    def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.phase_started(round_, attempt, phase, num_sites)

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.reply_handled(round_, node_id, kind, admitted)

    def checkpoint_started(self, round_: int) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.checkpoint_started(round_)

    def round_finished(self, record: RoundRecord) -> None:
        """See Observer."""
        for observer in self._observers:
            observer.round_finished(record)


class LogObserver:
    """An Observer that logs one line for each event that an operator would look for."""

    def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
        """See Observer."""
        log.info("Round %d of %d: asking %d sites.", round_, rounds, cohort_size)

    def phase_started(self, round_: int, attempt: int, phase: str, num_sites: int) -> None:
        """See Observer."""
        log.debug("Round %d, attempt %d: %s asks %d sites.", round_, attempt, phase, num_sites)

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """See Observer."""
        word = "admitted" if admitted else "set aside"
        log.info("Round %d: %s reply of node %d %s.", round_, kind, node_id, word)

    def checkpoint_started(self, round_: int) -> None:
        """See Observer."""
        log.debug("Round %d: writing its checkpoint.", round_)

    def round_finished(self, record: RoundRecord) -> None:
        """See Observer."""
        log.info(
            "Round %d: %d of %d sites in %.1f s; %s",
            record.round,
            len(record.admitted),
            len(record.cohort),
            record.seconds,
            ", ".join(f"{name} {value:.4g}" for name, value in sorted(record.metrics.items())),
        )
