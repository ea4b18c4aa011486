"""What the coordinator does beside answering: the roster, the certificate, the runs."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger("foedus.gateway")

ROSTER_SECONDS = 1.0
RUNS_SECONDS = 2.0
CERTIFICATE_SECONDS = 10.0
EXECUTOR_SECONDS = 5.0


async def repeat(seconds: float, work: Callable[[], None]) -> None:
    """Do `work` in a thread, wait, and again for ever. What it raises is logged."""
    while True:
        try:
            await asyncio.to_thread(work)
        # Whatever fails here must neither end the coordinator nor go unseen.
        except Exception:
            log.exception("Upkeep failed and is tried again.")
        await asyncio.sleep(seconds)


class CertificateWatch:
    """Gives new connections the certificate that lies in the folder now."""

    def __init__(self, certificate: Path, key: Path, reload: Callable[[], None]) -> None:
        self._files = (certificate, key)
        self._reload = reload
        self._mark = self._read_mark()

    def look(self) -> None:
        """Load again where both files changed; a half-changed pair waits for the next look."""
        mark = self._read_mark()
        if mark == self._mark or time.time() - max(mark) < 1.0:
            return
        try:
            self._reload()
        except (OSError, ssl.SSLError) as error:
            log.error("The new server certificate cannot be used: %s", error)
        else:
            log.info("New connections get the new server certificate.")
        self._mark = mark

    def _read_mark(self) -> tuple[float, ...]:
        return tuple(file.stat().st_mtime for file in self._files)
