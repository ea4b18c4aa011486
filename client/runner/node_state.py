"""What the SuperNode's own lines tell about its connection to the coordinator."""

from __future__ import annotations

import re
from enum import StrEnum

# The words of Flower 1.41; other lines leave the state as it is.
_CONNECTED = re.compile(r"SuperNode ID: (\d+)")
_SILENT = "Connection attempt failed, retrying"
# It gives up over an answer that it did not want, and goes on with its next request.
# Where it goes on without a word about the connection, the next thing it gets or sends tells.
_BACK = (
    "Connection successful after",
    "Giving up reconnection after",
    "is not in `RUNNING` status",
    "Received successfully",
    "Sent successfully",
)
_REFUSED = "Failed to activate SuperNode"


# It gives up a message that its executor may have taken already, as where the run was just stopped.
# From then on it waits for an executor that waits for it, or sends each reply one message too late.
_LOST_TRACK = ("Failed to receive message", "Ignoring message")


class NodeState(StrEnum):
    """connecting: started, and not yet let in. unreachable: it keeps trying. refused: it is about
    to end, as the coordinator knows its key not, or no longer."""

    STOPPED = "stopped"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    UNREACHABLE = "unreachable"
    REFUSED = "refused"


def state_after(line: str, before: NodeState, node_id: int | None) -> tuple[NodeState, int | None]:
    """State and node id after a line of the SuperNode's.

    >>> state_after("INFO :      SuperNode ID: 17", NodeState.CONNECTING, None)
    (<NodeState.CONNECTED: 'connected'>, 17)
    >>> state_after("WARNING: Giving up reconnection after 22 s", NodeState.UNREACHABLE, 17)
    (<NodeState.CONNECTED: 'connected'>, 17)
    >>> state_after("INFO : Sent successfully", NodeState.UNREACHABLE, 17)
    (<NodeState.CONNECTED: 'connected'>, 17)
    """
    found = _CONNECTED.search(line)
    if found:
        return NodeState.CONNECTED, int(found[1])
    if _SILENT in line:
        return NodeState.UNREACHABLE, node_id
    if _REFUSED in line:
        return NodeState.REFUSED, node_id
    if any(words in line for words in _BACK):
        return (NodeState.CONNECTED if node_id else NodeState.CONNECTING), node_id
    return before, node_id


def has_lost_track(line: str) -> bool:
    """True where a line of the SuperNode's says that it has to be started anew to work on.

    >>> has_lost_track("INFO : Run ID 7 is not in `RUNNING` status. Ignoring message 1f.")
    True
    """
    return any(words in line for words in _LOST_TRACK)
