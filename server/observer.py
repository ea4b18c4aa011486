"""Run progress as log lines, for a coordinator without a terminal."""

from __future__ import annotations

import logging

from server.records import RoundRecord

log = logging.getLogger("foedus.server")


class LogObserver:
    """An Observer that logs one line for each event that an operator would look for."""

    def round_started(self, round_: int, rounds: int, cohort_size: int) -> None:
        """See Observer."""
        log.info("Round %d of %d: asking %d sites.", round_, rounds, cohort_size)

    def reply_handled(self, round_: int, node_id: int, kind: str, admitted: bool) -> None:
        """See Observer."""
        word = "admitted" if admitted else "set aside"
        log.info("Round %d: %s reply of node %d %s.", round_, kind, node_id, word)

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
