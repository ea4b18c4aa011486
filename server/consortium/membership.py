"""The members as the operator sees them: roster, nodes and, if the coordinator is up, presence."""

from __future__ import annotations

import datetime
import json
import sys
import time
from dataclasses import asdict, dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from protocol.consortium.chain import MemberEntry
from protocol.consortium.documents import day_of
from protocol.consortium.enrolment import keys_fingerprint
from protocol.errors import FoedusError
from server.consortium.certificates import WARN_DAYS, days_left
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import server_certificate
from server.runs.node_names import read_node_ids

_DAY_SECONDS = 86_400


@dataclass(frozen=True)
class MemberStanding:
    """status: as SuperLink sees the node, "unknown" while the coordinator is down, or "expired"."""

    name: str
    member_id: str
    fingerprint: str
    admitted: str
    expires: str
    node_id: int | None
    status: str


def standings(folder: ConsortiumFolder, now: float) -> list[MemberStanding]:
    """All members of the newest roster. now: Unix seconds. Errors: FoedusError."""
    nodes = read_node_ids(folder.nodes)
    online = _node_statuses(folder)
    return [
        _standing(entry, nodes.get(entry.member_id), online, now)
        for entry in folder.chain()[-1].members
    ]


def warnings_of(folder: ConsortiumFolder, now: float) -> list[str]:
    """What ends within 30 days, or has ended. Errors: FoedusError."""
    certificate = server_certificate(folder)
    left = days_left(certificate, datetime.datetime.fromtimestamp(now, datetime.UTC))
    found = []
    if left < WARN_DAYS:
        found.append(f"The server's certificate ends in {left} days: foedus server renew.")
    for entry in folder.chain()[-1].members:
        days = int((entry.expires - now) // _DAY_SECONDS)
        if entry.expired(now):
            found.append(f"{entry.name} has expired: it needs new keys (join --rotate).")
        elif days < WARN_DAYS:
            found.append(f"{entry.name} ends in {days} days: ask for join --renew or --rotate.")
    return found


def print_members(folder: ConsortiumFolder, as_json: bool) -> None:
    """A table, or JSON, on stdout; warnings on stderr."""
    now = time.time()
    head, shown = folder.chain()[-1], standings(folder, now)
    warnings = warnings_of(folder, now)
    if as_json:
        values = {
            "consortium": head.consortium,
            "version": head.version,
            "digest": head.digest,
            "coordinator_fingerprint": folder.read_invitation().fingerprint,
            "signatures_needed": head.signatures_needed,
            "members": [asdict(standing) for standing in shown],
            "warnings": warnings,
        }
        print(json.dumps(values, indent=2))
        return
    console = Console()
    console.print(Text(f"{head.consortium}, roster version {head.version}, digest {head.digest}"))
    console.print(Text(f"coordinator {folder.read_invitation().fingerprint}"))
    console.print(_table(shown))
    for warning in warnings:
        print(warning, file=sys.stderr)


def _table(shown: list[MemberStanding]) -> Table:
    table = Table(box=SIMPLE, padding=(0, 1))
    for heading in ("firm", "fingerprint", "admitted", "expires", "node", "status"):
        # Folded, not cut: half a number is none. A fingerprint is read aloud group by group.
        table.add_column(heading, overflow="fold", no_wrap=heading not in ("firm", "node"))
    for one in shown:
        groups = one.fingerprint.split()
        half = len(groups) // 2
        digits = " ".join(groups[:half]) + "\n" + " ".join(groups[half:])
        node = str(one.node_id) if one.node_id else "-"
        cells = (one.name, digits, one.admitted, one.expires, node, one.status)
        table.add_row(*(Text(cell) for cell in cells))
    return table


def _standing(
    entry: MemberEntry, node_id: int | None, online: dict[int, str] | None, now: float
) -> MemberStanding:
    status = "unknown" if online is None else online.get(node_id or 0, "not registered")
    return MemberStanding(
        entry.name,
        entry.member_id,
        keys_fingerprint(entry.public_key, entry.supernode_key),
        day_of(entry.admitted),
        day_of(entry.expires),
        node_id,
        "expired" if entry.expired(now) else status,
    )


def _node_statuses(folder: ConsortiumFolder) -> dict[int, str] | None:
    """Node id -> status by SuperLink; None where the coordinator does not answer."""
    from server.gateway.state_file import read_gateway_state

    state = read_gateway_state(folder.gateway_state)
    if state is None:
        return None
    # Imported here: Flower takes seconds, and is needed only where a coordinator is up.
    from server.runs.control import ControlPlane

    try:
        with ControlPlane(state.control_address, folder.ca) as control:
            return {node_id: node.status for node_id, node in control.nodes().items()}
    except FoedusError:
        return None
