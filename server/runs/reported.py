"""A ServerApp at work on a run's folder: alone there, and its end told in words."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from server.runs.folder import PROGRESS, occupy
from server.runs.progress import ProgressLog


@contextmanager
def reported(
    output_dir: Path, flower_run_id: int, rounds: int, site_names: Mapping[int, str]
) -> Iterator[ProgressLog]:
    """Hold the folder, write down that the run has begun, and at the end how it ended.

    Errors: Occupied where another process works there; else what was raised inside, written down.
    """
    with occupy(output_dir):
        progress = ProgressLog(output_dir / PROGRESS, site_names)
        progress.started(flower_run_id, rounds)
        try:
            yield progress
        except Exception as error:
            progress.failed(error)
            raise
        progress.finished(rounds)
