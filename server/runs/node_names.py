"""Firm names for Flower's node numbers, so that records name who took part."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path

from protocol.consortium.roster import Roster
from protocol.errors import FoedusError

log = logging.getLogger("foedus.server")


class NodeNames(Mapping[int, str]):
    """node id -> member's name, read anew whenever the file of nodes has changed: a firm may join,
    or come back with a new key, while a run goes on.

    nodes_file: {member id: node id}, as the coordinator keeps it. A node that no member of the
    roster has is left out. Where two nodes were one member's, both have its name.
    """

    def __init__(self, nodes_file: Path, roster: Roster) -> None:
        self._file = nodes_file
        self._members = {member.member_id: member.name for member in roster.members}
        self._read_at = 0
        self._names: dict[int, str] = {}

    def __getitem__(self, node_id: int) -> str:
        self._refresh()
        return self._names[node_id]

    def __iter__(self) -> Iterator[int]:
        self._refresh()
        return iter(dict(self._names))

    def __len__(self) -> int:
        self._refresh()
        return len(self._names)

    def _refresh(self) -> None:
        try:
            changed = self._file.stat().st_mtime_ns
            if changed == self._read_at:
                return
            nodes = json.loads(self._file.read_text(encoding="utf-8"))
            found = {int(node): self._members[m] for m, node in nodes.items() if m in self._members}
        except (OSError, ValueError, TypeError, AttributeError) as error:
            # Names are for people; without them the records show numbers.
            log.warning("The file of nodes %s cannot be read: %s", self._file, error)
            return
        self._names.update(found)
        self._read_at = changed


def read_node_ids(nodes_file: Path) -> dict[str, int]:
    """member id -> node id; empty before the coordinator was first up.

    Errors: FoedusError where the file is damaged.
    """
    try:
        return {m: int(n) for m, n in json.loads(nodes_file.read_text(encoding="utf-8")).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise FoedusError(
            f"Expected the members' nodes in {nodes_file}, got a damaged file. Remove it: the "
            "coordinator writes it anew."
        ) from error
