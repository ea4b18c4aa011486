"""Where everything lies in a consortium's folder, and how what is kept there is read."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from protocol.consortium.chain import SignedRoster, read_chain
from protocol.consortium.identity import Identity, load_identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.passphrase import read_passphrase
from protocol.errors import FoedusError
from protocol.settings_file import read_settings
from server.consortium.settings import ConsortiumSettings


@dataclass(frozen=True)
class ConsortiumFolder:
    """The paths of one consortium at its coordinator; `foedus server init` makes the folder."""

    path: Path

    @property
    def settings_file(self) -> Path:
        """consortium.yaml."""
        return self.path / "consortium.yaml"

    @property
    def invitation(self) -> Path:
        """What firms get: name, address, the coordinator's public key and the CA's certificate."""
        return self.path / "invitation.json"

    @property
    def roster(self) -> Path:
        """The signed versions of the roster, one a line."""
        return self.path / "roster.jsonl"

    @property
    def coordinator_key(self) -> Path:
        """The coordinator's private Ed25519 key (0600)."""
        return self.path / "keys" / "coordinator.pem"

    @property
    def next_coordinator_key(self) -> Path:
        """The key that a rotation has made, until a version of the roster names it."""
        return self.coordinator_key.with_name("coordinator-next.pem")

    @property
    def ca(self) -> Path:
        """Certificate of the consortium's own authority."""
        return self.path / "tls" / "ca.pem"

    @property
    def ca_key(self) -> Path:
        """The authority's private key (0600)."""
        return self.path / "tls" / "ca.key"

    @property
    def server_certificate(self) -> Path:
        """The coordinator's certificate, by the authority."""
        return self.path / "tls" / "server.pem"

    @property
    def server_key(self) -> Path:
        """The certificate's private key (0600)."""
        return self.path / "tls" / "server.key"

    @property
    def state(self) -> Path:
        """What the running coordinator writes."""
        return self.path / "state"

    @property
    def database(self) -> Path:
        """SuperLink's database."""
        return self.state / "superlink.sqlite3"

    @property
    def nodes(self) -> Path:
        """Member id to node id, JSON."""
        return self.state / "nodes.json"

    @property
    def gateway_state(self) -> Path:
        """Written while the coordinator is up: process id, addresses, when it started."""
        return self.state / "gateway.json"

    @property
    def proposals(self) -> Path:
        """Roster versions that wait for members' signatures."""
        return self.path / "proposals"

    @property
    def runs(self) -> Path:
        """One folder for each run."""
        return self.path / "runs"

    @property
    def receipts(self) -> Path:
        """Receipts of each member, signed by both sides."""
        return self.path / "receipts"

    def settings(self) -> ConsortiumSettings:
        """Errors: FoedusError where this is no consortium's folder; SettingsError."""
        if not self.settings_file.is_file():
            raise FoedusError(
                f"Expected a consortium's folder at {self.path}, got no consortium.yaml there. "
                "Give --consortium DIR, or make one with `foedus server init`."
            )
        return read_settings(ConsortiumSettings, self.settings_file, "a consortium's settings")

    def passphrase(self) -> bytes | None:
        """What opens the private keys; None where they are open.

        Errors: FoedusError where the file that the settings name is missing or empty.
        """
        file = self.settings().passphrase_file
        return read_passphrase(self.path / file if file else None)

    def read_invitation(self) -> Invitation:
        """Errors: FoedusError where it is missing or was altered."""
        return Invitation.read(self.invitation)

    def chain(self) -> tuple[SignedRoster, ...]:
        """All versions of the roster, checked from the first on.

        Errors: FoedusError where the file is missing or the chain does not hold.
        """
        return read_chain(self.roster, self.read_invitation().coordinator_key)

    def coordinator(self, passphrase: bytes | None = None) -> Identity:
        """The coordinator's signing identity. Errors: FoedusError where it does not open."""
        return load_identity(self.coordinator_key, passphrase)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among foedus' processes while the roster or the keys change."""
        self.state.mkdir(parents=True, exist_ok=True)
        with (self.state / "consortium.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
