"""Watch a run from outside until it ends: bars in a terminal, lines elsewhere, or JSON."""

from __future__ import annotations

import json
import time
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from server.records import scores
from server.runs.folder import RunFolder, RunStatus
from server.runs.lifecycle import Runs
from server.runs.progress import Event, ProgressReader
from server.runs.standing import Standing

_PAUSE_SECONDS = 0.3
# Between looks at where the run stands, which ask Flower.
_LOOK_SECONDS = 1.5


class Display(Protocol):
    """Where news of a run go."""

    def event(self, event: Event) -> None:
        """The ServerApp has written a line."""

    def standing(self, standing: Standing) -> None:
        """The run stands elsewhere than before."""

    def close(self) -> None:
        """Nothing more comes."""


def follow(runs: Runs, run: RunFolder, display: Display) -> Standing:
    """Show a run's events from now on, until it has ended; returns how.

    Waits through crashes, resumes and restarts of the coordinator. KeyboardInterrupt passes.
    """
    reader, last = ProgressReader(run.progress), Standing(RunStatus.STARTING)
    next_look = 0.0
    try:
        with runs.control() as control:
            while True:
                for event in reader.new_events():
                    display.event(event)
                if time.monotonic() >= next_look:
                    next_look = time.monotonic() + _LOOK_SECONDS
                    standing = runs.standing(run, control)
                    if standing != last:
                        last = standing
                        for event in reader.new_events():
                            display.event(event)
                        display.standing(standing)
                    if not standing.status.is_open:
                        return standing
                time.sleep(_PAUSE_SECONDS)
    finally:
        display.close()


def words_of(event: Event) -> str:
    """An event as a line for people; empty where it is not worth one."""
    values = event.values
    if event.kind == "started":
        return f"the coordinator's ServerApp is at work: {values['rounds']} rounds"
    if event.kind == "waiting":
        return f"waiting a moment for {', '.join(values['sites'])}: not online"
    if event.kind == "round_started":
        return f"round {values['round']}/{values['rounds']}: {values['cohort_size']} sites asked"
    if event.kind == "round_finished":
        return _round_words(event)
    if event.kind == "finished":
        return "all rounds are done and the adapter is released"
    if event.kind == "failed":
        return f"failed: {values['message']}"
    return ""


def _round_words(event: Event) -> str:
    values = event.values
    parts = [
        f"{len(values['admitted'])} of {len(values['cohort'])} sites",
        *(f"set aside {r['site']} ({r['reason']})" for r in values["rejected"]),
        *([f"silent {', '.join(values['silent'])}"] if values["silent"] else []),
        *([] if values["aggregated"] else ["not enough: the adapter stays as it was"]),
        f"{values['seconds']:.1f} s",
        *(f"{name} {value:.3f}" for name, value in scores(values["metrics"]).items()),
    ]
    return f"round {values['round']} done: {', '.join(parts)}"


class JsonLines:
    """Every event and change of standing as one JSON object a line on stdout."""

    def event(self, event: Event) -> None:
        """See Display."""
        self._print({"event": event.kind, "time": event.time, **event.values})

    def standing(self, standing: Standing) -> None:
        """See Display."""
        self._print({"event": "status", "status": standing.status, "message": standing.message})

    def close(self) -> None:
        """See Display."""

    @staticmethod
    def _print(values: object) -> None:
        print(json.dumps(values), flush=True)


class PlainLines:
    """Lines for a log or a pipe."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def event(self, event: Event) -> None:
        """See Display."""
        if line := words_of(event):
            self._print(line)

    def standing(self, standing: Standing) -> None:
        """See Display."""
        told = f": {standing.message}" if standing.message else ""
        if standing.status is RunStatus.INTERRUPTED:
            told += " It is resumed by itself while the coordinator is up."
        self._print(f"{standing.status}{told}")

    def close(self) -> None:
        """See Display."""

    def _print(self, line: str) -> None:
        # Text, because firms choose their names.
        self._console.print(Text(line), soft_wrap=True)


class Bars(PlainLines):
    """Lines for finished rounds above a bar of rounds and one of the round's sites."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self._bars = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"), console=console, transient=True,
        )  # fmt: skip
        self._rounds = self._bars.add_task("rounds", total=None, note="")
        self._sites = self._bars.add_task("sites", total=None, note="")
        self._bars.start()

    def event(self, event: Event) -> None:
        """See Display."""
        values = event.values
        if event.kind == "started":
            self._bars.update(self._rounds, total=values["rounds"])
        elif event.kind == "round_started":
            self._bars.update(self._rounds, completed=values["round"] - 1)
            self._bars.update(self._sites, total=values["cohort_size"], completed=0, note="")
        elif event.kind == "phase_started":
            note = f"{values['phase']}, attempt {values['attempt']}"
            self._bars.update(self._sites, total=values["num_sites"], completed=0, note=note)
        elif event.kind == "reply":
            self._bars.advance(self._sites)
            if not values["admitted"]:
                self._bars.update(self._sites, note=f"set aside {values['site']}")
        elif event.kind == "round_finished":
            self._bars.update(self._rounds, completed=values["round"])
        if event.kind != "round_started":
            super().event(event)

    def close(self) -> None:
        """See Display."""
        self._bars.stop()
