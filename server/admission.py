"""Admission: what the coordinator lets into the sum. A bad reply is set aside with a reason.

Nothing in a reply is believed: schema, identity, round, layout, dtype, length, finiteness, weight
and norm are checked before a number is used, and nothing a site sends can raise out of here.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message

from protocol.adapter import l2_norm
from protocol.errors import WireError
from protocol.messages import ExpectedReply, Reply
from protocol.reasons import RejectionReason

log = logging.getLogger("foedus.server")

# A site clips in float32; the same norm recomputed here may differ in the last digits.
_NORM_TOLERANCE = 1e-5


@dataclass(frozen=True)
class SetAside:
    """One reply that was not used. detail: a RefusalReason where the site itself declined."""

    node_id: int
    reason: RejectionReason
    detail: str = ""


@dataclass
class Admission:
    """The gate of one round. `admitted`: node ids let in; `set_aside`: the others, with reasons;
    `last_reason`: why the last reply was set aside, empty where it was not."""

    expected: ExpectedReply
    cohort: frozenset[int]
    norm_bound_l2: float
    admitted: list[int] = field(default_factory=list)
    set_aside: list[SetAside] = field(default_factory=list)
    last_reason: str = ""

    def admit(self, node_id: int, message: Message) -> Reply | None:
        """The parsed reply, or None after recording why it was set aside.

        node_id: the node that was asked; the message must say that it comes from there.
        """
        self.last_reason = ""
        try:
            reply = self._checked(node_id, message)
        except WireError as error:
            self.reject(node_id, error)
            return None
        self.admitted.append(node_id)
        return reply

    def reject(self, node_id: int, error: WireError) -> None:
        """Record a reply that was refused, here or later by the strategy."""
        reason = RejectionReason(error.code)
        detail = str(error) if reason is RejectionReason.REFUSED_BY_SITE else ""
        self.set_aside.append(SetAside(node_id, reason, detail))
        self.last_reason = reason.value
        log.warning("Set aside the reply of node %d (%s): %s", node_id, reason.value, error)

    def withdraw(self, node_id: int, error: WireError) -> None:
        """An admitted reply that the strategy would not take after all."""
        self.admitted.remove(node_id)
        self.reject(node_id, error)

    def _checked(self, node_id: int, message: Message) -> Reply:
        if message.metadata.src_node_id != node_id or node_id not in self.cohort:
            raise WireError(RejectionReason.UNASKED, "Nobody asked this node in this round.")
        if node_id in self.admitted:
            raise WireError(RejectionReason.DUPLICATE, "This node has answered already.")
        if message.has_error():
            code = message.error.code
            raise WireError(RejectionReason.ERROR_REPLY, f"Flower error code {code}.")
        reply = self.expected.parse(message.content)
        for name, tensor in reply.update.items():
            if not np.isfinite(tensor).all():
                raise WireError(RejectionReason.NOT_FINITE, f"{name} holds NaN or infinity.")
        norm = l2_norm(reply.update)
        if norm > self.norm_bound_l2 * (1 + _NORM_TOLERANCE):
            raise WireError(
                RejectionReason.NORM_OVER_BOUND,
                f"Expected a norm of at most {self.norm_bound_l2}, got {norm}.",
            )
        return reply
