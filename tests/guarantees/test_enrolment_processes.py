"""Enrolment between real processes over TLS: from a new consortium to members who come and go.

The commands are run as people type them; what a site may do after each is tried with the
requests that Flower's SuperNode makes, and with the site's own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from protocol.consortium.passphrase import VARIABLE
from server.consortium.folder import ConsortiumFolder
from server.runs.node_names import read_node_ids
from tests.client.enrolment.sites import firm_of
from tests.protocol.consortium.leagues import Firm as Keys
from tests.server.gateway.little_coordinator import (
    OUTSIDE,
    Coordinator,
    Firm,
    FirmNode,
    free_port,
    up,
    wait_for,
)

NAMES = ("Vane & Alder", "Birch LLP")
pytestmark = pytest.mark.slow


def foedus(*words: str | Path, status: int = 0) -> str:
    """What one command prints; its exit status is `status`."""
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    done = subprocess.run(
        [sys.executable, "-m", "foedus", *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
        env=environment,
    )
    assert done.returncode == status, (words, done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    return done.stdout if status == 0 else done.stderr


@dataclass(frozen=True)
class League:
    """A coordinator that is up, and two firms' folders that have joined."""

    coordinator: Coordinator
    sites: dict[str, Path]

    @property
    def folder(self) -> Path:
        return self.coordinator.folder.path

    def admit(self, name: str, *words: str | Path) -> str:
        request = self.sites[name] / "request.json"
        return foedus("server", "admit", request, "--yes", "--consortium", self.folder, *words)

    def roster(self, name: str, status: int = 0) -> str:
        config = self.sites[name] / "site.yaml"
        return foedus("client", "roster", "--config", config, "--json", status=status)

    def keys(self, name: str) -> Keys:
        return firm_of(self.sites[name], name)

    def lets_in(self, keys: Keys) -> bool:
        """Whether a SuperNode with these keys may take part now."""
        try:
            FirmNode.activate(
                self.coordinator, Firm(keys.name, keys.identity, keys.supernode)
            ).leave()
        except httpx.HTTPStatusError as error:
            # 412: it was unregistered between being known and being activated.
            assert error.response.status_code in (401, 412)
            return False
        return True

    def wait_until_in(self, name: str) -> None:
        """The coordinator looks at its roster once a second."""
        wait_for(lambda: self.lets_in(self.keys(name)))


@pytest.fixture
def league(tmp_path: Path) -> Iterator[League]:
    folder, port = tmp_path / "league", free_port(OUTSIDE)
    ports = ("--control-port", str(free_port()), "--metrics-port", str(free_port()))
    words = ("init", "Test League", "--folder", folder, "--address", f"{OUTSIDE}:{port}")
    foedus("server", *words, *ports)
    settings = folder / "consortium.yaml"
    settings.write_text(settings.read_text().replace("0.0.0.0", OUTSIDE))
    sites = {name: tmp_path / name for name in NAMES}
    for name, site in sites.items():
        invitation = folder / "invitation.json"
        foedus("client", "join", invitation, "--name", name, "--folder", site)
    with up(ConsortiumFolder(folder)) as coordinator:
        yield League(coordinator, sites)


def test_firms_join_get_new_keys_and_are_expelled_while_the_coordinator_is_up(
    league: League,
) -> None:
    one, two = NAMES
    for name in NAMES:
        assert not league.lets_in(league.keys(name))
        assert "not admitted" in league.roster(name, status=2)

    for name in NAMES:
        league.admit(name)
    for name in NAMES:
        league.wait_until_in(name)
    shown = json.loads(league.roster(one))
    assert shown["version"] == 3 and [m["name"] for m in shown["members"]] == list(NAMES)
    members = json.loads(foedus("server", "members", "--json", "--consortium", league.folder))
    assert members["digest"] == shown["digest"]
    assert {member["status"] for member in members["members"]} <= {"registered", "offline"}
    nodes = read_node_ids(league.coordinator.folder.nodes)
    assert {m["member_id"]: m["node_id"] for m in members["members"]} == nodes

    old = league.keys(one)
    foedus("client", "join", "--rotate", "--folder", league.sites[one])
    league.admit(one)
    wait_for(lambda: not league.lets_in(old))
    assert json.loads(league.roster(one))["version"] == 4
    assert league.keys(one).identity.public_key != old.identity.public_key
    league.wait_until_in(one)

    foedus("server", "expel", two, "--yes", "--consortium", league.folder)
    wait_for(lambda: not league.lets_in(league.keys(two)))
    assert "not admitted" in league.roster(two, status=2)
    assert league.lets_in(league.keys(one))
    assert [m["name"] for m in json.loads(league.roster(one))["members"]] == [one]


def test_members_sign_what_changes_and_follow_a_new_coordinators_key(
    league: League, tmp_path: Path
) -> None:
    one, two = NAMES
    league.admit(one)
    consortium = ("--consortium", league.folder)
    foedus("server", "require-signatures", "1", "--yes", *consortium)
    # Two proposals wait at a time; the one that is signed first ends the other.
    foedus("server", "rotate-key", "--yes", *consortium)
    assert "1 more member" in league.admit(two)
    endorsement = tmp_path / "endorsement.json"
    wait_for(lambda: json.loads(league.roster(one))["version"] == 3)
    (admission,) = [
        path
        for path in league.coordinator.folder.proposals.iterdir()
        if two in path.read_text(encoding="utf-8")
    ]
    site = league.sites[one] / "site.yaml"
    words = ("endorse", admission, "--config", site, "--output", endorsement, "--yes")
    foedus("client", *words)
    foedus("server", "adopt", endorsement, *consortium)
    league.wait_until_in(two)
    assert [m["name"] for m in json.loads(league.roster(two))["members"]] == [one, two]

    foedus("server", "rotate-key", "--yes", *consortium)
    (rotation,) = league.coordinator.folder.proposals.iterdir()
    wait_for(lambda: json.loads(league.roster(one))["version"] == 4)
    words = ("endorse", rotation, "--config", site, "--output", endorsement, "--yes")
    foedus("client", *words)
    foedus("server", "adopt", endorsement, *consortium)
    new = league.coordinator.folder.read_invitation().coordinator_key
    assert league.coordinator.folder.coordinator().public_key == new
    wait_for(lambda: {json.loads(league.roster(name))["version"] for name in NAMES} == {5})
