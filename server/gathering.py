"""Before a run goes on: a moment for the firms that are on their way back.

After an outage SuperNodes come back one by one, within half a minute. A run that was resumed at
once would go on with those that happened to be first.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from flwr.serverapp import Grid

from protocol.consortium.chain import load_newest

log = logging.getLogger("foedus.server")

_POLL_SECONDS = 0.5


def gather(
    grid: Grid,
    site_names: Mapping[int, str],
    wait_seconds: float,
    say: Callable[[Sequence[str]], None],
) -> tuple[str, ...]:
    """Wait until every member's node is online, `wait_seconds` at most; returns who is missing.

    site_names: node id -> name, see `awaited`. say: called once with the names that are waited for,
    and not at all where nobody is missing.
    """
    give_up = time.monotonic() + wait_seconds
    said = False
    while missing := _missing(grid, site_names):
        left = give_up - time.monotonic()
        if left <= 0:
            log.warning("Beginning without %s: not online.", ", ".join(missing))
            break
        if not said:
            log.info("Waiting up to %.0f s for %s.", wait_seconds, ", ".join(missing))
            say(missing)
            said = True
        time.sleep(min(_POLL_SECONDS, left))
    return missing


def awaited(site_names: Mapping[int, str], roster: Path, now: float) -> dict[int, str]:
    """The nodes of members whose admission has not ended, for `gather`.

    roster: the signed chain, or a plain roster, which knows no ends. now: Unix seconds. Errors:
    FoedusError where it does not hold.
    """
    entries = load_newest(roster).members if roster.suffix == ".jsonl" else ()
    ended = {entry.name for entry in entries if entry.expired(now)}
    return {node: name for node, name in site_names.items() if name not in ended}


def _missing(grid: Grid, site_names: Mapping[int, str]) -> tuple[str, ...]:
    """A member may have had several nodes; one that is online is enough."""
    online = {site_names[node] for node in grid.get_node_ids() if node in site_names}
    return tuple(sorted(set(site_names.values()) - online))
