"""What a site does to its update before it may leave: one ordered list of named steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from protocol.adapter import FloatArray, l2_norm
from protocol.errors import Refusal
from protocol.reasons import RefusalReason

Tensors = Mapping[str, FloatArray]


@dataclass(frozen=True)
class UpdateStep:
    """A named transformation of the tensors that are to leave."""

    name: str
    apply: Callable[[Tensors], Tensors]


def run_steps(steps: Sequence[UpdateStep], tensors: Tensors) -> Tensors:
    """Apply the steps in order."""
    for step in steps:
        tensors = step.apply(tensors)
    return tensors


def plain_update_steps(received: Tensors, norm_bound_l2: float) -> list[UpdateStep]:
    """delta -> clip: the update of a run without privacy noise or masks."""
    return [
        UpdateStep("delta", lambda trained: difference(trained, received)),
        UpdateStep("clip", lambda update: clip_update(update, norm_bound_l2)),
    ]


def difference(trained: Tensors, received: Tensors) -> Tensors:
    """trained - received, tensor by tensor; both hold the same names and shapes."""
    return {name: tensor - received[name] for name, tensor in trained.items()}


def clip_update(update: Tensors, max_norm_l2: float) -> Tensors:
    """Guarantee: the returned L2 norm over all tensors together is <= max_norm_l2 (a float32 ulp
    below it, so that a recomputed norm does not land above). Norm 0: unchanged.

    Errors: Refusal(TRAINING_DIVERGED) on NaN or infinity. Metrics are not covered.
    """
    norm = l2_norm(update)
    if not np.isfinite(norm):
        raise Refusal(RefusalReason.TRAINING_DIVERGED, "The update holds NaN or infinity.")
    if norm <= max_norm_l2:
        return update
    scale = np.float32(max_norm_l2 / norm * (1 - 1e-6))
    return {name: tensor * scale for name, tensor in update.items()}
