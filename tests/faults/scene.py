"""One run under one fault: started, watched phase by phase, and looked at when it is over."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from client.receipts import Receipt
from protocol.append_only import AppendOnlyLines
from protocol.reply_facts import phase_kind
from protocol.secure_aggregation.wire import Phase
from server.records import RoundRecord
from server.runs.folder import RunFolder, RunStatus
from server.runs.progress import Event, read_events
from server.runs.reported import LOG
from tests.faults.deployment import PRIVATE_AND_MASKED, SETTINGS, Deployment, SiteAtWork
from tests.faults.processes import PATIENCE_SECONDS, wait_for

# A run may wait for a lost site until a phase's deadline in several attempts of a round.
_RUN_SECONDS = 2 * PATIENCE_SECONDS
# How a row says that its run has neither secure aggregation nor private training.
PLAIN_RUN = "a plain run"


@dataclass(frozen=True)
class Said:
    """Words that must appear. where: "site" (the one with the fault), "coordinator" or "run"."""

    where: str
    text: str


@dataclass(frozen=True)
class Scenario:
    """A row of the table. act: begins the run, waits for the phase, injects, repairs if need be.

    deadline_seconds: of a round; training has 0.6 of it, so long a lost site is waited for.
    cohorts: round -> numbers of admitted sites that are right, where not all of them must be.
    lost_rounds: those that may end without a sum. redone_rounds: those that are trained, and so
    paid for, once more. said: what people are told. needs: why it cannot
    run on this machine; empty = it can. honest: the site with the fault keeps honest receipts.
    """

    name: str
    fault: str
    when: str
    holds: str
    act: Callable[[Scene], None]
    rounds: int = 3
    deadline_seconds: int = 60
    settings: tuple[str, ...] = PRIVATE_AND_MASKED
    cohorts: dict[int, set[int]] = field(default_factory=dict)
    lost_rounds: frozenset[int] = frozenset()
    redone_rounds: frozenset[int] = frozenset()
    said: tuple[Said, ...] = ()
    honest: bool = True
    needs: Callable[[Deployment], str] = lambda deployment: ""


@dataclass(frozen=True)
class Outcome:
    """What the harness measured. recovery_seconds: from the fault, or its repair where people must
    see to it, to the end of the first round with every site; None where none was lost."""

    name: str
    admitted: tuple[int, ...]
    attempts: tuple[int, ...]
    starts: int
    recovery_seconds: float | None


class Scene:
    """A scenario in a deployment that is whole."""

    def __init__(self, deployment: Deployment, scenario: Scenario) -> None:
        self.deployment = deployment
        self.scenario = scenario
        self.coordinator = deployment.coordinator
        self.sites = deployment.sites
        # The one that things happen to.
        self.victim: SiteAtWork = deployment.sites[-1]
        self.run: RunFolder = self.coordinator.runs.run(scenario.name)
        self._marked: float | None = None
        self._receipts_before = {site.name: _size(_receipts_file(site)) for site in self.sites}
        self._logs_before = {path: _size(path) for path in self._logs()}

    # --- The run ---

    def begin(self) -> None:
        """Start the run."""
        overrides = (*SETTINGS, *self.scenario.settings)
        size = (
            f"federation.rounds={self.scenario.rounds}",
            f"federation.deadline_seconds={self.scenario.deadline_seconds}",
        )
        self.coordinator.runs.start(self.scenario.name, [*overrides, *size])

    def status(self) -> RunStatus:
        """Where it stands by its files."""
        return self.coordinator.runs.standing(self.run).status

    def wait_for_end(self) -> RunStatus:
        """Until nothing more is to come."""

        def ended() -> RunStatus | None:
            status = self.run.read().status
            return None if status.is_open else status

        return wait_for(f"the end of {self.scenario.name}", ended, _RUN_SECONDS)

    def mark(self) -> None:
        """Recovery is counted from here."""
        self._marked = time.time()

    # --- Phases ---

    def at_round(self, round_: int) -> None:
        """A round's requests go out."""
        self._at("round_started", round=round_)

    def at_phase(self, phase: Phase, round_: int) -> None:
        """A phase's requests go out."""
        self._at("phase_started", round=round_, phase=phase.value)

    def at_checkpoint(self, round_: int) -> None:
        """A round's checkpoint is about to be written."""
        self._at("checkpoint_started", round=round_)

    def after_round(self, round_: int) -> None:
        """A round is complete."""
        self._at("round_finished", round=round_)

    def after_failure(self) -> None:
        """The run's process has given up and said why."""
        self._at("failed")

    def at_training(self, round_: int, site: SiteAtWork | None = None) -> None:
        """A site has reserved the round's budget and trains."""
        self._at_receipt("ledger", round_, site)

    def at_upload(self, phase: Phase, round_: int, site: SiteAtWork | None = None) -> None:
        """A site's reply has its receipt and is about to leave."""
        self._at_receipt(phase_kind(phase), round_, site)

    def events(self) -> list[Event]:
        """Everything that the run's process has told."""
        return read_events(self.run.progress)

    def _at(self, kind: str, **values: object) -> None:
        def reached() -> bool:
            return any(
                event.kind == kind and values.items() <= dict(event.values).items()
                for event in self.events()
            )

        wait_for(f"{kind} {values} of {self.scenario.name}", reached)

    def _at_receipt(self, kind: str, round_: int, site: SiteAtWork | None) -> None:
        whose = site or self.victim

        def written() -> bool:
            return any(r.kind == kind and r.round == round_ for r in self.receipts(whose))

        wait_for(f"{kind} in round {round_} at {whose.name}", written)

    # --- Afterwards ---

    def records(self) -> tuple[RoundRecord, ...]:
        """The rounds as the run's history has them."""
        history = json.loads(self.run.history.read_text(encoding="utf-8"))
        return tuple(RoundRecord.from_json(record) for record in history["rounds"])

    def receipts(self, site: SiteAtWork) -> list[Receipt]:
        """What left a site, or was reserved there, since the scene began; unverified."""
        lines = AppendOnlyLines(_receipts_file(site))
        found = lines.lines(self._receipts_before[site.name])
        return [Receipt(**json.loads(line)) for line in found]

    def outcome(self) -> Outcome:
        """Call it after the run has finished."""
        records = self.records()
        return Outcome(
            self.scenario.name,
            tuple(len(record.admitted) for record in records),
            tuple(record.secure_attempts for record in records),
            len(self.run.read().flower_run_ids),
            self._recovery_seconds(),
        )

    def was_said(self, said: Said) -> bool:
        """True where the words appear in what was written since the scene began."""
        return self.times_said(said) > 0

    def times_said(self, said: Said) -> int:
        """How often they appear there."""
        return sum(text.count(said.text) for text in self._texts(said.where))

    def _recovery_seconds(self) -> float | None:
        if self._marked is None:
            return None
        for event in self.events():
            if event.kind != "round_finished":
                continue
            at = datetime.fromisoformat(event.time).timestamp()
            if at >= self._marked and len(event.values["admitted"]) == len(self.sites):
                return at - self._marked
        return None

    def _texts(self, where: str) -> Iterator[str]:
        if where == "run":
            yield self.run.read().message
            yield from (str(event.values.get("message", "")) for event in self.events())
            return
        paths = _site_logs(self.victim) if where == "site" else self._coordinator_logs()
        for path in paths:
            with path.open("rb") as stream:
                stream.seek(self._logs_before.get(path, 0))
                yield stream.read().decode(errors="replace")

    def _logs(self) -> list[Path]:
        return [*self._coordinator_logs(), *(p for site in self.sites for p in _site_logs(site))]

    def _coordinator_logs(self) -> list[Path]:
        state = self.coordinator.folder.state
        paths = (self.coordinator.log, self.run.path / LOG, *state.glob("*.log"))
        return [path for path in paths if path.exists()]


def _site_logs(site: SiteAtWork) -> list[Path]:
    return [path for path in (site.log, *site.folder.glob("state/*.log")) if path.exists()]


def _receipts_file(site: SiteAtWork) -> Path:
    return site.folder / "state" / "receipts.jsonl"


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
