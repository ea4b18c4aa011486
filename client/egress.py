"""The egress guard: the last thing a reply passes, and the only way out of a site.

It reads the finished reply as the coordinator will, by the agreed schema, and refuses anything that
is not an agreed tensor or an agreed number. Then it writes the receipt; only then may the reply go.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace

from flwr.app import RecordDict

from client.policy import PolicySettings
from client.receipts import ReceiptLog
from protocol.adapter import l2_norm
from protocol.errors import FoedusError, Refusal, WireError
from protocol.messages import ExpectedReply, Reply
from protocol.reasons import RefusalReason, RejectionReason
from protocol.reply_facts import ReplyFacts, reply_facts
from protocol.secure_aggregation.messages import parse_reply
from protocol.secure_aggregation.wire import Phase, SessionId, refusal_content

log = logging.getLogger("foedus.client")


class NoReceipt(Exception):
    """What is about to leave cannot be written down, so it must not leave, not even a refusal."""


class EgressGuard:
    """Checks replies to one request, and leaves out the numbers that the site's policy keeps."""

    def __init__(
        self, expected: ExpectedReply, norm_bound_l2: float, policy: PolicySettings
    ) -> None:
        self._expected = expected
        self._norm_bound_l2 = norm_bound_l2
        self._policy = policy

    def release(
        self, reply: Reply, receipts: ReceiptLog, ledger_head: Callable[[], str] = str
    ) -> RecordDict:
        """The records that may leave. A reply that breaks the agreement becomes a refusal.

        ledger_head: see `Receipt.ledger`. Errors: NoReceipt.
        """
        try:
            content = self.checked(reply)
        except Refusal as refusal:
            log.error("The egress guard held back a %s reply: %s", self._expected.kind, refusal)
            reply = Reply(self._expected.run_id, self._expected.round, refusal.code)
            content = reply.to_content()
        _record(receipts, reply_facts(content, self._expected.kind), ledger_head)
        return content

    def checked(self, reply: Reply) -> RecordDict:
        """The reply's records. Errors: Refusal(EGRESS) where they are not what was agreed."""
        kept = {n: v for n, v in reply.metrics.items() if self._policy.lets_out(n)}
        content = _on_the_wire(replace(reply, metrics=kept))
        try:
            parsed = self._expected.parse(content)
        except WireError as error:
            alone = not reply.update and not reply.metrics
            if error.code == RejectionReason.REFUSED_BY_SITE and alone:
                return content
            # The code alone: the text may quote what must not leave, and logs are shown around.
            raise Refusal(RefusalReason.EGRESS, f"Not agreed: {error.code}.") from error
        norm = l2_norm(parsed.update)
        if not norm <= self._norm_bound_l2:
            raise Refusal(
                RefusalReason.EGRESS,
                f"Expected an update of norm at most {self._norm_bound_l2}, got {norm}.",
            )
        return content


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
    norm was checked before it was masked. Other parameters and errors: EgressGuard.release.
    """
    try:
        parse_reply(content, phase, session, num_masked_bytes)
    except WireError as error:
        if error.code != RejectionReason.REFUSED_BY_SITE:
            log.error("The egress guard held back a %s reply: %s", phase, error.code)
            content = refusal_content(phase, session, RefusalReason.EGRESS)
    _record(receipts, reply_facts(content, "train"), ledger_head)
    return content


def _record(receipts: ReceiptLog, facts: ReplyFacts, ledger_head: Callable[[], str]) -> None:
    try:
        receipts.append(
            kind=facts.kind,
            run_id=facts.run_id,
            round_=facts.round,
            status=facts.status,
            digest=facts.digest,
            num_bytes=facts.num_bytes,
            ledger=ledger_head(),
        )
    except (FoedusError, OSError) as error:
        log.error("Nothing leaves, as no receipt can be written in %s: %s", receipts.path, error)
        raise NoReceipt from error
