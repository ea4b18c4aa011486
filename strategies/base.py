"""The strategy every method shares: fold updates as they come, then close the round.

``begin_round`` / ``fold`` / ``finish_round`` is what foedus's server calls. Flower's own interface
is built on them, so that ``Strategy.start`` can drive the same object after ``bind_run``.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from protocol.adapter import (
    AdapterState,
    Layout,
    a_name,
    b_name,
    pack,
    subset_layout,
    unpack,
)
from protocol.errors import FoedusError, WireError
from protocol.flat_array import FLAT
from protocol.messages import ExpectedReply, Reply, evaluate_request, train_request
from protocol.methods import METHODS, downloaded_factors, uploaded_factors
from protocol.reasons import RejectionReason
from protocol.settings import FederationSettings, RunSettings
from strategies.aggregation import Aggregation, MeanAggregation, Steps
from strategies.flower_messages import (
    mean_metrics,
    parsed_replies,
    request_messages,
    sample_cohort,
    set_aside,
)
from strategies.server_optimizers import OptimizerState
from strategies.weighting import update_weight

logger = logging.getLogger(__name__)

AnyFloatArray = NDArray[np.floating]


class CombinedFactors(NamedTuple):
    """A module's new factors; ``basis_change`` M with old_a = M @ a where the basis of B turned."""

    a: AnyFloatArray
    b: AnyFloatArray
    basis_change: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class _Run:
    """What requests of a run carry beside the adapter; known once ``bind_run`` was called."""

    run_id: str
    settings: RunSettings
    template: AdapterState


class LoraStrategy(Strategy):
    """Base of all methods. A method says how a step enters one module's factors (``combine``)."""

    method: ClassVar[str]

    def __init__(
        self, settings: FederationSettings, aggregation: Aggregation | None = None
    ) -> None:
        if settings.method != self.method:
            raise FoedusError(
                f"Expected federation.method={self.method} for {type(self).__name__}, got "
                f"{settings.method!r}: build strategies with build_strategy."
            )
        self.settings = settings
        self._aggregation = aggregation or MeanAggregation(settings)
        self._round = 0
        self._global: AdapterState | None = None
        self._upload_layout: Layout = {}
        self._run: _Run | None = None
        self.num_folded = 0

    @abstractmethod
    def combine(
        self,
        a: AnyFloatArray,
        b: AnyFloatArray,
        step_a: AnyFloatArray | None,
        step_b: AnyFloatArray | None,
    ) -> CombinedFactors:
        """New factors of a module: a (r, d_in), b (d_out, r); a step is None if not trained."""

    def initial_state(self, state: AdapterState) -> AdapterState:
        """The state round 1 starts from; the same model as ``state``."""
        return state

    # --- One round, as foedus's server drives it ---

    def begin_round(self, round_: int, global_state: AdapterState) -> None:
        """Open round ``round_`` (from 1) on the full state; drops what an unfinished round left."""
        if round_ < 1:
            raise FoedusError(f"Expected a round of at least 1, got {round_}.")
        self._check_method(global_state)
        self._round = round_
        self._global = global_state
        self._upload_layout = subset_layout(
            global_state.layout, uploaded_factors(self.method, round_)
        )
        self._aggregation.reset()
        self.num_folded = 0

    def fold(self, update: AdapterState, num_examples: float) -> None:
        """Take in one site's deltas of the uploaded factors; nothing of a refused update stays.

        Memory: one update's running sum, whatever the number of folds. The arrays are not kept.
        Errors: WireError with a RejectionReason, for the caller to set the reply aside.
        """
        self._check_update(update)
        weight = update_weight(num_examples, self.settings.weighting, self.settings.weight_cap)
        if weight > 0.0:
            self._aggregation.add(update.tensors, weight)
            self.num_folded += 1

    def finish_round(self) -> AdapterState:
        """The new global state; the old one, unchanged, where no update (of weight > 0) came."""
        state = self._opened_state()
        self._global = None
        if self.num_folded == 0:
            logger.warning("Round %d: no update to aggregate; the adapter stays.", self._round)
            return state
        received = {name: state.tensors[name] for name in self._upload_layout}
        steps = self._aggregation.take_steps(self._round, received)
        if not steps:
            logger.warning("Round %d: the aggregation gave no step.", self._round)
            return state
        return self._apply(state, steps)

    def _apply(self, state: AdapterState, steps: Steps) -> AdapterState:
        tensors: dict[str, AnyFloatArray] = {
            name: tensor if name not in steps else tensor + steps[name]
            for name, tensor in state.tensors.items()
        }
        basis_changes: dict[str, NDArray[np.float64]] = {}
        for module, a, b in state.pairs():
            name_a, name_b = a_name(module), b_name(module)
            combined = self.combine(a, b, steps.get(name_a), steps.get(name_b))
            tensors[name_a], tensors[name_b] = combined.a, combined.b
            if combined.basis_change is not None:
                basis_changes[name_b] = combined.basis_change
        if basis_changes:
            self._aggregation.turn_basis(basis_changes)
        with np.errstate(over="ignore"):  # An overflow is reported below, with its cause.
            new = {name: np.asarray(tensor, dtype=np.float32) for name, tensor in tensors.items()}
        _check_finite_result(new, self._round)
        return state.replace_tensors(new)

    def optimizer_state(self) -> OptimizerState:
        """The server optimiser's arrays, for a checkpoint; empty for server_optimizer=none."""
        return self._aggregation.state()

    def load_optimizer_state(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Continue with the arrays of ``optimizer_state``."""
        self._aggregation.load_state(tensors)

    def _opened_state(self) -> AdapterState:
        if self._global is None:
            raise FoedusError("Expected begin_round before fold and finish_round, got no round.")
        return self._global

    def _check_method(self, state: AdapterState) -> None:
        if state.method != self.method:
            raise FoedusError(
                f"Expected an adapter of method {self.method!r}, got {state.method!r}: change "
                "federation.method or start from another adapter."
            )

    def _check_update(self, update: AdapterState) -> None:
        state = self._opened_state()
        facts = (update.method, update.rank, update.alpha, update.base_digest)
        expected = (state.method, state.rank, state.alpha, state.base_digest)
        if facts != expected:
            raise WireError(
                RejectionReason.WRONG_LAYOUT,
                "Expected an update with (method, rank, alpha, base digest) of "
                f"{expected}, got {facts}.",
            )
        if update.layout.keys() != self._upload_layout.keys():
            unlike = sorted(update.layout.keys() ^ self._upload_layout.keys())
            raise WireError(
                RejectionReason.WRONG_LAYOUT,
                f"Expected the {len(self._upload_layout)} tensors that {self.method} uploads in "
                f"round {self._round}; missing or unknown: {unlike[:3]}.",
            )
        for name, tensor in update.tensors.items():
            if tensor.shape != self._upload_layout[name]:
                raise WireError(
                    RejectionReason.WRONG_SHAPE,
                    f"Expected {name} of shape {self._upload_layout[name]}, got {tensor.shape}.",
                )
            if not np.isfinite(tensor).all():
                raise WireError(RejectionReason.NOT_FINITE, f"{name} holds NaN or infinity.")

    # --- Flower's interface, for its stock loop ---

    def bind_run(self, run_id: str, settings: RunSettings, state: AdapterState) -> ArrayRecord:
        """Make ready for ``Strategy.start``; returns its ``initial_arrays``.

        run_id: 32 hex digits. state: all tensors, before ``initial_state``.
        """
        if settings.federation != self.settings:
            raise FoedusError(
                "Expected the run's federation settings to be those the strategy was built from, "
                "got others: build the strategy from settings.federation."
            )
        self._check_method(state)
        template = self.initial_state(state)
        self._run = _Run(run_id, settings, template)
        return _to_arrays(template)

    def global_state(self, arrays: ArrayRecord) -> AdapterState:
        """The adapter in arrays of Flower's loop (``Result.arrays``); inverse of ``bind_run``."""
        template = self._bound_run().template
        return template.replace_tensors(unpack(arrays[FLAT].numpy(), template.layout))

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask a cohort to train. ``config`` is not sent: settings travel in the request."""
        run = self._bound_run()
        state = self.global_state(arrays)
        self.begin_round(server_round, state)
        sent = state.subset(downloaded_factors(self.method))
        request = train_request(run.run_id, server_round, run.settings, sent)
        return request_messages(request, sample_cohort(grid, self.settings, server_round))

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Fold what can be read, set the rest aside; (None, None) below the quorum."""
        run, state = self._bound_run(), self._opened_state()
        expected = ExpectedReply(
            "train", run.run_id, server_round, self._upload_layout, run.settings.privacy.enabled
        )
        admitted: list[Reply] = []
        bound = self.settings.update_norm_bound
        for node_id, reply in parsed_replies(replies, expected, bound):
            try:
                self.fold(state.replace_tensors(reply.update), reply.num_examples)
            except WireError as error:
                set_aside(node_id, error)
                continue
            # Only the numbers are kept, so that memory stays at one running sum.
            admitted.append(Reply(reply.run_id, reply.round, metrics=reply.metrics))
        if self.num_folded < max(1, self.settings.quorum):
            logger.warning(
                "Round %d: expected %d updates or more, got %d; the adapter stays.",
                server_round, self.settings.quorum, self.num_folded,
            )  # fmt: skip
            return None, None
        return _to_arrays(self.finish_round()), mean_metrics(admitted)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Ask every site to evaluate, in the rounds that ``evaluate_every`` names and the last."""
        run = self._bound_run()
        every = self.settings.evaluate_every
        due = every > 0 and server_round % every == 0
        if not due and server_round != self.settings.rounds:
            return []
        sent = self.global_state(arrays).subset(downloaded_factors(self.method))
        request = evaluate_request(run.run_id, server_round, run.settings, sent)
        return request_messages(request, sorted(grid.get_node_ids()))

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Mean metrics of the readable replies, weighted by test examples; None without any."""
        expected = ExpectedReply("evaluate", self._bound_run().run_id, server_round, {})
        read = [reply for _, reply in parsed_replies(replies, expected, float("inf"))]
        return mean_metrics(read) if read else None

    def summary(self) -> None:
        """Log what this strategy does."""
        traits = METHODS[self.method]
        logger.info(
            "%s (%s): weighting %s, server optimiser %s, cohort %.0f%% and at least %d, quorum %d",
            traits.title, traits.source, self.settings.weighting, self.settings.server_optimizer,
            100 * self.settings.cohort_fraction, self.settings.min_cohort, self.settings.quorum,
        )  # fmt: skip

    def _bound_run(self) -> _Run:
        if self._run is None:
            raise FoedusError(
                "Expected bind_run(run_id, settings, state) before Flower's loop starts, got none."
            )
        return self._run


def _to_arrays(state: AdapterState) -> ArrayRecord:
    return ArrayRecord({FLAT: Array(pack(state.tensors))})


def _check_finite_result(tensors: Mapping[str, AnyFloatArray], round_: int) -> None:
    for name, tensor in tensors.items():
        if not np.isfinite(tensor).all():
            raise FoedusError(
                f"Expected finite tensors after round {round_}, got NaN or infinity in {name}: "
                "lower federation.server_learning_rate or federation.update_norm_bound."
            )
