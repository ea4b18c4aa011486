"""Any stock Flower strategy (FedMedian, Krum, FedTrimmedAvg, FedAdam, ...) as the aggregation.

foedus keeps its own rounds, admission and factors; only the question "many tensors in, one out"
goes to the other strategy. It gets full weights (received + delta), one ArrayRecord and one
MetricRecord a site, as it would from ordinary Flower clients, and what it returns is turned back
into a step.

Costs and limits: all updates of a round are held at once (a median needs them); it sees single
updates, so it excludes secure aggregation; what it remembers from round to round (FedAdam's
moments) is in no checkpoint, so after a resume it starts afresh. RoLoRA alternates factors: each
set of tensors has an instance of its own.
"""

from __future__ import annotations

import ast
import importlib
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from flwr.app import (
    DEFAULT_TTL,
    Array,
    ArrayRecord,
    ConfigRecord,
    Message,
    MessageType,
    Metadata,
    MetricRecord,
    RecordDict,
)
from flwr.app.exception import AppExitException
from flwr.app.message import make_message
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from protocol.adapter import FloatArray, Layout
from protocol.errors import FoedusError
from protocol.settings import FederationSettings
from strategies.aggregation import Steps
from strategies.server_optimizers import OptimizerState

# Methods whose new state is a tensor-wise average of what was uploaded, so that a median or a
# trimmed mean in its place still means something.
PLAIN_AVERAGE_METHODS = frozenset({"fedit", "ffa", "rolora"})

_FLOWER_WEIGHT_KEY = "num-examples"


def aggregator_factory(aggregator: str) -> Callable[[], Strategy]:
    """Read ``federation.aggregator``: a dotted path, with literal keyword arguments if need be.

    Examples: ``flwr.serverapp.strategy.FedMedian``,
    ``flwr.serverapp.strategy.Krum(num_malicious_nodes=1)``.
    Errors: FoedusError where it is not such a path, cannot be imported, is no Flower Strategy or
    does not take the arguments.
    """
    path, arguments = _parse_call(aggregator)
    module_name, _, class_name = path.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise _unusable(aggregator, f"it cannot be imported ({error})") from error
    if not (isinstance(found, type) and issubclass(found, Strategy)):
        raise _unusable(aggregator, "it is not a class derived from Flower's Strategy")

    def build() -> Strategy:
        try:
            built: Strategy = found(**arguments)
        except (TypeError, ValueError) as error:
            raise _unusable(aggregator, f"it cannot be built ({error})") from error
        if hasattr(built, "fraction_train"):
            built.fraction_train = 0.0  # Its configure_train then samples no nodes.
        return built

    build()
    return build


class ForeignAggregation:
    """An ``Aggregation`` that asks a stock Flower strategy."""

    def __init__(self, settings: FederationSettings) -> None:
        if settings.method not in PLAIN_AVERAGE_METHODS:
            raise FoedusError(
                f"Expected federation.method out of {', '.join(sorted(PLAIN_AVERAGE_METHODS))} "
                f"with federation.aggregator={settings.aggregator}, got {settings.method!r}: its "
                "state is more than an average of tensors. Change the method or drop the "
                "aggregator."
            )
        self._aggregator = settings.aggregator
        self._learning_rate = settings.server_learning_rate
        self._build = aggregator_factory(settings.aggregator)
        self._instances: dict[tuple[str, ...], Strategy] = {}
        self._updates: list[tuple[dict[str, FloatArray], float]] = []

    def reset(self) -> None:
        """See Aggregation."""
        self._updates = []

    def add(self, update: Mapping[str, FloatArray], weight: float) -> None:
        """See Aggregation. Keeps a copy: the strategy needs all updates at once."""
        self._updates.append(({name: np.array(t) for name, t in update.items()}, weight))

    def take_steps(self, round_: int, received: Mapping[str, FloatArray]) -> Steps:
        """See Aggregation. Empty where the strategy returns no arrays (too few updates for it)."""
        updates, self._updates = self._updates, []
        names = tuple(sorted(received))
        if names not in self._instances:
            self._instances[names] = self._build()
        strategy = self._instances[names]
        try:
            # FedOpt and its like remember here what the sites started from; nobody is asked.
            list(strategy.configure_train(round_, _to_arrays(received), ConfigRecord(), _NoGrid()))
            weight_key = getattr(strategy, "weighted_by_key", _FLOWER_WEIGHT_KEY)
            arrays, _ = strategy.aggregate_train(
                round_,
                [
                    _as_message(site, received, delta, weight_key, weight)
                    for site, (delta, weight) in enumerate(updates, start=1)
                ],
            )
        except AppExitException as error:
            raise _unusable(self._aggregator, f"round {round_} failed in it ({error})") from error
        if arrays is None:
            return {}
        new = self._checked(arrays, {name: tensor.shape for name, tensor in received.items()})
        return {
            name: self._learning_rate * (tensor - received[name]) for name, tensor in new.items()
        }

    def _checked(self, arrays: ArrayRecord, layout: Layout) -> dict[str, NDArray[np.float64]]:
        new = {name: np.asarray(a.numpy(), dtype=np.float64) for name, a in arrays.items()}
        if {name: tensor.shape for name, tensor in new.items()} != layout:
            raise _unusable(self._aggregator, "it returned other tensors than it was given")
        return new

    def turn_basis(self, basis_changes: Mapping[str, NDArray[np.float64]]) -> None:
        """Never has an effect: no method allowed here turns a basis."""

    def state(self) -> OptimizerState:
        """Empty: a stock strategy offers no way to save what it remembers."""
        return {}

    def load_state(self, tensors: Mapping[str, NDArray[Any]]) -> None:
        """Accepts the empty state only. Errors: FoedusError for arrays of another aggregation."""
        if tensors:
            raise FoedusError(
                f"Expected no server optimiser state with federation.aggregator="
                f"{self._aggregator}, got {len(tensors)} arrays: resume with the settings of the "
                "interrupted run."
            )


class _NoGrid(Grid):
    """The grid an aggregator sees: nobody is there, and nothing can be sent."""

    def get_node_ids(self) -> Iterable[int]:
        raise self._refusal()

    @property
    def run(self) -> Any:
        raise self._refusal()

    def set_run(self, run: Any) -> None:
        raise self._refusal()

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        raise self._refusal()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        raise self._refusal()

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        raise self._refusal()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        raise self._refusal()

    @staticmethod
    def _refusal() -> FoedusError:
        return FoedusError(
            "Expected federation.aggregator to aggregate only, got one that talks to sites by "
            "itself: choose another strategy."
        )


def _as_message(
    site: int,
    received: Mapping[str, FloatArray],
    delta: Mapping[str, FloatArray],
    weight_key: str,
    weight: float,
) -> Message:
    """A site's reply as Flower's strategies know it: full weights and one number."""
    full = {name: received[name] + delta[name] for name in sorted(received)}
    metrics = MetricRecord({weight_key: weight})
    metadata = Metadata(
        run_id=0,
        message_id="",
        src_node_id=site,
        dst_node_id=0,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=DEFAULT_TTL,
        message_type=MessageType.TRAIN,
    )
    # Message's own constructor needs a running Flower task; this one never leaves the process.
    return make_message(metadata, RecordDict({"arrays": _to_arrays(full), "metrics": metrics}))


def _to_arrays(tensors: Mapping[str, FloatArray]) -> ArrayRecord:
    return ArrayRecord({name: Array(np.ascontiguousarray(t)) for name, t in tensors.items()})


def _parse_call(aggregator: str) -> tuple[str, dict[str, Any]]:
    """'a.b.C(x=1)' -> ('a.b.C', {'x': 1}); only literals, nothing is evaluated."""
    try:
        expression = ast.parse(aggregator.strip(), mode="eval").body
        if not isinstance(expression, ast.Call):
            return ast.unparse(_dotted(expression)), {}
        if expression.args or any(keyword.arg is None for keyword in expression.keywords):
            raise ValueError("only keyword arguments are read")
        arguments = {str(k.arg): ast.literal_eval(k.value) for k in expression.keywords}
        return ast.unparse(_dotted(expression.func)), arguments
    except (SyntaxError, ValueError) as error:
        raise _unusable(aggregator, f"it is not a dotted path ({error})") from error


def _dotted(node: ast.expr) -> ast.expr:
    inner = node
    while isinstance(inner, ast.Attribute):
        inner = inner.value
    if not isinstance(inner, ast.Name) or inner is node:
        raise ValueError("expected package.module.Class")
    return node


def _unusable(aggregator: str, why: str) -> FoedusError:
    return FoedusError(
        "Expected in federation.aggregator the dotted path of a Flower strategy, such as "
        f"flwr.serverapp.strategy.FedMedian, got {aggregator!r}: {why}."
    )
