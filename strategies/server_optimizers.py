"""Server optimisers: what the coordinator does with the averaged update.

Sign: the sites send deltas (trained - received), so the pseudo-gradient a textbook optimiser
descends is g = -delta. Every rule here is odd in g (turning all past gradients around turns the
step around), so the code works on deltas and adds: w <- w + learning_rate * direction(delta).

| name | direction | source |
|---|---|---|
| none | delta | FedAvg; with learning rate 1 the new state is the plain mean |
| momentum | m = mu m + delta | FedAvgM, Hsu et al. 2019, arXiv 1909.06335 |
| nesterov | m = mu m + delta; delta + mu m | DiLoCo, Douillard et al. 2023, arXiv 2311.08105 |
| adam | m / (sqrt(v) + epsilon), bias-corrected | FedAdam, Reddi et al. 2020, arXiv 2003.00295 |

DiLoCo's settings are rate 0.7 and mu 0.9; mu is Adam's beta1.

The state is a flat dict of arrays, ready for safetensors: ``first_moment/<tensor>`` and
``second_moment/<tensor>`` (float32, the tensor's shape) and ``steps/<tensor>`` (int64, shape
(1,)). Each tensor counts its own steps, because RoLoRA steps A and B in turn and Adam's bias
correction needs the number of steps that tensor really took.

When the basis turns: FedSVD replaces A by A' with A = M A' (M = A A'^T, r x r), so an update m of
B in the old coordinates is m M in the new ones: m A = m M A'. First moments are mapped so,
exactly. Second moments are sums of squared entries and no map of them exists, since they forget
the signs. Zeroing v alone would be unsafe: the next step divides the kept m by the new gradient
alone, entry by entry, and explodes wherever that is near zero. So the estimate is re-started
isotropic: every entry of a row gets the row's mean, times ||M||_F^2 / r (1 for an orthogonal M). A
row's total squared gradient, which no rotation changes, is kept; its distribution over the r
columns is forgotten. RoLoRA's even rounds move A as well, by a step that no r x r matrix undoes:
B's moments are kept as they are there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.errors import FoedusError
from protocol.settings import SERVER_OPTIMIZERS

FloatArray = NDArray[np.floating]
Moment = NDArray[np.float64]
OptimizerState = dict[str, NDArray[np.generic]]

FIRST_MOMENT = "first_moment/"
SECOND_MOMENT = "second_moment/"
STEPS = "steps/"


@dataclass(frozen=True, slots=True)
class ServerOptimizer:
    """One optimiser's settings; ``step`` is a pure function of deltas and state.

    learning_rate: factor on the direction. momentum: mu, or Adam's beta1; in [0, 1). beta2,
    epsilon: Adam only; epsilon is in units of the update's entries (FedAdam's tau).
    """

    name: str = "none"
    learning_rate: float = 1.0
    momentum: float = 0.9
    beta2: float = 0.99
    epsilon: float = 1e-3

    def __post_init__(self) -> None:
        if self.name not in SERVER_OPTIMIZERS:
            raise FoedusError(
                f"Expected federation.server_optimizer out of {', '.join(SERVER_OPTIMIZERS)}, got "
                f"{self.name!r}."
            )

    def step(
        self, deltas: Mapping[str, FloatArray], state: Mapping[str, NDArray[np.generic]]
    ) -> tuple[dict[str, NDArray[np.float64]], OptimizerState]:
        """What to add to each tensor, and the next state; tensors without a delta keep theirs."""
        steps: dict[str, NDArray[np.float64]] = {}
        new_state: OptimizerState = dict(state)
        for tensor_name, delta in deltas.items():
            direction, changed = self._direction(
                tensor_name, np.asarray(delta, dtype=np.float64), state
            )
            steps[tensor_name] = self.learning_rate * direction
            new_state.update(changed)
        return steps, new_state

    def _direction(
        self, tensor_name: str, delta: NDArray[np.float64], state: Mapping[str, NDArray[np.generic]]
    ) -> tuple[NDArray[np.float64], OptimizerState]:
        if self.name == "none":
            return delta, {}
        first = _moment(state, FIRST_MOMENT + tensor_name, delta)
        if self.name == "adam":
            second = _moment(state, SECOND_MOMENT + tensor_name, delta)
            taken = int(state[STEPS + tensor_name][0]) if STEPS + tensor_name in state else 0
            direction, first, second = adam_direction(
                delta, first, second, taken + 1, self.momentum, self.beta2, self.epsilon
            )
            return direction, {
                FIRST_MOMENT + tensor_name: first.astype(np.float32),
                SECOND_MOMENT + tensor_name: second.astype(np.float32),
                STEPS + tensor_name: np.array([taken + 1], dtype=np.int64),
            }
        rule = nesterov_direction if self.name == "nesterov" else momentum_direction
        direction, first = rule(delta, first, self.momentum)
        return direction, {FIRST_MOMENT + tensor_name: first.astype(np.float32)}


def momentum_direction(delta: Moment, moment: Moment, momentum: float) -> tuple[Moment, Moment]:
    """(direction, new moment) of heavy-ball momentum: m = mu m + delta, direction m."""
    moment = momentum * moment + delta
    return moment, moment


def nesterov_direction(delta: Moment, moment: Moment, momentum: float) -> tuple[Moment, Moment]:
    """(direction, new moment) of Nesterov momentum: m = mu m + delta, direction delta + mu m."""
    moment = momentum * moment + delta
    return delta + momentum * moment, moment


def adam_direction(
    delta: Moment,
    first: Moment,
    second: Moment,
    steps: int,
    beta1: float,
    beta2: float,
    epsilon: float,
) -> tuple[Moment, Moment, Moment]:
    """(direction, first moment, second moment); ``steps`` counts this one, so it starts at 1."""
    first = beta1 * first + (1.0 - beta1) * delta
    second = beta2 * second + (1.0 - beta2) * np.square(delta)
    first_corrected = first / (1.0 - beta1**steps)
    second_corrected = second / (1.0 - beta2**steps)
    return first_corrected / (np.sqrt(second_corrected) + epsilon), first, second


def rotate(
    state: Mapping[str, NDArray[np.generic]], basis_changes: Mapping[str, NDArray[np.float64]]
) -> OptimizerState:
    """The state after the bases of some B turned: tensor name -> M (r, r) with old_A = M @ new_A.

    First moments (d_out, r) map to m @ M, exactly (up to float32 storage). Second moments: see the
    module's text. Step counts stay: the moments are as well-estimated as before.
    """
    turned: OptimizerState = dict(state)
    for tensor_name, basis_change in basis_changes.items():
        first, second = FIRST_MOMENT + tensor_name, SECOND_MOMENT + tensor_name
        if first in state:
            turned[first] = (np.asarray(state[first], dtype=np.float64) @ basis_change).astype(
                np.float32
            )
        if second in state:
            row_means = np.asarray(state[second], dtype=np.float64).mean(axis=1, keepdims=True)
            scale = np.sum(np.square(basis_change)) / basis_change.shape[0]
            turned[second] = np.broadcast_to(row_means * scale, state[second].shape).astype(
                np.float32
            )
    return turned


def _moment(
    state: Mapping[str, NDArray[np.generic]], key: str, like: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The stored moment as float64, or zeros before the tensor's first step."""
    return np.asarray(state[key], dtype=np.float64) if key in state else np.zeros_like(like)
