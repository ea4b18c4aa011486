"""Bounds on the numbers of a reply, so that no site can decide, or break, a mean of them.

A mean counts each site by a bounded weight; an accuracy of 10^300 would decide it all the same.
Losses and seconds have no natural bound: of those one site can still decide the mean.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from protocol.errors import WireError
from protocol.reasons import RejectionReason

_SHARES = frozenset({"accuracy", "macro_f1"})
# Whole numbers are exact up to here, and sums of what is below stay finite.
_MOST = 2.0**53


def expect_plausible(metrics: Mapping[str, float]) -> None:
    """Errors: WireError BAD_WEIGHT for an impossible num_examples, NOT_FINITE for NaN and infinity,
    MALFORMED for a number below 0, a share above 1 or anything above 2^53."""
    weight = metrics.get("num_examples", 1.0)
    if not math.isfinite(weight) or not 0 < weight <= _MOST:
        raise WireError(
            RejectionReason.BAD_WEIGHT, f"Expected a positive num_examples, got {weight}."
        )
    infinite = sorted(name for name, value in metrics.items() if not math.isfinite(value))
    if infinite:
        raise WireError(RejectionReason.NOT_FINITE, f"Metrics {infinite} are NaN or infinite.")
    for name, value in sorted(metrics.items()):
        most = 1.0 if name in _SHARES else _MOST
        if not 0 <= value <= most:
            raise WireError(
                RejectionReason.MALFORMED, f"Expected {name} within 0..{most:.0f}, got {value}."
            )
