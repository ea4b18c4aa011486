"""SuperLink's nodes become those of the roster: nobody more, nobody less; one failure harms none.

Here Flower's own database stands behind the registry, as it keeps what was ever registered.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from flwr.common.constant import NOOP_FLWR_AID
from flwr.server.superlink.linkstate import LinkState, LinkStateFactory
from flwr.supercore.constant import NodeStatus
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager

from protocol.errors import FoedusError
from server.consortium.registry import NodeRegistry, sync_nodes
from server.runs.node_names import read_node_ids
from tests.protocol.consortium.leagues import ANNE, BELL, COLE, NOW, YEAR


@dataclass(frozen=True)
class Database:
    """Flower's LinkState as a NodeRegistry, without the way over HTTP."""

    state: LinkState

    def registered(self) -> Mapping[bytes, int]:
        nodes = self.state.get_node_info(owner_aids=[NOOP_FLWR_AID])
        return {n.public_key: n.node_id for n in nodes if n.status != NodeStatus.UNREGISTERED}

    def register(self, public_key: bytes) -> int:
        try:
            return self.state.create_node(NOOP_FLWR_AID, "", public_key, 30)
        except ValueError as error:
            raise FoedusError(str(error)) from error

    def unregister(self, node_id: int) -> None:
        self.state.delete_node(NOOP_FLWR_AID, node_id)


@pytest.fixture
def registry(tmp_path: Path) -> NodeRegistry:
    database = str(tmp_path / "superlink.sqlite3")
    stores = ObjectStoreFactory(database)
    return Database(LinkStateFactory(database, NoOpFederationManager(), stores).state())


def test_members_are_registered_once_and_their_nodes_written(
    registry: NodeRegistry, tmp_path: Path
) -> None:
    nodes = tmp_path / "state" / "nodes.json"
    first = sync_nodes(registry, [ANNE.entry(), BELL.entry()], nodes, NOW)
    assert first.registered == (ANNE.name, BELL.name) and not first.problems
    written = read_node_ids(nodes)
    assert written == {
        entry.member_id: registry.registered()[entry.supernode_key]
        for entry in (ANNE.entry(), BELL.entry())
    }
    again = sync_nodes(registry, [ANNE.entry(), BELL.entry()], nodes, NOW)
    assert (again.registered, again.unregistered) == ((), 0) and read_node_ids(nodes) == written


def test_the_expelled_the_expired_and_strangers_are_unregistered(
    registry: NodeRegistry, tmp_path: Path
) -> None:
    nodes = tmp_path / "nodes.json"
    sync_nodes(registry, [ANNE.entry(), BELL.entry()], nodes, NOW)
    registry.register(COLE.entry().supernode_key)
    late = ANNE.entry(expires=NOW + 2 * YEAR)
    result = sync_nodes(registry, [late, BELL.entry()], nodes, NOW + YEAR)
    assert result.unregistered == 2
    assert set(registry.registered()) == {ANNE.entry().supernode_key}
    # What Bell sent before can still be named.
    assert BELL.entry().member_id in read_node_ids(nodes)


def test_a_key_that_superlink_takes_no_more_keeps_nobody_else_out(
    registry: NodeRegistry, tmp_path: Path
) -> None:
    nodes = tmp_path / "nodes.json"
    sync_nodes(registry, [ANNE.entry()], nodes, NOW)
    sync_nodes(registry, [], nodes, NOW)
    result = sync_nodes(registry, [ANNE.entry(), BELL.entry()], nodes, NOW)
    assert result.registered == (BELL.name,)
    (problem,) = result.problems
    assert problem.startswith(f"{ANNE.name} could not be registered")


def test_a_new_supernode_key_takes_the_place_of_the_old_one(
    registry: NodeRegistry, tmp_path: Path
) -> None:
    nodes = tmp_path / "nodes.json"
    sync_nodes(registry, [ANNE.entry()], nodes, NOW)
    before = read_node_ids(nodes)
    rekeyed = replace(ANNE.entry(), supernode_key=BELL.entry().supernode_key)
    result = sync_nodes(registry, [rekeyed], nodes, NOW)
    assert result.unregistered == 1 and result.registered == (ANNE.name,)
    after = read_node_ids(nodes)
    assert after.keys() == before.keys() and after != before


@pytest.mark.parametrize("text", ["{", "[1]", json.dumps({"a": "x"})])
def test_a_damaged_file_of_nodes_is_written_anew(
    registry: NodeRegistry, tmp_path: Path, text: str
) -> None:
    nodes = tmp_path / "nodes.json"
    nodes.write_text(text)
    sync_nodes(registry, [ANNE.entry()], nodes, NOW)
    assert set(read_node_ids(nodes)) == {ANNE.entry().member_id}
