"""A whole consortium in real processes: a coordinator and three firms, each on a way of its own.

TLS, signed requests, secure aggregation and private training are on, as in earnest; only models,
data and deadlines are small. Everything is made by foedus' own commands.
"""

from __future__ import annotations

import json
import os
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml

from client.runner.launch import free_port
from client.site import Site
from protocol.consortium.invitation import Invitation
from server.consortium.folder import ConsortiumFolder
from server.gateway.belongings import Belongings
from server.gateway.state_file import read_gateway_state
from server.runs.control import CoordinatorDown
from server.runs.lifecycle import Runs
from server.runs.node_names import read_node_ids
from tests.faults.disk import SmallDisk
from tests.faults.processes import Started, descendants, is_alive, send, wait_for, words_of
from tests.faults.route import Route
from tests.small_runs import LABELS, clause_records, write_records

BIN = Path(sys.executable).parent
NAME = "faults"
NUM_SITES = 3
SETTINGS = (
    f"task.labels=[{','.join(LABELS)}]",
    "adapter.last_layers=1",
    "adapter.rank=2",
    "model.max_tokens=16",
    "federation.min_cohort=2",
    "federation.quorum=2",
)
PRIVATE_AND_MASKED = (
    "privacy=dp",
    "privacy.unit=example",
    "privacy.steps_per_round=4",
    "secure_aggregation=on",
    "secure_aggregation.attempts=3",
    "federation.min_cohort=2",
    "federation.quorum=2",
    "adapter.last_layers=1",
    "adapter.rank=2",
)
_SERVER_APP, _EXECUTOR = "flwr-serverapp", "flower-superexec"


class DatabaseBeside:
    """SuperLink's database, read by another process while SuperLink works, or after it has died."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def query(self, query: str, data: dict[str, Any]) -> list[dict[str, Any]]:
        """Rows of one SQL statement."""
        with closing(sqlite3.connect(f"{self._path.as_uri()}?mode=ro", uri=True)) as connection:
            connection.row_factory = sqlite3.Row
            return [dict(row) for row in connection.execute(query, data)]


class CoordinatorAtWork:
    """`foedus server up` in its folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = ConsortiumFolder(folder)
        self.log = folder.parent / "coordinator.log"
        self._up: Started | None = None
        self._up_before: list[Started] = []

    @property
    def runs(self) -> Runs:
        """What `foedus server run` and the like work with."""
        return Runs(self.folder, self.folder.settings())

    @property
    def is_up(self) -> bool:
        """True while the supervisor runs."""
        return self._up is not None and self._up.is_running

    def start(self) -> None:
        """Start the supervisor."""
        words = [str(BIN / "foedus"), "server", "up", "--consortium", str(self.folder.path)]
        if self._up:
            self._up_before.append(self._up)
        self._up = Started(words, environment(), self.folder.path, self.log)

    def gateway(self) -> int | None:
        """The process that listens, once it is ready; None before."""
        state = read_gateway_state(self.folder.gateway_state)
        return state.pid if state and is_alive(state.pid) else None

    def server_app(self) -> int | None:
        """The process that runs the federation; None while there is none."""
        return self._running(_SERVER_APP)

    def executor(self) -> int | None:
        """The process that starts ServerApps; None while there is none."""
        return self._running(_EXECUTOR)

    def family(self) -> set[int]:
        """Every process of the coordinator."""
        started = [*self._up_before, *([self._up] if self._up else [])]
        return set().union(*(up.family() for up in started))

    def kill_all(self) -> None:
        """What a power cut does."""
        for pid in self.family():
            send(pid, signal.SIGKILL)
        if self._up:
            self._up.kill()

    def end(self) -> None:
        """SIGTERM, and then no process is left."""
        if self._up:
            self._up.end()
        for pid in self.family():
            send(pid, signal.SIGKILL)

    def _running(self, words: str) -> int | None:
        found = [pid for pid in self.family() if words in words_of(pid)]
        return found[0] if found else None

    @property
    def database(self) -> DatabaseBeside:
        """SuperLink's."""
        return DatabaseBeside(self.folder.database)

    def nodes_online(self) -> int:
        """SuperNodes that Flower has heard of lately; 0 while the coordinator is down."""
        try:
            with self.runs.control() as control:
                return sum(node.is_online for node in control.nodes().values())
        except CoordinatorDown:
            return 0


class SiteAtWork:
    """`foedus client up` in a firm's folder, and the way from there to the coordinator."""

    def __init__(self, folder: Path, route: Route) -> None:
        self.folder = folder
        self.route = route
        self.config = folder / "site.yaml"
        self.log = folder.parent / f"{folder.name}.log"
        self._up: Started | None = None

    @property
    def name(self) -> str:
        """The firm's name."""
        return self.folder.name

    def open(self) -> Site:
        """The site's files, read anew."""
        return Site.from_file(self.config)

    @property
    def is_up(self) -> bool:
        """True while the supervisor runs."""
        return self._up is not None and self._up.is_running

    def start(self, **variables: str) -> None:
        """Start the supervisor; variables: of its environment, besides the usual ones."""
        words = [str(BIN / "foedus"), "client", "up", "--config", str(self.config)]
        self._up = Started(words, environment() | variables, self.folder, self.log)

    def state(self) -> Mapping[str, Any]:
        """state/up.json; empty while there is none."""
        try:
            facts: dict[str, Any] = json.loads((self.open().state_folder / "up.json").read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        return facts

    @property
    def is_connected(self) -> bool:
        """True where its SuperNode was let in and the supervisor is alive."""
        return self.is_up and self.state().get("node_state") == "connected"

    def supernode(self) -> int | None:
        """Process id; None while it does not run."""
        return self._living("supernode_pid")

    def runner(self) -> int | None:
        """Process id; None while it does not run."""
        return self._living("runner_pid")

    def family(self) -> set[int]:
        """Every process of the site."""
        return self._up.family() if self._up else set()

    def kill_all(self) -> None:
        """What a power cut does."""
        for pid in self.family():
            send(pid, signal.SIGKILL)
        if self._up:
            self._up.kill()

    def ask_to_end(self) -> None:
        """SIGTERM; `end` waits for what follows."""
        if self._up:
            self._up.ask_to_end()

    def end(self) -> None:
        """SIGTERM, and then no process is left."""
        if self._up:
            self._up.end()

    def _living(self, key: str) -> int | None:
        pid = self.state().get(key)
        return pid if isinstance(pid, int) and is_alive(pid) else None


class Deployment:
    """One coordinator and NUM_SITES firms under a folder. Make it, `make_whole`, use, `end`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        path = folder / "consortium"
        ports = [free_port() for _ in range(3)]
        foedus("server", "init", NAME, "--folder", path, "--address", f"127.0.0.1:{ports[0]}")
        self.coordinator = CoordinatorAtWork(path)
        _set_ports(self.coordinator.folder, ports)
        self.sites = tuple(self._join(number, ports[0]) for number in range(1, NUM_SITES + 1))
        requests = [site.folder / "request.json" for site in self.sites]
        foedus("server", "admit", *requests, "--consortium", path, "--yes")
        self.disks = self._mounted()

    def make_whole(self) -> None:
        """Start what does not run and wait until every site can be asked."""
        if not self.coordinator.is_up:
            self.coordinator.start()
        wait_for("the coordinator", self.coordinator.gateway)
        for site in self.sites:
            site.route.heal()
            site.route.bytes_per_second = 0
            if not site.is_up:
                site.start()
        wait_for("every site connected", lambda: all(site.is_connected for site in self.sites))
        wait_for("every node online", lambda: self.coordinator.nodes_online() == NUM_SITES)

    def is_uploading(self, site: SiteAtWork) -> bool:
        """True while a reply that the site has announced has not wholly come."""
        mine = Belongings(self.coordinator.database)
        node_id = self.node_id(site)
        return any(mine.was_instructed(node_id, answers) for _, answers, _ in mine.open_uploads())

    def node_id(self, site: SiteAtWork) -> int:
        """Flower's number of a site's SuperNode."""
        chain = self.coordinator.folder.chain()
        entry = chain[-1].entry_named(site.name)
        assert entry
        return read_node_ids(self.coordinator.folder.nodes)[entry.member_id]

    def stop(self) -> None:
        """End every process; `make_whole` starts them again."""
        for site in self.sites:
            site.ask_to_end()
        for site in self.sites:
            site.end()
        self.coordinator.end()

    def end(self) -> None:
        """End everything, and look that no process is left."""
        known = self.family()
        self.stop()
        for site in self.sites:
            site.route.close()
        for disk in self.disks.values():
            disk.unmount()
        left = [words_of(pid) for pid in known | descendants(known) if is_alive(pid)]
        assert not left, f"left over: {left}"

    def family(self) -> set[int]:
        """Every process of the deployment."""
        return self.coordinator.family().union(*(site.family() for site in self.sites))

    def _mounted(self) -> dict[str, SmallDisk]:
        """Disks of their own for one site's state and for the runs, where mounting is allowed."""
        folders = {"runs": self.coordinator.folder.runs}
        folders[self.sites[-1].name] = self.sites[-1].folder / "state"
        try:
            return {name: SmallDisk(folder) for name, folder in folders.items()}
        except OSError:
            return {}

    def _join(self, number: int, public_port: int) -> SiteAtWork:
        """A firm that was invited to a way of its own."""
        site = SiteAtWork(self.folder / f"firm-{number}", Route(public_port))
        invited = self.coordinator.folder
        own = Invitation(
            NAME,
            f"127.0.0.1:{site.route.port}",
            invited.read_invitation().coordinator_key,
            invited.ca.read_text(encoding="ascii"),
        ).signed(invited.coordinator())
        own.save(self.folder / f"invitation-{number}.json")
        foedus(
            "client", "join", self.folder / f"invitation-{number}.json",
            "--name", site.name, "--folder", site.folder,
        )  # fmt: skip
        write_records(site.folder / "contracts", clause_records(number))
        return site


def environment() -> dict[str, str]:
    """Of every process; three runners share the machine."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}


def foedus(*words: object) -> str:
    """A command that ends by itself; returns what it printed."""
    ended = subprocess.run(
        [str(BIN / "foedus"), *map(str, words)],
        env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, f"{words}: {ended.stdout}\n{ended.stderr}"
    return ended.stdout


def _set_ports(folder: ConsortiumFolder, ports: list[int]) -> None:
    values = yaml.safe_load(folder.settings_file.read_text(encoding="utf-8"))
    names = ("public_port", "control_port", "metrics_port")
    values |= dict(zip(names, ports, strict=True)) | {"public_host": "127.0.0.1"}
    folder.settings_file.write_text(yaml.safe_dump(values), encoding="utf-8")
