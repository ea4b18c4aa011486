"""SuperLink's nodes follow the roster; a file that does not hold changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.gateway.roster_watch import RESYNC_SECONDS, RosterWatch
from tests.server.gateway.little_coordinator import Firm, found, write_roster

ASH, BIRCH = Firm("Ash"), Firm("Birch")


class KeptRegistry:
    """A registry in memory, which like SuperLink's takes no key again."""

    def __init__(self) -> None:
        self.nodes: dict[bytes, int] = {}
        self.down = False

    def registered(self) -> Mapping[bytes, int]:
        if self.down:
            raise FoedusError("down")
        return self.nodes

    def register(self, public_key: bytes) -> int:
        self.nodes[public_key] = len(self.nodes) + 1
        return self.nodes[public_key]

    def unregister(self, node_id: int) -> None:
        self.nodes = {key: node for key, node in self.nodes.items() if node != node_id}


@pytest.fixture
def folder(tmp_path: Path) -> ConsortiumFolder:
    return found(tmp_path / "oak", [ASH.entry()])


def test_a_change_of_the_roster_is_carried_out_at_the_next_look(folder: ConsortiumFolder) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: registry)
    watch.look(1000.0)
    assert set(registry.nodes) == {ASH.public_key}
    write_roster(folder, [BIRCH.entry()])
    watch.look(1001.0)
    assert set(registry.nodes) == {BIRCH.public_key}
    assert watch.chain[-1].version == 3


def test_a_member_whose_time_ends_is_unregistered_without_a_change(
    folder: ConsortiumFolder,
) -> None:
    registry, brief = KeptRegistry(), BIRCH.entry(expires_in_seconds=100)
    write_roster(folder, [ASH.entry(), brief])
    watch = RosterWatch(folder, lambda: registry)
    watch.look(brief.expires - 1.0)
    assert set(registry.nodes) == {ASH.public_key, BIRCH.public_key}
    watch.look(float(brief.expires))
    assert set(registry.nodes) == {ASH.public_key}


def test_a_node_that_was_registered_by_hand_does_not_stay(folder: ConsortiumFolder) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: registry)
    watch.look(1000.0)
    registry.register(b"by hand")
    watch.look(1000.0 + RESYNC_SECONDS)
    assert set(registry.nodes) == {ASH.public_key}


def test_superlink_that_does_not_answer_is_asked_again_at_the_next_look(
    folder: ConsortiumFolder,
) -> None:
    registry = KeptRegistry()
    registry.down = True
    watch = RosterWatch(folder, lambda: registry)
    watch.look(1000.0)
    registry.down = False
    watch.look(1001.0)
    assert set(registry.nodes) == {ASH.public_key}


@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:-1],
        lambda lines: [lines[0], lines[1].replace("Ash", "Elm")],
        lambda lines: [*lines, "{}"],
        lambda lines: [],
    ],
    ids=["rolled back", "altered", "not JSON of a version", "empty"],
)
def test_a_roster_that_does_not_hold_changes_nothing(
    folder: ConsortiumFolder, damage: object
) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: registry)
    watch.look(1000.0)
    lines = folder.roster.read_text().splitlines()
    folder.roster.write_text("".join(f"{line}\n" for line in damage(lines)))  # type: ignore[operator]
    watch.look(1001.0)
    assert set(registry.nodes) == {ASH.public_key}
    assert watch.chain[-1].version == 2


def test_another_history_of_the_same_length_changes_nothing(
    folder: ConsortiumFolder, tmp_path: Path
) -> None:
    """Signed by the same coordinator, yet forked."""
    registry = KeptRegistry()
    before = folder.roster.read_text()
    write_roster(folder, [ASH.entry(), BIRCH.entry()])
    watch = RosterWatch(folder, lambda: registry)
    watch.look(1000.0)
    folder.roster.write_text(before)
    write_roster(folder, [BIRCH.entry()])
    watch.look(1001.0)
    assert set(registry.nodes) == {ASH.public_key, BIRCH.public_key}


def test_a_coordinator_without_a_sound_roster_does_not_start(folder: ConsortiumFolder) -> None:
    folder.roster.write_text("")
    with pytest.raises(FoedusError, match="roster"):
        RosterWatch(folder, KeptRegistry)
