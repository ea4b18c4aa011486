"""From the updates of a round to one step, before a method puts it into its factors.

The default is a streaming mean followed by a server optimiser. ``strategies.foreign`` offers the
other one, a stock Flower strategy.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from protocol.adapter import FloatArray
from protocol.errors import FoedusError
from protocol.settings import FederationSettings
from strategies.running_sum import RunningSum
from strategies.server_optimizers import (
    FIRST_MOMENT,
    SECOND_MOMENT,
    STEPS,
    OptimizerState,
    ServerOptimizer,
    rotate,
)

Steps = dict[str, NDArray[np.float64]]


class Aggregation(Protocol):
    """Takes checked updates in, gives one step out; kept for a whole run."""

    def reset(self) -> None:
        """Forget the updates of an unfinished round; state that lasts over rounds stays."""

    def add(self, update: Mapping[str, FloatArray], weight: float) -> None:
        """Take in one site's deltas; weight > 0. ``update`` is not changed."""

    def take_steps(self, round_: int, received: Mapping[str, FloatArray]) -> Steps:
        """What to add to each tensor of ``received`` (what the sites started from).

        Empty when the round gives no step.
        """

    def turn_basis(self, basis_changes: Mapping[str, NDArray[np.float64]]) -> None:
        """The bases of these B turned, by tensor name: M (r, r) with old_A = M @ new_A."""

    def state(self) -> OptimizerState:
        """Arrays to keep in a checkpoint."""

    def load_state(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Continue from a checkpoint's arrays. Errors: FoedusError where they are not its own."""


class MeanAggregation:
    """Weighted mean in one update's memory, then the server optimiser of the settings."""

    def __init__(self, settings: FederationSettings) -> None:
        self._optimizer = ServerOptimizer(
            name=settings.server_optimizer,
            learning_rate=settings.server_learning_rate,
            momentum=settings.server_momentum,
            beta2=settings.server_beta2,
            epsilon=settings.server_epsilon,
        )
        self._sum = RunningSum()
        self._state: OptimizerState = {}

    def reset(self) -> None:
        """See Aggregation."""
        self._sum = RunningSum()

    def add(self, update: Mapping[str, FloatArray], weight: float) -> None:
        """See Aggregation."""
        self._sum.add(update, weight)

    def take_steps(self, round_: int, received: Mapping[str, FloatArray]) -> Steps:
        """See Aggregation."""
        steps, self._state = self._optimizer.step(self._sum.take_mean(), self._state)
        return steps

    def turn_basis(self, basis_changes: Mapping[str, NDArray[np.float64]]) -> None:
        """See Aggregation."""
        self._state = rotate(self._state, basis_changes)

    def state(self) -> OptimizerState:
        """See Aggregation."""
        return dict(self._state)

    def load_state(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """See Aggregation."""
        for key in tensors:
            if not key.startswith((FIRST_MOMENT, SECOND_MOMENT, STEPS)):
                raise FoedusError(
                    f"Expected server optimiser state under {FIRST_MOMENT}, {SECOND_MOMENT} or "
                    f"{STEPS}, got {key!r}: the checkpoint is not one of this version."
                )
        self._state = {key: np.array(tensor) for key, tensor in tensors.items()}
