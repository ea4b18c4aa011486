"""All scenarios, in the order in which they run and stand on the page."""

from __future__ import annotations

from tests.faults.hostility import HOSTILITY
from tests.faults.kills import KILLS
from tests.faults.outages import OUTAGES
from tests.faults.scene import Scenario
from tests.faults.storage import STORAGE

SCENARIOS: tuple[Scenario, ...] = (*KILLS, *OUTAGES, *STORAGE, *HOSTILITY)

# Kin of others on the list, left to `make faults`: `make test` takes over an hour without them.
THOROUGH = frozenset(
    {
        "gateway-killed-before",
        "gateway-killed-at-upload",
        "gateway-killed-at-checkpoint",
        "serverapp-killed-before",
        "serverapp-killed-at-upload",
        "serverapp-killed-in-upload",
        "supernode-killed-before",
        "supernode-killed-at-upload",
        "runner-killed-before",
        "runner-killed-at-upload",
        "slow-site",
        "network-cut-short",
        "connections-reset",
        "clock-an-hour-behind",
        "damaged-checkpoint",
        "every-checkpoint-damaged",
    }
)
