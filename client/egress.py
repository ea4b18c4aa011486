"""The egress guard: the last thing a reply passes, and the only way out of a site.

It reads the finished reply as the coordinator will, by the agreed schema, and refuses anything that
is not an agreed tensor or an agreed number. Then it writes the receipt; only then may the reply go.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable

from flwr.app import RecordDict

from client.receipts import ReceiptLog
from protocol.adapter import l2_norm
from protocol.errors import Refusal, WireError
from protocol.flat_array import FLAT
from protocol.messages import ARRAYS, CONFIG, METRICS, ExpectedReply, Reply
from protocol.reasons import RefusalReason, RejectionReason
from protocol.secure_aggregation.messages import parse_reply
from protocol.secure_aggregation.wire import (
    Phase,
    SessionId,
    content_size,
    message_digest,
    refusal_content,
)

log = logging.getLogger("foedus.client")


class EgressGuard:
    """Checks and records replies to one request. ledger_head: see `Receipt.ledger`."""

    def __init__(
        self,
        expected: ExpectedReply,
        norm_bound_l2: float,
        receipts: ReceiptLog,
        ledger_head: Callable[[], str] = str,
    ) -> None:
        self._expected = expected
        self._norm_bound_l2 = norm_bound_l2
        self._receipts = receipts
        self._ledger_head = ledger_head

    def release(self, reply: Reply) -> RecordDict:
        """The records that may leave. A reply that breaks the agreement becomes a refusal."""
        try:
            content = _on_the_wire(reply)
            self._check(content, reply)
        except Refusal as refusal:
            log.error("The egress guard held back a %s reply: %s", self._expected.kind, refusal)
            reply = Reply(self._expected.run_id, self._expected.round, refusal.code)
            content = reply.to_content()
        digest, num_bytes = content_digest(content)
        self._receipts.append(
            kind=self._expected.kind,
            run_id=reply.run_id,
            round_=reply.round,
            status=reply.status,
            digest=digest,
            num_bytes=num_bytes,
            ledger=self._ledger_head(),
        )
        return content

    def _check(self, content: RecordDict, reply: Reply) -> None:
        try:
            parsed = self._expected.parse(content)
        except WireError as error:
            if error.code == RejectionReason.REFUSED_BY_SITE and not reply.update:
                return
            # The code alone: the text may quote what must not leave, and logs are shown around.
            raise Refusal(RefusalReason.EGRESS, f"Not agreed: {error.code}.") from error
        norm = l2_norm(parsed.update)
        if not norm <= self._norm_bound_l2:
            raise Refusal(
                RefusalReason.EGRESS,
                f"Expected an update of norm at most {self._norm_bound_l2}, got {norm}.",
            )


def _on_the_wire(reply: Reply) -> RecordDict:
    try:
        return reply.to_content()
    except (TypeError, ValueError, AttributeError) as error:
        raise Refusal(
            RefusalReason.EGRESS, f"Expected tensors and numbers, got {type(error).__name__}."
        ) from None


def release_phase(
    content: RecordDict,
    phase: Phase,
    session: SessionId,
    num_masked_bytes: int,
    receipts: ReceiptLog,
    ledger_head: Callable[[], str] = str,
) -> RecordDict:
    """A reply of secure aggregation, or a refusal in its place where it breaks the agreement.

    A masked input is as random as its masks, so nothing in it can be checked but its length; its
    norm was checked before it was masked. The receipt's kind is "secure.PHASE".
    """
    try:
        parse_reply(content, phase, session, num_masked_bytes)
        status = "ok"
    except WireError as error:
        if error.code == RejectionReason.REFUSED_BY_SITE:
            status = str(error)
        else:
            log.error("The egress guard held back a %s reply: %s", phase, error.code)
            status = RefusalReason.EGRESS
            content = refusal_content(phase, session, status)
    receipts.append(
        kind=f"secure.{phase}",
        run_id=session.run_id,
        round_=session.round,
        status=status,
        digest=message_digest(content).hex(),
        num_bytes=content_size(content),
        ledger=ledger_head(),
    )
    return content


def content_digest(content: RecordDict) -> tuple[str, int]:
    """(SHA-256 over everything in the reply in a fixed order, bytes of tensors and numbers)."""
    total, num_bytes = hashlib.sha256(), 0
    for key in (CONFIG, METRICS):
        for name, value in sorted(dict(content[key]).items()):
            total.update(f"{key}.{name}={value!r}\n".encode())
            num_bytes += 8
    if ARRAYS in content:
        data = content.array_records[ARRAYS][FLAT].data
        total.update(data)
        num_bytes += len(data)
    return total.hexdigest(), num_bytes
