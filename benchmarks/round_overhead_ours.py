"""foedus for `round_overhead`: a coordinator and two sites, as a consortium runs them."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from benchmarks.consortium import LocalConsortium
from benchmarks.processes import Processes
from benchmarks.round_overhead_work import Round, rounds_between
from server.runs.folder import RunFolder
from server.runs.progress import Event, read_events


class OurFederation:
    """Running until `processes` end. site_files: site.yaml of each, whose contracts are copied."""

    def __init__(self, folder: Path, processes: Processes, site_files: Sequence[Path]) -> None:
        self._folder = folder
        self._processes = processes
        self._site_files = tuple(site_files)
        self._consortium = LocalConsortium(folder, processes)
        self._num_runs = 0

    def start(self) -> None:
        """Coordinator, members, sites. Errors: FoedusError where one does not come."""
        self._consortium.found()
        joined: list[Path] = []
        for number, given in enumerate(self._site_files, start=1):
            site_file = self._consortium.join(f"firm-{number}", self._folder / f"firm-{number}")
            contracts = given.parent / "contracts"
            shutil.copytree(contracts, site_file.parent / "contracts", dirs_exist_ok=True)
            joined.append(site_file)
        self._consortium.admit([site_file.parent for site_file in joined])
        self._consortium.start()
        for site_file in joined:
            self._consortium.start_site(site_file.parent.name, site_file)
        self._consortium.wait_for_nodes(len(joined))

    def run(self, overrides: Sequence[str]) -> list[Round]:
        """One run of all its rounds. Errors: FoedusError where it does not end well."""
        self._num_runs += 1
        folder = self._consortium.run(f"run-{self._num_runs}", overrides)
        return rounds_of(read_events(RunFolder(folder).progress), len(self._site_files))


def rounds_of(events: Sequence[Event], num_sites: int) -> list[Round]:
    """The rounds of a run that was not interrupted."""
    finished = [event for event in events if event.kind == "round_finished"]
    started = next(event for event in events if event.kind == "started")
    ends = [datetime.fromisoformat(event.time).timestamp() for event in (started, *finished)]
    # A record holds the sum over the sites.
    return rounds_between(ends, [e.values["train_seconds"] / num_sites for e in finished])
