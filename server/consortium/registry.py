"""SuperLink's registered SuperNodes, kept the same as the newest roster.

SuperLink never registers a key again that was unregistered once. So a firm whose membership ended,
by expulsion or by time, comes back with a new SuperNode key only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from protocol.consortium.chain import MemberEntry
from protocol.errors import FoedusError
from protocol.files import write_atomically
from server.runs.node_names import read_node_ids

log = logging.getLogger("foedus.server")


class NodeRegistry(Protocol):
    """Who may speak to the Fleet API. Keys are PEM, as MemberEntry.supernode_key."""

    def registered(self) -> Mapping[bytes, int]:
        """Key -> node id of every SuperNode that is registered now."""
        ...

    def register(self, public_key: bytes) -> int:
        """Returns the node id. Errors: FoedusError, such as for a key that was unregistered."""
        ...

    def unregister(self, node_id: int) -> None:
        """From now on the node's requests are refused. Errors: FoedusError."""
        ...


@dataclass(frozen=True)
class SyncResult:
    """Member names that were registered, how many nodes were unregistered, and what failed."""

    registered: tuple[str, ...] = ()
    unregistered: int = 0
    problems: tuple[str, ...] = ()


def sync_nodes(
    registry: NodeRegistry, entries: Iterable[MemberEntry], nodes_file: Path, now: float
) -> SyncResult:
    """Register the members' SuperNodes and unregister all others. now: Unix seconds.

    Members whose admission has ended count as gone. nodes_file gets {member id: node id}; those who
    have left stay in it, so that what they sent can still be named. One member's failure is
    reported and keeps nobody else out.
    """
    wanted = {entry.supernode_key: entry for entry in entries if not entry.expired(now)}
    known = dict(registry.registered())
    problems: list[str] = []
    unregistered = 0
    # First, so that nobody who was expelled stays because of a member that cannot be registered.
    for key in known.keys() - wanted.keys():
        node_id = known.pop(key)
        try:
            registry.unregister(node_id)
            unregistered += 1
        except FoedusError as error:
            problems.append(f"Node {node_id} could not be unregistered: {error}")
    newly = []
    for key, entry in wanted.items():
        if key in known:
            continue
        try:
            known[key] = registry.register(key)
            newly.append(entry.name)
        except FoedusError as error:
            problems.append(f"{entry.name} could not be registered: {error}")
    nodes = {e.member_id: known[key] for key, e in wanted.items() if key in known}
    _write_nodes(nodes_file, nodes)
    return SyncResult(tuple(newly), unregistered, tuple(problems))


def _write_nodes(nodes_file: Path, nodes: Mapping[str, int]) -> None:
    try:
        before = read_node_ids(nodes_file)
    except FoedusError as error:
        log.warning("Written anew: %s", error)
        before = {}
    if (everything := before | dict(nodes)) != before or not nodes_file.exists():
        write_atomically(nodes_file, (json.dumps(everything, indent=2) + "\n").encode())
