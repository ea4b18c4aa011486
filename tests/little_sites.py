"""Sites without contracts: ClientApps that answer at once, and a network that loses or repeats."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp

from protocol.adapter import AdapterState, FloatArray, factor_of
from protocol.initial import derive_seed
from protocol.messages import Reply, Request
from protocol.methods import uploaded_factors
from protocol.settings import AdapterSettings, RunSettings
from server.checkpoint import CheckpointStore
from server.coordinator import CentralEvaluation, Coordinator, RunResult
from server.observer import LogObserver
from server.receipts.received import Received
from simulations.engines.in_process import InProcessGrid
from strategies.registry import build_strategy
from tests.small_runs import small_run
from tests.strategies.adapters import SMALL, adapter

Respond = Callable[[int, Request], RecordDict | Error]


def little_run(method: str = "fedsvd", **federation: Any) -> RunSettings:
    """A run over two small layers, without a model; times out fast."""
    run = small_run(method, **{"deadline_seconds": 0.5, **federation})
    return replace(run, adapter=AdapterSettings(rank=SMALL.rank, alpha=2.0 * SMALL.rank))


def little_state(run: RunSettings) -> AdapterState:
    """An adapter of the run's rank, as before round 1."""
    return adapter(run.federation.method, SMALL, 0, zero_b=True)


def little_update(node: int, request: Request) -> dict[str, FloatArray]:
    """Small numbers of the right layout, by node and round alone."""
    layout = request.state.layout
    uploaded = uploaded_factors(request.settings.federation.method, request.round)
    rng = np.random.default_rng(derive_seed(node, "update", request.round))
    return {
        name: (0.01 * rng.normal(size=shape)).astype(np.float32)
        for name, shape in layout.items()
        if factor_of(name) in uploaded
    }


def good_reply(node: int, request: Request) -> RecordDict:
    """What an honest site sends."""
    if request.kind == "evaluate":
        numbers = {"num_examples": 10.0 * node, "loss": 1.0 / node, "accuracy": 0.1 * node}
        return Reply(request.run_id, request.round, "ok", numbers).to_content()
    numbers = {"num_examples": 10.0 * node, "train_loss": float(node), "train_seconds": 0.5}
    update = little_update(node, request)
    return Reply(request.run_id, request.round, "ok", numbers, update).to_content()


def little_app(respond: Respond = good_reply) -> ClientApp:
    """A ClientApp that answers with what `respond` says for its node."""
    app = ClientApp()

    def reply_to(message: Message, context: Context) -> Message:
        kind = message.metadata.message_type
        request = Request.from_content(message.content, "train" if kind == "train" else "evaluate")
        answer = respond(context.node_id, request)
        return Message(answer, reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return reply_to(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return reply_to(message, context)

    return app


class UnreliableGrid(InProcessGrid):
    """The in-process grid, over a network that never delivers to some nodes and delivers the
    replies of others twice."""

    def __init__(
        self,
        client_app: ClientApp,
        num_sites: int,
        *,
        silent: Collection[int] = (),
        twice: Collection[int] = (),
    ) -> None:
        super().__init__(client_app, num_sites)
        self._silent, self._twice = frozenset(silent), frozenset(twice)
        self._lost: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Messages to silent nodes get an id and are then lost."""
        batch = list(messages)
        message_ids = list(super().push_messages(batch))
        for message_id, message in zip(message_ids, batch, strict=True):
            if message.metadata.dst_node_id in self._silent:
                self._lost[message_id] = message.metadata.dst_node_id
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """One reply at a time, or two equal ones."""
        replies = list(super().pull_messages(i for i in message_ids if i not in self._lost))
        repeated = [r for r in replies if r.metadata.src_node_id in self._twice]
        return replies + repeated


def coordinate(
    grid: InProcessGrid,
    run: RunSettings,
    folder: Path,
    *,
    resume: bool = False,
    central_evaluation: CentralEvaluation | None = None,
    names: Sequence[str] = (),
    received: Received | None = None,
) -> RunResult:
    """A whole run by the real coordinator."""
    coordinator = Coordinator(
        grid,
        run,
        build_strategy(run.federation),
        CheckpointStore(folder / "checkpoints", run),
        LogObserver(),
        central_evaluation,
        dict(enumerate(names, start=1)),
        received=received,
    )
    return coordinator.run(little_state(run), resume=resume)
