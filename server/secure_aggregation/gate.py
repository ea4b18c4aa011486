"""Admission of one phase's replies: schema, session, sender, signature, and each of them once."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from flwr.app import Message, RecordDict

from protocol.consortium.identity import verify
from protocol.consortium.roster import Roster
from protocol.errors import WireError
from protocol.reasons import RejectionReason
from protocol.secure_aggregation.messages import AdvertiseReply, PhaseReply, parse_reply
from protocol.secure_aggregation.wire import Phase, SessionId, signature_of, signed_statement


class PhaseGate:
    """The gate of one phase. requests: what each node was asked; member_of: node -> member id, as
    known from its keys; unused in the phase that brings them."""

    def __init__(
        self,
        session: SessionId,
        phase: Phase,
        requests: Mapping[int, RecordDict],
        roster: Roster,
        member_of: Mapping[int, str],
        num_masked_bytes: int,
    ) -> None:
        self._session = session
        self._phase = phase
        self._requests = requests
        self._roster = roster
        self._member_of = member_of
        self._num_masked_bytes = num_masked_bytes
        self._admitted: set[int] = set()

    def admit(
        self, node_id: int, message: Message, take: Callable[[int, PhaseReply], None]
    ) -> PhaseReply:
        """Check a reply and hand it to `take`. Errors: WireError, its code a RejectionReason."""
        try:
            reply = self._checked(node_id, message)
            take(node_id, reply)
        except WireError as error:
            if error.code in set(RejectionReason):
                raise
            raise WireError(RejectionReason.MALFORMED, str(error)) from error
        self._admitted.add(node_id)
        return reply

    def _checked(self, node_id: int, message: Message) -> PhaseReply:
        if message.metadata.src_node_id != node_id or node_id not in self._requests:
            raise WireError(RejectionReason.UNASKED, "Nobody asked this node in this phase.")
        if node_id in self._admitted:
            raise WireError(RejectionReason.DUPLICATE, "This node has answered already.")
        if message.has_error():
            code = message.error.code
            raise WireError(RejectionReason.ERROR_REPLY, f"Flower error code {code}.")
        content = message.content
        reply = parse_reply(content, self._phase, self._session, self._num_masked_bytes)
        if isinstance(reply, AdvertiseReply):
            member = reply.advertisement.member_id
        else:
            member = self._member_of[node_id]
        key = self._roster.member(member).public_key
        if not verify(
            key, signed_statement(self._requests[node_id], content), signature_of(content)
        ):
            raise WireError(
                RejectionReason.BAD_SIGNATURE,
                "Expected the member's signature of this reply to this request.",
            )
        return reply
