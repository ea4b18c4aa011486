"""A coordinator and sites as processes: Flower's SuperLink with TLS and node authentication, and
`foedus client up`, all from one copy of the checkout."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric import ec

from client.enrolment.keys import make_supernode_key, save_supernode_key
from client.runner.launch import free_port
from protocol.consortium.identity import Identity, save_identity
from protocol.consortium.supernode_key import public_pem
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import found_consortium
from server.consortium.settings import ConsortiumSettings
from server.runs.control import ControlPlane
from tests.client.runner.checkouts import copy_checkout
from tests.small_runs import LABELS, write_site

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 240.0
PASSPHRASE = "correct horse battery staple"


def wait_until(holds: Callable[[], Any], what: str, tell: Callable[[], str] = str) -> None:
    """Give up only when something must have gone wrong."""
    give_up = time.monotonic() + PATIENCE_SECONDS
    while not holds():
        assert time.monotonic() < give_up, f"gave up waiting: {what}\n{tell()}"
        time.sleep(0.05)


def is_running(pid: int | None) -> bool:
    """False for a process that is gone or only waits for its parent to take note."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


@dataclass
class RunningSite:
    """A firm: its files, and the supervisor once it was started."""

    folder: Path
    config: Path
    key: ec.EllipticCurvePrivateKey
    supervisor: subprocess.Popen[bytes] | None = None

    def log(self) -> str:
        """state/up.log."""
        path = self.folder / "state" / "up.log"
        return path.read_text(encoding="utf-8") if path.exists() else ""

    def state(self) -> dict[str, Any]:
        """state/up.json; empty where there is none."""
        path = self.folder / "state" / "up.json"
        try:
            return dict(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}

    def kill(self, which: str) -> int:
        """SIGKILL the "supernode" or the "runner"; returns the process id it had."""
        pid = int(self.state()[f"{which}_pid"])
        os.kill(pid, signal.SIGKILL)
        return pid

    def wait_for(self, text: str, times: int = 1) -> None:
        """Until up.log has it so often."""
        wait_until(lambda: self.log().count(text) >= times, repr(text), self.log)

    def wait_for_receipts(self, number: int) -> None:
        """Until so many were written."""
        wait_until(lambda: len(self.receipts()) >= number, f"{number} receipts", self.log)

    def receipts(self) -> list[dict[str, Any]]:
        """What left, as written."""
        path = self.folder / "state" / "receipts.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


class Federation:
    """Everything it starts ends with it."""

    def __init__(self, folder: Path, num_sites: int, *, encrypted: bool = False) -> None:
        self.folder = folder
        self.code = copy_checkout(folder / "code")
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.environment = {
            **os.environ,
            "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(self.code),
            "FLWR_HOME": str(folder / "flower"),
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "OMP_NUM_THREADS": "1",
        }
        now = datetime.datetime.now(datetime.UTC)
        settings = ConsortiumSettings("trial", self.address)
        found_consortium(folder / "consortium", settings, 0, (), None, now)
        self.consortium = ConsortiumFolder(folder / "consortium")
        self._write_connection()
        self._running = ExitStack()
        self._superlink: subprocess.Popen[bytes] | None = None
        self.sites = [self._enrol(number, encrypted) for number in range(1, num_sites + 1)]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._running.close()
        # Flower gives each ServerApp a session of its own; all name a file in this folder.
        subprocess.run(["pkill", "-KILL", "-f", str(self.folder)], check=False)

    def start_superlink(self) -> None:
        """With the sites' keys registered, and its state on disk so that it can start again."""
        self._superlink = self.start(
            "superlink", "flower-superlink", "--host", "127.0.0.1", "--port", str(self.port),
            "--ssl-ca-certfile", str(self.consortium.ca),
            "--ssl-certfile", str(self.consortium.server_certificate),
            "--ssl-keyfile", str(self.consortium.server_key),
            "--database", str(self.folder / "superlink.sqlite3"),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
        )  # fmt: skip

        def answers() -> bool:
            try:
                self._registry().registered()
            except FoedusError:
                return False
            return True

        wait_until(answers, "the SuperLink", self.logs)
        for site in self.sites:
            self.admit(site)

    def stranger(self, number: int) -> RunningSite:
        """A site that nobody has admitted."""
        return self._enrol(number, encrypted=False)

    def invite_to(self, address: str) -> None:
        """Name another address in the invitation."""
        old = self.consortium.read_invitation()
        replace(old, address=address).signed(self.consortium.coordinator()).save(
            self.consortium.invitation
        )

    def admit(self, site: RunningSite) -> None:
        """Register its SuperNode's key."""
        registry, key = self._registry(), public_pem(site.key)
        if key not in registry.registered():
            registry.register(key)

    def stop_superlink(self) -> None:
        """At once, with everything it started."""
        assert self._superlink
        end(self._superlink)

    def up(self, site: RunningSite, *words: str) -> subprocess.Popen[bytes]:
        """`foedus client up`."""
        site.supervisor = self.start(
            f"up-{site.folder.name}", "foedus", "client", "up", "--config", str(site.config), *words
        )
        return site.supervisor

    def run(self, *overrides: str, code: Path | None = None, name: str = "run") -> Path:
        """`flwr run` of a small run; returns its output folder at once."""
        output = self.folder / f"output-{name}"
        number = len(self.sites)
        words = [
            f"task.labels=[{','.join(LABELS)}]",
            f"federation.rounds=1 federation.min_cohort={number} federation.quorum={number}",
            "adapter.last_layers=1 adapter.rank=2 model.max_tokens=16",
            f"coordinator.output_dir={output}",
            *overrides,
        ]
        self.start(
            name, "flwr", "run", str(code or self.code), "here", "--run-config",
            f"overrides='{' '.join(words)}'",
        )  # fmt: skip
        return output

    def start(self, name: str, *words: str) -> subprocess.Popen[bytes]:
        """A process that ends with the federation, with everything in its session."""
        with (self.folder / f"{name}.log").open("ab") as log:
            process = subprocess.Popen(
                [str(BIN / words[0]), *words[1:]],
                cwd=self.folder, env=self.environment, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        self._running.callback(end, process)
        return process

    def logs(self) -> str:
        """The ends of all logs, for a failure's message."""
        paths = [*self.folder.glob("*.log"), *self.folder.glob("*/state/up.log")]
        ends = [f"--- {p}\n{p.read_text(errors='replace')[-5000:]}" for p in sorted(paths)]
        return "\n".join(ends)

    def _registry(self) -> ControlPlane:
        return ControlPlane(self.address, self.consortium.ca)

    def _enrol(self, number: int, encrypted: bool) -> RunningSite:
        config = write_site(self.folder / f"firm-{number}", number)
        folder = config.parent
        passphrase = PASSPHRASE.encode() if encrypted else None
        save_identity(folder / "identity.pem", Identity.generate(), passphrase)
        key = make_supernode_key()
        save_supernode_key(folder / "supernode.pem", key, passphrase)
        (folder / "passphrase").write_text(f"{PASSPHRASE}\n", encoding="utf-8")
        text = config.read_text(encoding="utf-8")
        text += f"consortium: {self.consortium.invitation}\nthreads: 1\n"
        text += "identity: identity.pem\nsupernode_key: supernode.pem\n"
        text += "passphrase_file: passphrase\n" if encrypted else ""
        config.write_text(text, encoding="utf-8")
        return RunningSite(folder, config, key)

    def _write_connection(self) -> None:
        (self.folder / "flower").mkdir()
        (self.folder / "flower" / "config.toml").write_text(
            '[superlink]\ndefault = "here"\n\n[superlink.here]\n'
            f'address = "{self.address}"\nroot-certificates = "{self.consortium.ca}"\n',
            encoding="utf-8",
        )


def end(process: subprocess.Popen[bytes]) -> None:
    """With all its session; a supervisor's children end with it."""
    subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False)
    process.wait()
