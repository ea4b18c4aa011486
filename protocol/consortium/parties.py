"""Whose signatures on receipts count: those of everybody who was ever in the roster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Self

from protocol.consortium.chain import coordinator_keys
from protocol.consortium.countersignature import CountersignedReceipt
from protocol.consortium.signed_roster import SignedRoster


@dataclass(frozen=True)
class Parties:
    """members: public keys by member id. Old receipts hold after a firm has left, or either side
    has changed its key."""

    consortium: str
    members: Mapping[str, bytes]
    coordinators: frozenset[bytes]

    @classmethod
    def of(cls, versions: Sequence[SignedRoster]) -> Self:
        """Members and coordinator as these checked versions name them."""
        entries = [entry for version in versions for entry in version.members]
        keys = {entry.member_id: entry.public_key for entry in entries}
        return cls(versions[-1].consortium, keys, coordinator_keys(versions))

    def signed(self, member_id: str, receipt: CountersignedReceipt) -> bool:
        """True where both signatures are this member's and the coordinator's."""
        key = self.members.get(member_id)
        return key is not None and any(
            receipt.holds(self.consortium, member_id, key, coordinator)
            for coordinator in self.coordinators
        )
