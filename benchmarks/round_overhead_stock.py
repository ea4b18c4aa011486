"""Stock Flower for `round_overhead`: SuperLink, two SuperNodes with their default isolation, TLS,
node authentication, and an app of the tutorials' kind (round_overhead_stock_app)."""

from __future__ import annotations

import datetime
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from benchmarks import round_overhead_stock_app
from benchmarks.processes import LOOPBACK, Processes, answers, free_port
from benchmarks.round_overhead_work import Round, rounds_between, run_settings
from protocol.codec import encode
from server.consortium.certificates import make_authority, make_server_certificate

_START_PATIENCE_SECONDS = 120.0
_ROUND_PATIENCE_SECONDS = 180.0
_APP = "stock"
_PROJECT = """\
[project]
name = "stock"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "stock"
fab-include = ["round_overhead_stock_app.py"]

[tool.flwr.app.components]
serverapp = "round_overhead_stock_app:server_app"
clientapp = "round_overhead_stock_app:client_app"

[tool.flwr.app.config]
settings-file = ""
result-file = ""
"""


class StockFlower:
    """Running between __enter__ and __exit__ of `processes`. site_files: site.yaml of each."""

    def __init__(self, folder: Path, processes: Processes, site_files: Sequence[Path]) -> None:
        self._folder = folder
        self._processes = processes
        self._site_files = tuple(site_files)
        self._port = free_port()
        self._num_runs = 0

    def start(self) -> None:
        """SuperLink, registered keys, SuperNodes. Errors: FoedusError where one does not come."""
        self._write_certificates()
        self._processes.start(
            "superlink", "flower-superlink", "--host", LOOPBACK, "--port", str(self._port),
            "--ssl-ca-certfile", str(self._folder / "ca.pem"),
            "--ssl-certfile", str(self._folder / "server.pem"),
            "--ssl-keyfile", str(self._folder / "server.key"),
            "--enable-supernode-auth", "--disable-runtime-dependency-installation",
            "--database", str(self._folder / "superlink.sqlite3"),
        )  # fmt: skip
        self._processes.wait_for(
            "stock SuperLink", lambda: answers(self._port), _START_PATIENCE_SECONDS
        )
        for number, site_file in enumerate(self._site_files, start=1):
            key = self._write_key(number)
            self._processes.run(
                "register", "flwr", "supernode", "register", str(key.with_suffix(".pub")), "here"
            )
            self._processes.start(
                f"supernode-{number}", "flower-supernode",
                "--superlink", f"{LOOPBACK}:{self._port}", "--port", str(free_port()),
                "--root-certificates", str(self._folder / "ca.pem"),
                "--auth-supernode-private-key", str(key),
                "--node-config", f'site-config="{site_file}"',
            )  # fmt: skip
        self._write_app()

    def run(self, overrides: Sequence[str]) -> list[Round]:
        """One run of all its rounds. Errors: FoedusError where it does not end."""
        self._num_runs += 1
        settings, result = self._folder / "settings.json", self._folder / f"{self._num_runs}.json"
        run = run_settings(overrides)
        settings.write_text(json.dumps(encode(run)), encoding="utf-8")
        config = f"settings-file='{settings}' result-file='{result}'"
        self._processes.run(
            "run", "flwr", "run", str(self._folder / _APP), "here", "--run-config", config
        )
        patience = _START_PATIENCE_SECONDS + _ROUND_PATIENCE_SECONDS * run.federation.rounds
        self._processes.wait_for("the end of a stock run", result.exists, patience)
        told = json.loads(result.read_text(encoding="utf-8"))
        return rounds_between(told["ends"], [sum(each) / len(each) for each in told["training"]])

    def _write_certificates(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        authority = make_authority("stock", now)
        server = make_server_certificate(authority, [LOOPBACK], 30, now)
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "ca.pem").write_bytes(authority.certificate_pem)
        (self._folder / "server.pem").write_bytes(server.certificate_pem)
        (self._folder / "server.key").write_bytes(server.key_pem())
        home = self._folder / "flower"
        home.mkdir(exist_ok=True)
        (home / "config.toml").write_text(
            f'[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "{LOOPBACK}:'
            f'{self._port}"\nroot-certificates = "{self._folder / "ca.pem"}"\n',
            encoding="utf-8",
        )

    def _write_key(self, number: int) -> Path:
        private, path = ec.generate_private_key(ec.SECP384R1()), self._folder / f"node-{number}"
        path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
        public = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
        path.with_suffix(".pub").write_bytes(public)
        return path

    def _write_app(self) -> None:
        app = self._folder / _APP
        app.mkdir(exist_ok=True)
        (app / "pyproject.toml").write_text(_PROJECT, encoding="utf-8")
        source = Path(round_overhead_stock_app.__file__)
        shutil.copy(source, app / source.name)
