"""A site trained alone for all rounds of a run, as the audit needs it: every round observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from client.audit.attack import ObservedRound, OnProgress
from client.privacy.accounting import Cost, epsilon_spent
from client.trained_update import round_sigma
from client.training.loop import TrainingResult, train
from client.training.private import train_private
from client.update import difference
from models.adapted import AdaptedModel, adapted_model
from models.tokens import Tokenised
from protocol.adapter import AdapterState, FloatArray
from protocol.initial import derive_seed
from protocol.methods import Factors, trained_factors, uploaded_factors
from protocol.settings import RunSettings

BetweenRounds = Callable[[AdapterState], AdapterState]


class Trainer(Protocol):
    """Trains a round in place; as client.training.loop.train."""

    def __call__(
        self,
        adapted: AdaptedModel,
        run: RunSettings,
        examples: Sequence[Tokenised],
        factors: Factors,
        round_: int,
        seed: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> TrainingResult:
        """Train `factors`; on_step hears (steps done, steps planned)."""
        ...


@dataclass(frozen=True)
class Trajectory:
    """A whole training: what every round began with and sent, and the tensors at its end."""

    rounds: tuple[ObservedRound, ...]
    end: Mapping[str, FloatArray]


def train_as_set(run: RunSettings) -> Trainer:
    """The training that a site does under these settings; for one run, as clipping may adapt."""
    return _PrivateTraining(run) if run.privacy.enabled else train


class _PrivateTraining:
    """Private training as in a round of a federation; no ledger, as nothing of it is kept."""

    def __init__(self, run: RunSettings) -> None:
        self._sigma = round_sigma(run)
        self._clip_norm: float | None = None

    def __call__(
        self,
        adapted: AdaptedModel,
        run: RunSettings,
        examples: Sequence[Tokenised],
        factors: Factors,
        round_: int,
        seed: int,
        on_step: Callable[[int, int], None] | None = None,
    ) -> TrainingResult:
        """Train `factors`. seed: not used, as noise must come from the operating system."""
        result = train_private(
            adapted,
            run,
            examples,
            factors,
            round_,
            self._sigma,
            clip_norm=self._clip_norm,
            on_step=on_step,
        )
        self._clip_norm = result.clip_norm
        return result.training


def without_privacy(run: RunSettings) -> RunSettings:
    """The same run without privacy, from the same start: the control, which has to be caught."""
    head_start = "labels" if run.head_from_labels else "zero"
    return replace(
        run,
        model=replace(run.model, head_start=head_start),
        privacy=replace(run.privacy, mode="none"),
    )


def claimed_epsilon(run: RunSettings) -> float:
    """What the accountant says all steps of a run cost; infinite without privacy."""
    if not run.privacy.enabled:
        return math.inf
    steps = run.federation.rounds * run.privacy.steps_per_round
    cost = Cost(run.privacy.sampling_rate, round_sigma(run), steps)
    return epsilon_spent([cost], run.privacy.delta)


def train_alone(
    run: RunSettings,
    examples: Sequence[Tokenised],
    start: AdapterState,
    trainer: Trainer,
    between_rounds: BetweenRounds | None = None,
    on_progress: OnProgress | None = None,
) -> Trajectory:
    """All rounds of a federation of one site, which takes back its own update each time."""
    adapted = adapted_model(run)
    state, method, rounds = start, run.federation.method, run.federation.rounds
    observed: list[ObservedRound] = []
    for round_ in range(1, rounds + 1):
        adapted.load(state.tensors)
        seed = derive_seed(run.federation.seed, "audit", round_)
        trainer(
            adapted,
            run,
            examples,
            trained_factors(method, round_),
            round_,
            seed,
            _within_round(on_progress, round_, rounds),
        )
        uploaded = adapted.tensors(uploaded_factors(method, round_))
        observed.append(ObservedRound(state.tensors, difference(uploaded, state.tensors)))
        trained = adapted.tensors(trained_factors(method, round_))
        state = state.replace_tensors({**state.tensors, **trained})
        if between_rounds and round_ < rounds:
            state = between_rounds(state)
    return Trajectory(tuple(observed), state.tensors)


def _within_round(
    on_progress: OnProgress | None, round_: int, rounds: int
) -> Callable[[int, int], None] | None:
    if on_progress is None:
        return None
    return lambda done, planned: on_progress((round_ - 1) * planned + done, rounds * planned)
