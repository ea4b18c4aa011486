"""What a site's processes are started with: words, environment, and secrets in memory files."""

from __future__ import annotations

import json
import os
import secrets
import socket
import sys
from dataclasses import dataclass
from pathlib import Path

from client.runner.child import Command
from client.runner.memory_file import MemoryFile
from client.runner.task_phase import TaskPhase
from client.site import Site
from protocol.codec import encode
from protocol.consortium.identity import load_identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.passphrase import FILE_VARIABLE, VARIABLE, read_passphrase
from protocol.errors import FoedusError
from protocol.files import write_atomically

LOOPBACK = "127.0.0.1"
CA_FILE, FLOWER_HOME = "ca.pem", "flower"
_SECRET_BYTES = 32


@dataclass(frozen=True)
class Coordinator:
    """address: host:port. root_certificates: file of its authority; None: no TLS, for trying."""

    address: str
    root_certificates: Path | None


class Launch:
    """Holds the secrets of a site's processes, and knows how each is started.

    Errors: FoedusError where the invitation, a key or its passphrase is missing or does not fit.
    """

    def __init__(self, config: Path, site: Site, trial_address: str = "") -> None:
        self._folder = config.resolve().parent
        self._site = site
        self.coordinator = _coordinator(site, trial_address)
        self.port = site.settings.superlink_port or free_port()
        self._secret = MemoryFile("task-secret", secrets.token_bytes(_SECRET_BYTES))
        # As they were read when the site went up, whatever happens to the file meanwhile.
        self._settings = MemoryFile("settings", json.dumps(encode(site.settings)).encode())
        self.phase = MemoryFile("task-phase", TaskPhase.IDLE.value)
        self._identity: MemoryFile | None = None
        self._supernode_key: MemoryFile | None = None
        self.load_keys()

    def load_keys(self) -> None:
        """Read the site's keys, anew where they have changed; for what is started from now on."""
        passphrase = read_passphrase(self._site.passphrase_file)
        if self._site.identity_file:
            identity = load_identity(self._site.identity_file, passphrase)
            self._identity = _in_place_of(self._identity, "identity", identity.to_pem())
        if self.coordinator.root_certificates:
            key = _supernode_key(self._site, passphrase)
            self._supernode_key = _in_place_of(self._supernode_key, "supernode-key", key)

    def move_from_taken_port(self) -> bool:
        """Choose another port where the site leaves the choice and the last one is taken now.

        True where it changed: the runner has to be started again. Errors: FoedusError where the
        port that the site names is taken.
        """
        if _is_free(self.port):
            return False
        if self._site.settings.superlink_port:
            raise FoedusError(
                f"Expected port {self.port} of {LOOPBACK} (superlink_port in site.yaml) to be "
                "free, another process has it. End that one, or set superlink_port: 0."
            )
        self.port = free_port()
        return True

    def supernode(self) -> Command:
        """Flower's SuperNode, unmodified, with its Runtime API on loopback only."""
        words = ["--superlink", self.coordinator.address]
        descriptors = [self._secret.descriptor]
        if self.coordinator.root_certificates:
            words += ["--root-certificates", str(self.coordinator.root_certificates)]
        else:
            words += ["--insecure"]
        if self._supernode_key:
            words += ["--auth-supernode-private-key", str(self._supernode_key.path)]
            descriptors.append(self._supernode_key.descriptor)
        words += ["--isolation", "process", "--host", LOOPBACK, "--port", str(self.port)]
        words += ["--superexec-auth-secret-file", str(self._secret.path)]
        return Command(
            [*_python("client.runner.supernode_process"), str(os.getpid()), *words],
            self._environment(),
            descriptors,
        )

    def runner(self) -> Command:
        """The process that answers with the installed code."""
        words = ["--settings-file", str(self._settings.path), "--folder", str(self._folder)]
        words += ["--supernode", f"{LOOPBACK}:{self.port}"]
        words += ["--secret-file", str(self._secret.path), "--phase-file", str(self.phase.path)]
        words += ["--parent", str(os.getpid())]
        shared = (self._settings, self._secret, self.phase)
        descriptors = [file.descriptor for file in shared]
        if self._identity:
            words += ["--identity-file", str(self._identity.path)]
            descriptors.append(self._identity.descriptor)
        return Command([*_python("client.runner"), *words], self._environment(), descriptors)

    def _environment(self) -> dict[str, str]:
        # The keys are open already; a child that looked for a passphrase would try it on them.
        hidden = (VARIABLE, FILE_VARIABLE)
        environment = {name: value for name, value in os.environ.items() if name not in hidden}
        environment |= {
            "FLWR_HOME": str((self._site.state_folder / FLOWER_HOME).resolve()),
            # Flower reports usage and asks for newer versions unless told otherwise.
            "FLWR_TELEMETRY_ENABLED": "0",
            "FLWR_DISABLE_UPDATE_CHECK": "1",
            "PYTHONUNBUFFERED": "1",
        }
        # A run names its base model. What is not here is declined, not fetched at its word.
        environment.setdefault("HF_HUB_OFFLINE", "1")
        # A firm's proxy is for the way out, not for the runner's way to the SuperNode.
        for name in ("NO_PROXY", "no_proxy"):
            environment[name] = ",".join(filter(None, (environment.get(name), LOOPBACK)))
        if self._site.settings.threads:
            environment["OMP_NUM_THREADS"] = str(self._site.settings.threads)
        return environment


def free_port() -> int:
    """A port of this machine's loopback address that nobody listens on now."""
    with socket.socket() as listener:
        listener.bind((LOOPBACK, 0))
        return int(listener.getsockname()[1])


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        # As uvicorn does: connections that are closing down do not count.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def _in_place_of(old: MemoryFile | None, name: str, content: bytes) -> MemoryFile:
    if old:
        old.close()
    return MemoryFile(name, content)


def _python(module: str) -> list[str]:
    """-P: nothing is imported from the folder that `foedus` was started in."""
    return [sys.executable, "-P", "-m", module]


def _coordinator(site: Site, trial_address: str) -> Coordinator:
    if trial_address:
        return Coordinator(trial_address, None)
    if site.invitation_file is None:
        raise FoedusError(
            "Expected `consortium` in site.yaml, the invitation of the coordinator, got none. Join "
            "with `foedus client join`, or try out on this machine with --insecure --superlink."
        )
    invitation = Invitation.read(site.invitation_file)
    root_certificates = (site.state_folder / CA_FILE).resolve()
    write_atomically(root_certificates, invitation.ca_certificate_pem.encode())
    return Coordinator(invitation.address, root_certificates)


def _supernode_key(site: Site, passphrase: bytes | None) -> bytes:
    from client.enrolment.keys import supernode_key_unlocked

    if site.supernode_key_file is None:
        raise FoedusError(
            "Expected `supernode_key` in site.yaml, the key by which this site's SuperNode signs, "
            "got none. `foedus client join` makes one."
        )
    return supernode_key_unlocked(site.supernode_key_file, passphrase)
