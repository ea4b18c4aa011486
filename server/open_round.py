"""One request to many sites, whose replies the coordinator sees singly: sent, judged, recorded."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from flwr.app import Message, MessageType
from flwr.serverapp import Grid

from protocol.errors import WireError
from protocol.messages import ExpectedReply, Reply, Request
from protocol.settings import FederationSettings
from server.admission import Admission, SetAside
from server.exchange import exchange
from server.observer import Observer
from server.receipts.received import Asked, Received

Use = Callable[[int, Reply], None]


@dataclass(frozen=True)
class OpenOutcome:
    """Whose reply was used and whose was not. Node ids are Flower's.

    metrics: of those admitted. handling_seconds: time of judging and using the replies.
    """

    asked: tuple[int, ...]
    admitted: tuple[int, ...]
    silent: tuple[int, ...]
    set_aside: tuple[SetAside, ...]
    metrics: Mapping[int, Mapping[str, float]]
    handling_seconds: float


class OpenRound:
    """Asks and judges; what becomes of a good reply is the caller's. See SecureRound for the other
    way. reply_bytes: of an honest reply's arrays."""

    def __init__(
        self,
        grid: Grid,
        request: Request,
        expected: ExpectedReply,
        federation: FederationSettings,
        observer: Observer,
        received: Received,
        reply_bytes: int = 0,
    ) -> None:
        self._grid = grid
        self._request = request
        self._expected = expected
        self._federation = federation
        self._observer = observer
        self._received = received
        self._reply_bytes = reply_bytes

    def run(self, nodes: list[int], use: Use) -> OpenOutcome:
        """Ask `nodes` and call use(node id, reply) for each good reply as it arrives.

        A reply that `use` refuses by a WireError is set aside too. Errors: FoedusError where a
        reply cannot be recorded.
        """
        request = self._request
        admission = Admission(self._expected, frozenset(nodes), self._federation.update_norm_bound)
        metrics: dict[int, Mapping[str, float]] = {}
        seconds = 0.0

        def on_reply(node_id: int, message: Message) -> None:
            nonlocal seconds
            began = time.monotonic()
            reply = admission.admit(node_id, message)
            if reply is not None and _used(use, admission, node_id, reply):
                metrics[node_id] = reply.metrics
            seconds += time.monotonic() - began
            asked = Asked(request.run_id, request.round, request.kind)
            self._received.reply_came(asked, node_id, message, admission.last_reason)
            admitted = not admission.last_reason
            self._observer.reply_handled(request.round, node_id, request.kind, admitted)

        deadline = self._federation.deadline_seconds
        kind = MessageType.TRAIN if request.kind == "train" else MessageType.EVALUATE
        content = request.to_content()
        messages = [
            Message(content, node, kind, group_id=str(request.round), ttl=deadline)
            for node in nodes
        ]
        outcome = exchange(self._grid, messages, deadline, on_reply, self._reply_bytes)
        return OpenOutcome(
            asked=outcome.asked,
            admitted=tuple(sorted(admission.admitted)),
            silent=outcome.silent,
            set_aside=tuple(admission.set_aside),
            metrics=metrics,
            handling_seconds=seconds,
        )


def _used(use: Use, admission: Admission, node_id: int, reply: Reply) -> bool:
    try:
        use(node_id, reply)
    except WireError as error:
        admission.withdraw(node_id, error)
        return False
    return True
