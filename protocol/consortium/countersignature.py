"""Receipts signed by both sides: the site says what it sent, the coordinator that it came.

Guarantee: a countersigned receipt shows that the holder of the site's key vouched for a line of its
log, and that the holder of the coordinator's key had then recorded a reply of this very content
from that site. Neither can deny it or change it. It does not show what is in the content, nor when
it came, nor that a run used it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from protocol.codec import decode, setting
from protocol.consortium.documents import from_hex
from protocol.consortium.identity import SIGNATURE_BYTES, Identity, verify
from protocol.errors import SettingsError
from protocol.reply_facts import KINDS
from protocol.secure_aggregation.encoding import encode_fields


@dataclass(frozen=True)
class SentReply:
    """One line of a site's log of receipts. sequence: its number there; line_hash: SHA-256 of the
    line (hex), which says all lines before it too. The rest: see protocol.reply_facts."""

    sequence: int = setting(doc="number of the line", minimum=0)
    line_hash: str = setting(doc="SHA-256, hex")
    run_id: str = setting(doc="32 hex digits")
    round: int = setting(doc="0 or more", minimum=0)
    kind: str = setting(choices=KINDS, doc="of the reply")
    digest: str = setting(doc="SHA-256, hex")
    num_bytes: int = setting(doc="of tensors and numbers", minimum=0)

    def statement(self, consortium: str, member_id: str) -> bytes:
        """What both sides sign."""
        return encode_fields(
            "receipt",
            consortium,
            member_id,
            self.sequence,
            self.line_hash,
            self.run_id,
            self.round,
            self.kind,
            self.digest,
            self.num_bytes,
        )


@dataclass(frozen=True)
class SignedReceipt:
    """A site's word for what it sent."""

    sent: SentReply
    site_signature: bytes

    @classmethod
    def by(cls, site: Identity, consortium: str, sent: SentReply) -> SignedReceipt:
        """Signed by this site."""
        return cls(sent, site.sign(sent.statement(consortium, site.member_id)))

    def holds(self, consortium: str, member_id: str, public_key: bytes) -> bool:
        """True where it is the signature of the member with this key."""
        return verify(public_key, self.sent.statement(consortium, member_id), self.site_signature)

    def to_values(self) -> dict[str, Any]:
        """For JSON."""
        return {**asdict(self.sent), "site_signature": self.site_signature.hex()}

    @classmethod
    def from_values(cls, values: Any, where: str) -> SignedReceipt:
        """Errors: SettingsError listing everything malformed."""
        (signature,), sent = _split(values, where, "site_signature")
        return cls(sent, signature)


@dataclass(frozen=True)
class CountersignedReceipt:
    """The same with the coordinator's word that it came."""

    receipt: SignedReceipt
    coordinator_signature: bytes

    @classmethod
    def by(
        cls, coordinator: Identity, consortium: str, member_id: str, receipt: SignedReceipt
    ) -> CountersignedReceipt:
        """Signed by the coordinator, who must have recorded the reply and checked the site's."""
        return cls(receipt, coordinator.sign(_came(consortium, member_id, receipt)))

    def holds(
        self, consortium: str, member_id: str, site_key: bytes, coordinator_key: bytes
    ) -> bool:
        """True where both signatures are theirs."""
        came = _came(consortium, member_id, self.receipt)
        return self.receipt.holds(consortium, member_id, site_key) and verify(
            coordinator_key, came, self.coordinator_signature
        )

    def to_values(self) -> dict[str, Any]:
        """For JSON."""
        signature = self.coordinator_signature.hex()
        return {**self.receipt.to_values(), "coordinator_signature": signature}

    @classmethod
    def from_values(cls, values: Any, where: str) -> CountersignedReceipt:
        """Errors: SettingsError listing everything malformed."""
        names = ("site_signature", "coordinator_signature")
        (site, coordinator), sent = _split(values, where, *names)
        return cls(SignedReceipt(sent, site), coordinator)


def _came(consortium: str, member_id: str, receipt: SignedReceipt) -> bytes:
    statement = receipt.sent.statement(consortium, member_id)
    return encode_fields("countersigned receipt", statement, receipt.site_signature)


def _split(values: Any, where: str, *signatures: str) -> tuple[list[bytes], SentReply]:
    """The named signatures, and what they are about."""
    if not isinstance(values, Mapping):
        raise SettingsError(where, [f"Expected a JSON object, got {type(values).__name__}."])
    problems: list[str] = []
    texts = [str(values.get(name, "")) for name in signatures]
    found = [
        from_hex(text, SIGNATURE_BYTES, name, problems)
        for name, text in zip(signatures, texts, strict=True)
    ]
    for name, num_bytes in (("line_hash", 32), ("digest", 32), ("run_id", 16)):
        from_hex(str(values.get(name, "")), num_bytes, name, problems)
    if problems:
        raise SettingsError(where, problems)
    rest = {name: value for name, value in values.items() if name not in signatures}
    return found, decode(SentReply, rest, where)
