"""The Flower ServerApp: one federation from its settings to a released adapter."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from hydra.errors import HydraException

from conf.composed import composed
from models.adapted import initial_state
from protocol.audit_policy import AuditPolicy
from protocol.codec import decode, setting
from protocol.compatibility import check_compatibility
from protocol.consortium.chain import load_roster
from protocol.consortium.roster import Roster
from protocol.errors import FoedusError, SettingsError
from protocol.files import write_atomically
from protocol.secure_aggregation.graph import resolve_degree
from protocol.secure_aggregation.task import ring_of
from protocol.settings import RunSettings
from server.checkpoint import CheckpointStore
from server.coordinator import CentralEvaluation, Coordinator, RunResult
from server.evaluation import central_evaluation, read_test_set
from server.gathering import awaited, gather
from server.observer import LogObserver, Observer, Observers
from server.receipts.received import FILE as RECEIVED
from server.receipts.received import Received, ReceivedLog, Unrecorded
from server.release import release
from server.release_gate import ReleaseGate
from server.runs.node_names import NodeNames
from server.runs.reported import reported
from server.runs.words import run_words
from strategies.registry import build_strategy

log = logging.getLogger("foedus.server")

ADAPTER = "adapter"
_WHERE = "conf/coordinate.yaml and its overrides"


@dataclass(frozen=True)
class CoordinatorSettings:
    """What only the coordinator needs to know."""

    output_dir: str = setting(doc="folder of checkpoints, history and the released adapter")
    resume: bool = setting(False, doc="go on from the newest checkpoint in output_dir")
    test_set: str = setting("", doc="public JSONL test set for central evaluation; empty = none")
    roster: str = setting("", doc="file of the members, for secure aggregation; empty = none")
    nodes_file: str = setting("", doc="file of the members' nodes, for their names; empty = none")
    gather_seconds: float = setting(
        60.0, minimum=0, doc="time for members to come online when the run starts or resumes"
    )
    audit_report: str = setting("", doc="leakage audit that a release must pass; empty = none")
    require_audit: bool = setting(False, doc="release nothing without a leakage audit")
    audit_policy: AuditPolicy = field(default_factory=AuditPolicy)

    @property
    def release_gate(self) -> ReleaseGate:
        """What must be shown before an adapter is released."""
        return ReleaseGate(self.audit_report, self.audit_policy, self.require_audit)


@dataclass(frozen=True)
class _Configuration(RunSettings):
    """conf/coordinate.yaml as a whole."""

    coordinator: CoordinatorSettings = field(kw_only=True)

    @property
    def run_settings(self) -> RunSettings:
        """The part that every site must know."""
        return RunSettings(**{f.name: getattr(self, f.name) for f in fields(RunSettings)})


@dataclass(frozen=True)
class Plan:
    """One federation, ready to run."""

    settings: RunSettings
    coordinator: CoordinatorSettings
    observer: Observer
    central_evaluation: CentralEvaluation | None = None
    site_names: Mapping[int, str] = field(default_factory=dict)
    on_finished: Callable[[RunResult], None] = lambda result: None
    received: Received = field(default_factory=Unrecorded)


def make_app(make_plan: Callable[[Context], Plan]) -> ServerApp:
    """A ServerApp over whatever way there is to come by a plan."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        run_plan(grid, make_plan(context))

    return app


def checkpoint_folder(output_dir: Path) -> Path:
    """Where a run keeps its checkpoints."""
    return output_dir / "checkpoints"


def run_plan(grid: Grid, plan: Plan) -> RunResult:
    """Run every round, then release.

    Errors: SettingsError before the first round; FoedusError where the release gate stays shut,
    with checkpoints and history on disk.
    """
    settings, folder = plan.settings, Path(plan.coordinator.output_dir)
    check_compatibility(settings, "the run's settings")
    coordinator = Coordinator(
        grid,
        settings,
        build_strategy(settings.federation),
        CheckpointStore(checkpoint_folder(folder), settings),
        plan.observer,
        plan.central_evaluation,
        plan.site_names,
        _roster(plan),
        plan.received,
    )
    result = coordinator.run(initial_state(settings), resume=plan.coordinator.resume)
    history = {"run_id": result.run_id, "rounds": [r.to_json() for r in result.records]}
    write_atomically(folder / "history.json", (json.dumps(history, indent=2) + "\n").encode())
    release(folder / ADAPTER, result, settings, plan.coordinator.release_gate)
    plan.on_finished(result)
    return result


def _roster(plan: Plan) -> Roster | None:
    """The members, where the run needs to know them. Errors: FoedusError before the first round."""
    if not plan.settings.secure_aggregation.enabled:
        return None
    if not plan.coordinator.roster:
        raise FoedusError(
            "secure_aggregation.enabled=true expects coordinator.roster=FILE, the list of members "
            "that every site holds too, got none."
        )
    roster = load_roster(Path(plan.coordinator.roster))
    # What is wrong for all members would else show in the first round.
    ring_of(plan.settings, len(roster.members))
    resolve_degree(len(roster.members), plan.settings.secure_aggregation.degree)
    return roster


def compose_plan(overrides: list[str]) -> Plan:
    """The plan of `conf/coordinate.yaml` under Hydra overrides.

    Errors: SettingsError with everything that is wrong at once.
    """
    configuration = decode(_Configuration, _composed(overrides), _WHERE)
    coordinator, settings = configuration.coordinator, configuration.run_settings
    evaluation = None
    if coordinator.test_set:
        examples = read_test_set(Path(coordinator.test_set), settings.task.kind)
        evaluation = central_evaluation(settings, examples)
    names: Mapping[int, str] = {}
    if coordinator.nodes_file and coordinator.roster:
        names = NodeNames(Path(coordinator.nodes_file), load_roster(Path(coordinator.roster)))
    return Plan(settings, coordinator, LogObserver(), evaluation, names)


def checked_plan(overrides: list[str]) -> Plan:
    """The plan, with all that can be known to be wrong before the first round found out.

    Errors: SettingsError, FoedusError.
    """
    plan = compose_plan(overrides)
    check_compatibility(plan.settings, _WHERE)
    _roster(plan)
    return plan


def compose_settings(overrides: list[str]) -> RunSettings:
    """The part of the plan that every site must know. Errors: as `compose_plan`."""
    return decode(_Configuration, _composed(overrides), _WHERE).run_settings


def release_finished(
    output_dir: Path, overrides: list[str], audit_report: str = ""
) -> dict[str, Any]:
    """Release the last round of a run that ended without a release; returns the manifest.

    overrides: the words the run was started with. audit_report: in place of the configured one;
    without either nothing is released, so that a forgotten override opens no gate.
    Errors: FoedusError where the run is unfinished or another one, or the gate stays shut.
    """
    config = _composed(overrides)
    settings = decode(RunSettings, _run_part(config), _WHERE)
    gate = _coordinator_part(config).release_gate
    newest = CheckpointStore(checkpoint_folder(output_dir), settings).load_newest()
    done, planned = newest.round if newest else 0, settings.federation.rounds
    if newest is None or done < planned:
        raise FoedusError(
            f"Expected a finished run in {output_dir}, got {done} of {planned} rounds. Go on with "
            "it by coordinator.resume=true first."
        )
    result = RunResult(newest.run_id, newest.state, newest.records)
    gate = replace(gate, audit_report=audit_report or gate.audit_report, required=True)
    return release(output_dir / ADAPTER, result, settings, gate)


def _composed(overrides: list[str]) -> dict[str, Any]:
    try:
        return composed("coordinate", overrides)
    except HydraException as error:
        raise SettingsError(_WHERE, [str(error)]) from error


def _coordinator_part(config: Mapping[str, Any]) -> CoordinatorSettings:
    return decode(CoordinatorSettings, config["coordinator"], _WHERE)


def _run_part(config: Mapping[str, Any]) -> dict[str, Any]:
    return {field.name: config[field.name] for field in fields(RunSettings)}


def run_in_its_folder(grid: Grid, context: Context) -> None:
    """What the coordinator's ServerApp does: the run of its configuration, told of in its folder.

    Errors: as `run_plan`; Occupied where another process works on the same run.
    """
    plan = compose_plan(run_words(context.run_config, os.environ))
    folder, rounds = Path(plan.coordinator.output_dir), plan.settings.federation.rounds
    with reported(folder, context.run_id, rounds, plan.site_names) as progress:
        observer, received = Observers(plan.observer, progress), ReceivedLog(folder / RECEIVED)
        if plan.site_names:
            members = awaited(plan.site_names, Path(plan.coordinator.roster), time.time())
            gather(grid, members, plan.coordinator.gather_seconds, progress.waiting_for)
        run_plan(grid, replace(plan, observer=observer, received=received))


app = ServerApp()
app.main()(run_in_its_folder)
