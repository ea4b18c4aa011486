"""A ServerApp at work on a run's folder: alone there, its log kept, and its end told in words."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from server.runs.folder import PROGRESS, occupy
from server.runs.progress import ProgressLog

log = logging.getLogger("foedus.server")

# What Flower catches of a ServerApp's output goes into its database, where operators do not look.
LOG = "run.log"


@contextmanager
def reported(
    output_dir: Path, flower_run_id: int, rounds: int, site_names: Mapping[int, str]
) -> Iterator[ProgressLog]:
    """Hold the folder, write down that the run has begun, what it logs, and how it ended.

    Errors: Occupied where another process works there; else what was raised inside, written down.
    """
    with occupy(output_dir), _logged(output_dir / LOG):
        progress = ProgressLog(output_dir / PROGRESS, site_names)
        progress.started(flower_run_id, rounds)
        try:
            yield progress
        except Exception as error:
            progress.failed(error)
            raise
        progress.finished(rounds)


@contextmanager
def _logged(path: Path) -> Iterator[None]:
    """Append what foedus logs to a file, at level INFO. A disk that refuses costs lines only."""
    try:
        handler = logging.FileHandler(path, encoding="utf-8")
    except OSError as error:
        log.error("The log of the run cannot be kept in %s: %s", path, error)
        yield
        return
    formatter = logging.Formatter("%(asctime)sZ %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    foedus = logging.getLogger("foedus")
    level = foedus.level
    foedus.setLevel(logging.INFO)
    foedus.addHandler(handler)
    try:
        yield
    finally:
        foedus.removeHandler(handler)
        foedus.setLevel(level)
        handler.close()
