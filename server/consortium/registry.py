"""SuperLink's registered SuperNodes, kept the same as the newest roster.

SuperLink never registers a key again that was unregistered once. So a firm whose membership ended,
by expulsion or by time, comes back with a new SuperNode key only.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

import httpx
from flwr.proto.control_pb2 import ListNodesRequest, RegisterNodeRequest, UnregisterNodeRequest
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.error import FlowerError

from protocol.consortium.chain import MemberEntry
from protocol.errors import FoedusError
from protocol.files import write_atomically
from server.runs.node_names import read_node_ids

log = logging.getLogger("foedus.server")

T = TypeVar("T")

_UNREGISTERED = "unregistered"


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


class ControlNodeRegistry:
    """The registry of a running SuperLink, over its Control API on the loopback address."""

    def __init__(self, client: ControlHttpClient) -> None:
        self._client = client

    def registered(self) -> dict[bytes, int]:
        """See NodeRegistry."""
        nodes = _ask(lambda: self._client.ListNodes(ListNodesRequest())).nodes_info
        return {n.public_key: int(n.node_id) for n in nodes if n.status != _UNREGISTERED}

    def register(self, public_key: bytes) -> int:
        """See NodeRegistry."""
        request = RegisterNodeRequest(public_key=public_key)
        return int(_ask(lambda: self._client.RegisterNode(request)).node_id)

    def unregister(self, node_id: int) -> None:
        """See NodeRegistry."""
        _ask(lambda: self._client.UnregisterNode(UnregisterNodeRequest(node_id=node_id)))


def _write_nodes(nodes_file: Path, nodes: Mapping[str, int]) -> None:
    try:
        before = read_node_ids(nodes_file)
    except FoedusError as error:
        log.warning("Written anew: %s", error)
        before = {}
    if (everything := before | dict(nodes)) != before or not nodes_file.exists():
        write_atomically(nodes_file, (json.dumps(everything, indent=2) + "\n").encode())


def _ask(call: Callable[[], T]) -> T:
    try:
        return call()
    except httpx.HTTPStatusError as error:
        told = FlowerError.from_json(error.response.text)
        raise FoedusError(f"SuperLink refused: {told.message if told else error}") from error
    except httpx.HTTPError as error:
        raise FoedusError(f"SuperLink gave no answer ({type(error).__name__}).") from error
