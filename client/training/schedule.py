"""The learning rate over a whole federation, seen from one step of one round."""

from __future__ import annotations

import math


def learning_rate_factor(
    step: int,
    steps_per_round: int,
    round_: int,
    rounds: int,
    warmup_fraction: float,
    final_fraction: float,
) -> float:
    """The factor in (0, 1] on the peak learning rate.

    step: 0-based step within the round; round_: 1-based. A half cosine falls from 1 to
    final_fraction over all rounds. Each round warms up linearly over warmup_fraction of its steps,
    because a fresh AdamW takes sign-like first steps.
    """
    done = (round_ - 1) * steps_per_round + step
    progress = min(1.0, done / max(1, rounds * steps_per_round))
    cosine = final_fraction + (1.0 - final_fraction) * 0.5 * (1.0 + math.cos(math.pi * progress))
    warmup_steps = round(warmup_fraction * steps_per_round)
    warmup = min(1.0, (step + 1) / (warmup_steps + 1))
    return cosine * warmup
