"""Sites for `coordinator_memory`: a Grid on which all of a cohort's replies are ready at once.

That is the hard case: sites that work equally long finish together. Like Flower's own Grid, this
one gives every reply that is asked for in one pull; unlike the SuperLink behind that one it holds
none of them itself, but has a reply made when it is pulled, by a child: what a site needs to make
it is no memory of the coordinator's.
"""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore.run import Run

from client.secure_aggregation.memory import RunMemory
from client.secure_aggregation.session import SitePart
from protocol.adapter import (
    FloatArray,
    Layout,
    a_name,
    b_name,
    layout_digest,
    layout_size,
    subset_layout,
)
from protocol.consortium.identity import Identity
from protocol.consortium.roster import Member, Roster
from protocol.errors import FoedusError
from protocol.flat_array import FLAT
from protocol.messages import ARRAYS, CONFIG, Reply, Request
from protocol.methods import uploaded_factors
from protocol.records import config_of
from protocol.secure_aggregation.messages import (
    AdvertiseRequest,
    ConfirmRequest,
    MaskedInputReply,
    MaskedInputRequest,
    PhaseReply,
    ShareRequest,
    UnmaskRequest,
)
from protocol.secure_aggregation.wire import (
    SECURE,
    Phase,
    read_header,
    signed_statement,
    with_signature,
)

# (node id, request) -> content of the reply.
Answer = Callable[[int, Message], RecordDict]
_SCALE = 1e-4


@dataclass(frozen=True)
class AdapterSize:
    """Square modules that all carry an adapter: 2 x modules x rank x width parameters."""

    modules: int
    rank: int
    width: int

    @property
    def layout(self) -> Layout:
        """Names and shapes of both factors."""
        names = [f"base_model.model.layer.{index}.query" for index in range(self.modules)]
        of_a = {a_name(name): (self.rank, self.width) for name in names}
        return of_a | {b_name(name): (self.width, self.rank) for name in names}


class ReadyGrid(Grid):
    """Nodes 1..num_sites, whose replies are all ready as soon as they were asked."""

    def __init__(self, answer: Answer, num_sites: int) -> None:
        self._answer = answer
        self._num_sites = num_sites
        self._run = Run.create_empty(run_id=1)
        self._asked: dict[str, Message] = {}
        self._num_pushed = 0

    def set_run(self, run: Run) -> None:
        """Take another run's facts."""
        self._run = run

    @property
    def run(self) -> Run:
        """A copy of the run's facts."""
        return copy.copy(self._run)

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """A message to one node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """All nodes, in order."""
        return range(1, self._num_sites + 1)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Take messages in."""
        message_ids: list[str] = []
        for message in messages:
            self._num_pushed += 1
            message_id = f"message-{self._num_pushed}"
            message.metadata.__dict__["_message_id"] = message_id
            self._asked[message_id] = message
            message_ids.append(message_id)
        return message_ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """A reply to each of these messages."""
        asked = [self._asked.pop(i) for i in message_ids if i in self._asked]
        return [
            Message(self._answer(message.metadata.dst_node_id, message), reply_to=message)
            for message in asked
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """As Flower's own: push, and keep all replies until every one is there."""
        return self.pull_messages(self.push_messages(messages))


def update_of(node: int, layout: Layout) -> FloatArray:
    """A site's update, flat: small numbers by node alone."""
    values = np.random.default_rng(node).standard_normal(layout_size(layout), dtype=np.float32)
    return np.multiply(values, np.float32(_SCALE), out=values)


def made_by_child(make: Callable[[], Iterable[bytes]]) -> list[bytes]:
    """What `make` gives, made in a forked process. Errors: FoedusError where it failed."""
    with tempfile.TemporaryFile() as file:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for part in make():
                    file.write(len(part).to_bytes(8, "little") + part)
                file.flush()
                status = 0
            finally:
                # Nothing of the parent's own end may run in its copy.
                os._exit(status)
        if os.waitpid(child, 0)[1] != 0:
            raise FoedusError("Expected a site's reply, got a process that failed.")
        file.seek(0)
        parts: list[bytes] = []
        while header := file.read(8):
            parts.append(file.read(int.from_bytes(header, "little")))
    return parts


def _tensors(node: int, layout: Layout) -> dict[str, FloatArray]:
    flat, tensors, start = update_of(node, layout), {}, 0
    for name, shape in sorted(layout.items()):
        end = start + int(np.prod(shape))
        tensors[name] = flat[start:end].reshape(shape)
        start = end
    return tensors


def stock_answer(size: AdapterSize) -> Answer:
    """Sites of a plain Flower app: both factors, an array for each tensor."""

    def answer(node: int, message: Message) -> RecordDict:
        layout = dict(sorted(size.layout.items()))
        made = made_by_child(lambda: (Array(t).data for t in _tensors(node, layout).values()))
        arrays = {
            name: Array("float32", shape, "numpy.ndarray", data)
            for (name, shape), data in zip(layout.items(), made, strict=True)
        }
        metrics = MetricRecord({"num-examples": 10})
        return RecordDict({"arrays": ArrayRecord(arrays), "metrics": metrics})

    return answer


def plain_answer(size: AdapterSize) -> Answer:
    """Sites of foedus without masks: what the method uploads, packed."""

    def answer(node: int, message: Message) -> RecordDict:
        if message.metadata.message_type == "evaluate":
            return _evaluation(message)
        request = Request.from_content(message.content, "train")
        layout = subset_layout(
            size.layout, uploaded_factors(request.settings.federation.method, request.round)
        )
        (packed,) = made_by_child(lambda: [Array(update_of(node, layout)).data])
        numbers = {"num_examples": 10.0, "train_loss": 1.0, "train_seconds": 1.0}
        content = Reply(request.run_id, request.round, "ok", numbers).to_content()
        config_of(content, CONFIG)["layout_digest"] = layout_digest(layout)
        array = Array("float32", (layout_size(layout),), "numpy.ndarray", packed)
        content[ARRAYS] = ArrayRecord({FLAT: array})
        return content

    return answer


def _evaluation(message: Message) -> RecordDict:
    request = Request.from_content(message.content, "evaluate")
    numbers = {"num_examples": 10.0, "loss": 1.0}
    return Reply(request.run_id, request.round, "ok", numbers).to_content()


@dataclass
class _SecureSite:
    part: SitePart
    memory: RunMemory = field(default_factory=RunMemory)

    def answer(self, node: int, content: RecordDict, layout: Layout) -> PhaseReply:
        phase, _ = read_header(content)
        part = self.part
        if phase is Phase.MASKED_INPUT:
            masked = MaskedInputRequest.from_content(content)
            self.memory, _ = part.begin_masking(self.memory, masked)
            (packed,) = made_by_child(
                lambda: [part.masked_input(self.memory, update_of(node, layout), weight=1)]
            )
            return MaskedInputReply(masked.session, packed, 1.0)
        steps: dict[Phase, tuple[Any, Any]] = {
            Phase.ADVERTISE: (AdvertiseRequest, part.advertise),
            Phase.SHARE: (ShareRequest, part.share),
            Phase.CONFIRM: (ConfirmRequest, part.confirm),
            Phase.UNMASK: (UnmaskRequest, part.unmask),
        }
        kind, step = steps[phase]
        self.memory, reply = step(self.memory, kind.from_content(content))
        answer: PhaseReply = reply
        return answer


class SecureSites:
    """Sites of foedus that mask for real, with keys and shares; roster: of all of them."""

    def __init__(self, size: AdapterSize, num_sites: int) -> None:
        self._size = size
        identities = [Identity.generate() for _ in range(num_sites)]
        members = (Member(f"site {n}", i.public_key) for n, i in enumerate(identities, start=1))
        self.roster = Roster("benchmark", 1, tuple(members))
        self._sites = [_SecureSite(SitePart(identity, self.roster)) for identity in identities]

    def answer(self, node: int, message: Message) -> RecordDict:
        """See Answer."""
        content = message.content
        if SECURE not in content:
            return _evaluation(message)
        site = self._sites[node - 1]
        # The whole benchmark is of round 1, in which FedSVD uploads B.
        layout = subset_layout(self._size.layout, uploaded_factors("fedsvd", 1))
        reply = site.answer(node, content, layout).to_content()
        signature = site.part.identity.sign(signed_statement(content, reply))
        return with_signature(reply, signature)
