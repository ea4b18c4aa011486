"""Small sessions for the tests of this folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from protocol.consortium.identity import Identity
from protocol.consortium.roster import Member, Roster
from protocol.secure_aggregation.ring import RingParameters
from protocol.secure_aggregation.transcript import SessionContext

CONTEXT = SessionContext(
    run_id="ab" * 16,
    round=3,
    attempt=1,
    roster_digest="cd" * 32,
    ring=RingParameters(bits=32, num_sites_max=5, coordinate_bound=1.0, weight_cap=10),
    layout_digest="ef" * 32,
)

# One change each: what must never pass for CONTEXT.
CHANGES: dict[str, dict[str, Any]] = {
    "run": {"run_id": "ba" * 16},
    "round": {"round": 4},
    "attempt": {"attempt": 2},
    "round and attempt swapped": {"round": 1, "attempt": 3},
    "roster": {"roster_digest": "dc" * 32},
    "layout": {"layout_digest": "fe" * 32},
    "degree": {"degree": 4},
    "bits": {"ring": replace(CONTEXT.ring, bits=24)},
    "sites": {"ring": replace(CONTEXT.ring, num_sites_max=6)},
    "bound": {"ring": replace(CONTEXT.ring, coordinate_bound=1.5)},
    "weight cap": {"ring": replace(CONTEXT.ring, weight_cap=11)},
}


def other_contexts() -> dict[str, SessionContext]:
    """CONTEXT with one change each."""
    return {name: replace(CONTEXT, **change) for name, change in CHANGES.items()}


def consortium(size: int) -> tuple[Roster, list[Identity]]:
    """A roster of `size` members and their identities."""
    identities = [Identity.generate() for _ in range(size)]
    members = tuple(Member(f"Firm {i}", one.public_key) for i, one in enumerate(identities))
    return Roster("Test consortium", 1, members), identities
