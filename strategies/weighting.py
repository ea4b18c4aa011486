"""How much one site's update counts in the mean."""

from __future__ import annotations

import math
import numbers

from protocol.errors import FoedusError, WireError
from protocol.reasons import RejectionReason


def update_weight(num_examples: float, weighting: str, weight_cap: int) -> float:
    """The weight of an update trained on ``num_examples`` examples.

    weighting: "uniform" gives 1, "examples" gives min(num_examples, weight_cap). The count is the
    site's own word and tells its size; the cap bounds what a large or boastful site can move.
    A count of 0 weighs 0 under either rule: nothing was learned.
    Errors: WireError (BAD_WEIGHT) for a negative, NaN, infinite or non-numeric count; FoedusError
    for an unknown weighting or a cap below 1.

    >>> update_weight(5000, "examples", 1000), update_weight(5000, "uniform", 1000)
    (1000.0, 1.0)
    """
    if weighting not in ("uniform", "examples"):
        raise FoedusError(
            f"Expected weighting 'uniform' or 'examples', got {weighting!r} in "
            "federation.weighting."
        )
    if weight_cap < 1:
        raise FoedusError(f"Expected federation.weight_cap of at least 1, got {weight_cap!r}.")
    if isinstance(num_examples, bool) or not isinstance(num_examples, numbers.Real):
        raise WireError(
            RejectionReason.BAD_WEIGHT,
            f"Expected the number of examples behind an update, got {num_examples!r}.",
        )
    if not math.isfinite(num_examples) or num_examples < 0:
        raise WireError(
            RejectionReason.BAD_WEIGHT,
            "Expected a finite number of examples of at least 0 behind an update, got "
            f"{num_examples!r}.",
        )
    if num_examples == 0:
        return 0.0
    return 1.0 if weighting == "uniform" else float(min(num_examples, weight_cap))
