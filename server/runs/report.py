"""What `foedus server status` tells: runs and sites, from the files and from Flower."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from protocol.errors import FoedusError
from server.records import scores
from server.runs.control import ControlPlane, CoordinatorDown, FlowerRun
from server.runs.folder import RunFolder, run_folders
from server.runs.lifecycle import Runs
from server.runs.node_names import read_node_ids
from server.runs.progress import Event, read_events
from server.runs.standing import rounds_done


@dataclass(frozen=True)
class RunReport:
    """One run. status: a RunStatus, or unknown where its record is damaged. asked, admitted,
    silent, set_aside: firm names of the last finished round; scores: of that round. flower:
    Flower's word for the newest start, "" where it cannot be asked."""

    name: str
    status: str
    message: str
    created: float = 0.0
    rounds_done: int = 0
    rounds: int = 0
    overrides: tuple[str, ...] = ()
    flower_run_ids: tuple[str, ...] = ()
    flower: str = ""
    resumes: int = 0
    asked: tuple[str, ...] = ()
    admitted: tuple[str, ...] = ()
    silent: tuple[str, ...] = ()
    set_aside: tuple[str, ...] = ()
    scores: Mapping[str, float] | None = None

    def to_json(self) -> dict[str, Any]:
        """Ready for json.dumps."""
        return asdict(self)


@dataclass(frozen=True)
class SiteReport:
    """One member. status: online, offline, registered (never seen), or unknown."""

    name: str
    node_id: str
    status: str


@dataclass(frozen=True)
class Report:
    """All of it. coordinator_answers: False where only the files could be read."""

    coordinator_answers: bool
    runs: tuple[RunReport, ...]
    sites: tuple[SiteReport, ...]

    def to_json(self) -> dict[str, Any]:
        """Ready for json.dumps."""
        return asdict(self)


def report(runs: Runs, name: str = "") -> Report:
    """Every run, or the one of that name, and every member.

    Errors: FoedusError where there is no such run.
    """
    folders = run_folders(runs.folder.runs)
    if name:
        folders = [runs.run(name)]
        folders[0].read()
    with runs.control() as control:
        try:
            control.runs([])
        except CoordinatorDown:
            told = tuple(_run_report(runs, folder, None) for folder in folders)
            return Report(False, told, _sites(runs, None))
        told = tuple(_run_report(runs, folder, control) for folder in folders)
        return Report(True, told, _sites(runs, control))


def _run_report(runs: Runs, folder: RunFolder, control: ControlPlane | None) -> RunReport:
    try:
        record, standing = runs.look(folder, control)
    except FoedusError as error:
        # One run's damaged record must not hide the others.
        return RunReport(folder.name, "unknown", str(error))
    events = read_events(folder.progress)
    last = next((e.values for e in reversed(events) if e.kind == "round_finished"), {})
    newest = record.newest_flower_run
    return RunReport(
        name=record.name,
        status=standing.status.value,
        message=standing.message,
        created=record.created,
        rounds_done=rounds_done(events),
        rounds=_planned(events),
        overrides=record.overrides,
        flower_run_ids=tuple(str(number) for number in record.flower_run_ids),
        flower=_flower_words(control.runs([newest]).get(newest)) if control else "",
        resumes=max(0, len(record.flower_run_ids) - 1),
        asked=tuple(last.get("cohort", ())),
        admitted=tuple(last.get("admitted", ())),
        silent=tuple(last.get("silent", ())),
        set_aside=tuple(f"{r['site']}: {r['reason']}" for r in last.get("rejected", ())),
        scores=scores(last.get("metrics", {})),
    )


def _planned(events: list[Event]) -> int:
    planned = [event.values["rounds"] for event in events if event.kind == "started"]
    return int(planned[-1]) if planned else 0


def _flower_words(run: FlowerRun | None) -> str:
    if run is None:
        return "unknown"
    return f"{run.status}:{run.ending}" if run.is_over else run.status


def _sites(runs: Runs, control: ControlPlane | None) -> tuple[SiteReport, ...]:
    try:
        members = runs.folder.chain()[-1].roster().members
    except FoedusError:
        # No member yet: a roster without any is none.
        return ()
    ids = read_node_ids(runs.folder.nodes)
    nodes = control.nodes() if control else {}
    return tuple(
        SiteReport(
            member.name,
            str(ids.get(member.member_id, "")),
            nodes[ids[member.member_id]].status
            if ids.get(member.member_id) in nodes
            else "unknown",
        )
        for member in members
    )
