"""Where each run stands, as numbers: read from its folder whenever somebody looks."""

from __future__ import annotations

from pathlib import Path

from protocol.errors import FoedusError
from server.gateway.metrics import Metrics
from server.runs.folder import RunFolder, RunStatus, run_folders
from server.runs.progress import ProgressReader


class RunGauges:
    """status: 1 for the one a run has, 0 for the others."""

    def __init__(self, runs: Path, metrics: Metrics) -> None:
        self._runs = runs
        self._readers: dict[str, ProgressReader] = {}
        self._status = metrics.labelled_gauge("run_status", "Where a run stands", "run", "status")
        self._rounds = metrics.labelled_gauge("run_rounds", "Rounds finished", "run")
        self._seconds = metrics.labelled_gauge(
            "run_last_round_seconds", "What the last finished round took", "run"
        )

    def look(self) -> None:
        """Read on where the last look ended. A damaged record leaves its run out."""
        for run in run_folders(self._runs):
            try:
                now = run.read().status
            except FoedusError:
                continue
            for status in RunStatus:
                self._status.labels(run.name, status.value).set(float(status is now))
            self._read_progress(run)

    def _read_progress(self, run: RunFolder) -> None:
        reader = self._readers.setdefault(run.name, ProgressReader(run.progress))
        for event in reader.new_events():
            if event.kind == "round_finished":
                self._rounds.labels(run.name).set(float(event.values["round"]))
                self._seconds.labels(run.name).set(float(event.values["seconds"]))
