"""A consortium on this machine for a benchmark: founded, joined and started by foedus' commands."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.processes import LOOPBACK, Processes, free_port
from protocol.errors import FoedusError
from protocol.files import write_atomically
from server.consortium.folder import ConsortiumFolder
from server.gateway.state_file import GatewayState, read_gateway_state

_PATIENCE_SECONDS = 120.0


class LocalConsortium:
    """The coordinator's folder, and what its operator does. settings: of consortium.yaml, instead
    of what `foedus server init` writes; everything listens on the loopback address."""

    def __init__(
        self, folder: Path, processes: Processes, settings: Mapping[str, int | float] | None = None
    ) -> None:
        self.folder = ConsortiumFolder(folder / "consortium")
        self._processes = processes
        self._settings = {"public_host": LOOPBACK, **(settings or {})}

    def found(self) -> None:
        """Keys, certificates, an empty roster. Errors: FoedusError."""
        ports = [str(free_port()) for _ in range(3)]
        self._foedus(
            "server", "init", "benchmark", "--folder", str(self.folder.path),
            "--address", f"{LOOPBACK}:{ports[0]}",
            "--control-port", ports[1], "--metrics-port", ports[2],
        )  # fmt: skip
        lines = self.folder.settings_file.read_text(encoding="utf-8").splitlines()
        for name, value in self._settings.items():
            lines = [f"{name}: {value}" if x.startswith(f"{name}:") else x for x in lines]
        write_atomically(self.folder.settings_file, ("\n".join(lines) + "\n").encode())

    def join(self, name: str, folder: Path) -> Path:
        """A member's folder with its site.yaml, which is returned. Errors: FoedusError."""
        self._foedus(
            "client", "join", str(self.folder.invitation), "--name", name, "--folder", str(folder)
        )
        return folder / "site.yaml"

    def admit(self, folders: Sequence[Path]) -> None:
        """Admit those who have joined. Errors: FoedusError."""
        requests = [str(folder / "request.json") for folder in folders]
        self._foedus("server", "admit", *requests, "--yes", "--consortium", str(self.folder.path))

    def start(self) -> GatewayState:
        """Start the coordinator and wait until it answers. Errors: FoedusError."""
        self._processes.start(
            "coordinator", *_FOEDUS, "server", "up", "--consortium", str(self.folder.path)
        )
        self._processes.wait_for("the coordinator", self._is_up, _PATIENCE_SECONDS)
        state = read_gateway_state(self.folder.gateway_state)
        if state is None:
            raise FoedusError("Expected the coordinator to stay up, it has gone.")
        return state

    def wait_for_nodes(self, count: int) -> None:
        """Until that many sites are online. Errors: FoedusError."""
        self._processes.wait_for(
            f"{count} sites online", lambda: self._online() >= count, _PATIENCE_SECONDS
        )

    def start_site(self, name: str, site_file: Path) -> None:
        """Start a site's supervisor."""
        self._processes.start(name, *_FOEDUS, "client", "up", "--config", str(site_file))

    def run(self, name: str, overrides: Sequence[str]) -> Path:
        """A run from start to end; returns its folder. Errors: FoedusError where it fails."""
        self._foedus(
            "server", "run", *overrides, "--consortium", str(self.folder.path), "--name", name
        )
        return self.folder.runs / name

    def _foedus(self, *words: str) -> None:
        self._processes.run("foedus", *_FOEDUS, *words)

    def _is_up(self) -> bool:
        return read_gateway_state(self.folder.gateway_state) is not None

    def _online(self) -> int:
        from server.runs.lifecycle import runs_of
        from server.runs.report import report

        sites = report(runs_of(self.folder.path), "").sites
        return sum(site.status == "online" for site in sites)


_FOEDUS = (sys.executable, "-m", "foedus")
