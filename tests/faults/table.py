"""All scenarios, in the order in which they run and stand on the page."""

from __future__ import annotations

from tests.faults.hostility import HOSTILITY
from tests.faults.kills import KILLS
from tests.faults.outages import OUTAGES
from tests.faults.scene import Scenario
from tests.faults.storage import STORAGE

SCENARIOS: tuple[Scenario, ...] = (*KILLS, *OUTAGES, *STORAGE, *HOSTILITY)

# One or two of each kind: `make test` runs these, `make faults` all.
EVERY_TIME = frozenset(
    {
        "gateway-killed-before",
        "power-cut-at-site",
        "silent-site",
        "network-cut-in-upload",
        "disk-full-at-site",
        "damaged-ledger",
    }
)
