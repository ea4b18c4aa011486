"""SuperLink's nodes follow the roster; a file that does not hold changes nothing."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
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
        self.stuck: set[int] = set()
        self.asked = 0

    def registered(self) -> Mapping[bytes, int]:
        self.asked += 1
        if self.down:
            raise FoedusError("down")
        return self.nodes

    def register(self, public_key: bytes) -> int:
        self.nodes[public_key] = len(self.nodes) + 1
        return self.nodes[public_key]

    def unregister(self, node_id: int) -> None:
        if node_id in self.stuck:
            raise FoedusError("stuck")
        self.nodes = {key: node for key, node in self.nodes.items() if node != node_id}


@pytest.fixture
def folder(tmp_path: Path) -> ConsortiumFolder:
    return found(tmp_path / "oak", [ASH.entry()])


def test_a_change_of_the_roster_is_carried_out_at_the_next_look(folder: ConsortiumFolder) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: nullcontext(registry))
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
    watch = RosterWatch(folder, lambda: nullcontext(registry))
    watch.look(brief.expires - 1.0)
    assert set(registry.nodes) == {ASH.public_key, BIRCH.public_key}
    watch.look(float(brief.expires))
    assert set(registry.nodes) == {ASH.public_key}


def test_a_node_that_was_registered_by_hand_does_not_stay(folder: ConsortiumFolder) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: nullcontext(registry))
    watch.look(1000.0)
    registry.register(b"by hand")
    watch.look(1000.0 + RESYNC_SECONDS)
    assert set(registry.nodes) == {ASH.public_key}


def test_superlink_that_does_not_answer_is_asked_again_at_the_next_look(
    folder: ConsortiumFolder,
) -> None:
    registry = KeptRegistry()
    registry.down = True
    watch = RosterWatch(folder, lambda: nullcontext(registry))
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
    watch = RosterWatch(folder, lambda: nullcontext(registry))
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
    watch = RosterWatch(folder, lambda: nullcontext(registry))
    watch.look(1000.0)
    folder.roster.write_text(before)
    write_roster(folder, [BIRCH.entry()])
    watch.look(1001.0)
    assert set(registry.nodes) == {ASH.public_key, BIRCH.public_key}


def test_a_coordinator_without_a_sound_roster_does_not_start(folder: ConsortiumFolder) -> None:
    folder.roster.write_text("")
    with pytest.raises(FoedusError, match="roster"):
        RosterWatch(folder, lambda: nullcontext(KeptRegistry()))


def test_a_roster_that_could_not_be_read_once_is_read_at_the_next_look(
    folder: ConsortiumFolder,
) -> None:
    """The file itself has not changed in between."""
    registry = KeptRegistry()
    write_roster(folder, [ASH.entry(), BIRCH.entry()])
    watch = RosterWatch(folder, lambda: nullcontext(registry))
    watch.look(1000.0)
    write_roster(folder, [BIRCH.entry()])
    needed = folder.invitation.read_bytes()
    folder.invitation.unlink()
    watch.look(1001.0)
    folder.invitation.write_bytes(needed)
    watch.look(1002.0)
    assert set(registry.nodes) == {BIRCH.public_key}
    assert watch.chain[-1].version == 4


def test_an_expulsion_that_superlink_did_not_take_is_repeated_at_the_next_look(
    folder: ConsortiumFolder,
) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: nullcontext(registry))
    watch.look(1000.0)
    write_roster(folder, [BIRCH.entry()])
    registry.down = True
    watch.look(1001.0)
    registry.down = False
    registry.stuck = {1}
    watch.look(1002.0)
    assert set(registry.nodes) == {ASH.public_key, BIRCH.public_key}
    registry.stuck = set()
    watch.look(1004.0)
    assert set(registry.nodes) == {BIRCH.public_key}


def test_problems_that_last_are_told_once_and_tried_ever_less_often(
    folder: ConsortiumFolder, caplog: pytest.LogCaptureFixture
) -> None:
    registry = KeptRegistry()
    watch = RosterWatch(folder, lambda: nullcontext(registry))
    watch.look(1000.0)
    write_roster(folder, [BIRCH.entry()])
    registry.stuck = {1}
    sound = folder.roster.read_text()
    for second in range(1, 121):
        if second == 61:
            folder.roster.write_text("{}")
        watch.look(1000.0 + second)
    told = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert len([line for line in told if "could not be unregistered" in line]) == 1
    assert len([line for line in told if "kept as it was" in line]) == 1
    assert len(told) == 2
    assert registry.asked < 12
    folder.roster.write_text(sound)
    registry.stuck = set()
    watch.look(1121.0 + RESYNC_SECONDS)
    assert set(registry.nodes) == {BIRCH.public_key}
