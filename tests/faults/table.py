"""All scenarios, in the order in which they run and stand on the page."""

from __future__ import annotations

from tests.faults.kills import KILLS
from tests.faults.scene import Scenario

SCENARIOS: tuple[Scenario, ...] = KILLS
