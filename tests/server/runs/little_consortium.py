"""A consortium with two members on paper, and Flower's SuperLink for it on this machine."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from protocol.consortium.chain import MemberEntry, append_version, next_version
from protocol.consortium.identity import Identity
from protocol.consortium.supernode_key import public_pem
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import found_consortium
from server.consortium.settings import ConsortiumSettings
from server.gateway.superlink import superlink_arguments
from server.gateway.superlink_environment import superlink_environment
from server.runs.control import CoordinatorDown
from server.runs.lifecycle import Runs

BIN = Path(sys.executable).parent
PATIENCE_SECONDS = 240.0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def found(path: Path, members: tuple[str, ...] = ("Ash", "Birch")) -> Runs:
    """A consortium whose coordinator is not up."""
    settings = ConsortiumSettings("Oak", "localhost:9443", control_port=free_port())
    now = datetime.now(UTC)
    found_consortium(path, settings, 0, (), None, now)
    folder = ConsortiumFolder(path)
    issued = int(now.timestamp())
    entries = tuple(
        MemberEntry(
            name,
            Identity.generate().public_key,
            public_pem(ec.generate_private_key(ec.SECP384R1())),
            issued,
            issued + 10**6,
        )
        for name in members
    )
    if entries:
        version = replace(next_version(folder.chain()[-1], issued), members=entries)
        append_version(folder.roster, version.signed_by(folder.coordinator()))
    return Runs(folder, settings)


@contextmanager
def superlink(runs: Runs, environment: Mapping[str, str] = {}) -> Iterator[subprocess.Popen[bytes]]:
    """Flower's own SuperLink with the coordinator's settings, ready; ended with all it started."""
    runs.folder.state.mkdir(exist_ok=True)
    with (runs.folder.state / "superlink.log").open("ab") as log:
        running = subprocess.Popen(
            [str(BIN / "flower-superlink"), *superlink_arguments(runs.folder, runs.settings)],
            env={**os.environ, **superlink_environment(runs.folder), **environment},
            stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            _wait_until_up(runs, running)
            yield running
        finally:
            kill(running)


def kill(running: subprocess.Popen[bytes]) -> None:
    """SIGKILL for the process and all it started, which share its session."""
    subprocess.run(["pkill", "-KILL", "-s", str(running.pid)], check=False)
    running.wait()


def _wait_until_up(runs: Runs, running: subprocess.Popen[bytes]) -> None:
    give_up = time.monotonic() + PATIENCE_SECONDS
    while True:
        assert running.poll() is None and time.monotonic() < give_up, log_of(runs)
        try:
            with runs.control() as control:
                control.runs([])
            return
        except CoordinatorDown:
            time.sleep(0.3)


def log_of(runs: Runs) -> str:
    """What the SuperLink and its ServerApps said, for a test that fails."""
    return (runs.folder.state / "superlink.log").read_text(errors="replace")[-8000:]
