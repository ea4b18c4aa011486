"""Countersigning: a member's receipt gets the coordinator's signature where the reply is on record.

Both requests give the same answer however often they are asked, so nothing is lost by a repeated or
replayed one.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.chained_lines import Position
from protocol.consortium.countersignature import CountersignedReceipt, SentReply, SignedReceipt
from protocol.consortium.countersigned_file import CountersignedFile
from protocol.consortium.identity import Identity
from protocol.consortium.signed_roster import MemberEntry
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.gateway.member_api import WrongRequest, whole_number
from server.receipts.received import FILE, ReceivedLog
from server.runs.node_names import read_node_ids

log = logging.getLogger("foedus.server")

# Receipts in one request or answer, of about 700 bytes each: below the MiB that a request may have.
MAX_RECEIPTS = 1000

_Reply = tuple[int, str, str, int, str, int]


class CountersigningDesk:
    """Answers the members' two requests about receipts; threads may ask at once, processes not.

    consortium: its name. nodes_file: member id to node id. runs: one folder each. Keeps about 1 kB
    of memory for each receipt of a member that has asked.
    """

    def __init__(
        self, consortium: str, coordinator: Identity, nodes_file: Path, runs: Path, receipts: Path
    ) -> None:
        self._consortium = consortium
        self._coordinator = coordinator
        self._nodes_file = nodes_file
        self._received = _ReceivedReplies(runs)
        self._receipts = receipts
        self._known: dict[str, dict[SentReply, CountersignedReceipt]] = {}
        self._lock = threading.Lock()

    @classmethod
    def of(cls, folder: ConsortiumFolder) -> CountersigningDesk:
        """The desk of a consortium. Errors: FoedusError where its folder or key does not open."""
        coordinator, name = folder.coordinator(folder.passphrase()), folder.settings().name
        return cls(name, coordinator, folder.nodes, folder.runs, folder.receipts)

    def push(self, member: MemberEntry, query: Mapping[str, str], body: Any) -> dict[str, Any]:
        """{"receipts": […]} -> those countersigned, and the line hashes of those that are not (yet)
        on record. Errors: WrongRequest where it is malformed or a signature wrong; FoedusError,
        OSError where our own files do not serve.
        """
        try:
            receipts = self._parsed(member, body)
        except FoedusError as error:
            raise WrongRequest(str(error)) from error
        with self._lock:
            known = self._known_of(member)
            on_record = self._on_record(member, receipts, known)
            new = {receipt.sent: self._countersigned(member, receipt) for receipt in on_record}
            CountersignedFile(self._receipts, member.member_id).append(list(new.values()))
            known |= new
            done = [known[r.sent].to_values() for r in receipts if r.sent in known]
        unknown = [r.sent.line_hash for r in receipts if r.sent not in known]
        return {"countersigned": done, "unknown": unknown}

    def pull(self, member: MemberEntry, query: Mapping[str, str], body: Any) -> dict[str, Any]:
        """The member's countersigned receipts from number `after` on, at most MAX_RECEIPTS of them,
        and how many there are in all. Errors: as push."""
        after = whole_number(query, "after")
        with self._lock:
            stored = list(self._known_of(member).values())
        page = stored[after : after + MAX_RECEIPTS]
        return {"countersigned": [one.to_values() for one in page], "total": len(stored)}

    def _known_of(self, member: MemberEntry) -> dict[SentReply, CountersignedReceipt]:
        if member.member_id not in self._known:
            stored = CountersignedFile(self._receipts, member.member_id).read()
            self._known[member.member_id] = {one.receipt.sent: one for one in stored}
        return self._known[member.member_id]

    def _parsed(self, member: MemberEntry, body: Any) -> list[SignedReceipt]:
        listed = body.get("receipts") if isinstance(body, dict) else None
        if not isinstance(listed, list) or len(listed) > MAX_RECEIPTS:
            raise FoedusError(f"Expected a list of at most {MAX_RECEIPTS} receipts.")
        receipts = [
            SignedReceipt.from_values(values, f"receipts[{index}]")
            for index, values in enumerate(listed)
        ]
        for index, receipt in enumerate(receipts):
            if not receipt.holds(self._consortium, member.member_id, member.public_key):
                raise FoedusError(f"receipts[{index}]: expected the member's own signature.")
        return receipts

    def _on_record(
        self,
        member: MemberEntry,
        receipts: list[SignedReceipt],
        known: Mapping[SentReply, CountersignedReceipt],
    ) -> list[SignedReceipt]:
        """Those to countersign now: each reply on record vouches for one receipt."""
        node_id = read_node_ids(self._nodes_file).get(member.member_id)
        if node_id is None:
            return []
        on_record = self._received.counted()
        used = Counter(_reply_of(node_id, sent) for sent in known)
        found: dict[SentReply, SignedReceipt] = {}
        for receipt in receipts:
            reply = _reply_of(node_id, receipt.sent)
            if receipt.sent in known or receipt.sent in found or used[reply] >= on_record[reply]:
                continue
            used[reply] += 1
            found[receipt.sent] = receipt
        return list(found.values())

    def _countersigned(self, member: MemberEntry, receipt: SignedReceipt) -> CountersignedReceipt:
        return CountersignedReceipt.by(
            self._coordinator, self._consortium, member.member_id, receipt
        )


class _ReceivedReplies:
    """How often each reply came, over all runs; the logs are read on as they grow."""

    def __init__(self, runs: Path) -> None:
        self._runs = runs
        self._read: dict[Path, Position] = {}
        self._counts: Counter[_Reply] = Counter()

    def counted(self) -> Counter[_Reply]:
        """Up to now. A log whose chain is broken vouches for nothing after the break."""
        for path in self._runs.glob(f"*/{FILE}"):
            position = self._read.setdefault(path, Position())
            if path.stat().st_size > position.offset:
                self._read_on(path)
        return self._counts

    def _read_on(self, path: Path) -> None:
        try:
            for reply, end in ReceivedLog(path).verify(self._read[path]):
                if reply.digest:
                    self._counts[
                        (
                            reply.node_id,
                            reply.kind,
                            reply.run_id,
                            reply.round,
                            reply.digest,
                            reply.num_bytes,
                        )
                    ] += 1
                self._read[path] = end
        except FoedusError as error:
            log.error("Receipts for what follows are not countersigned: %s", error)


def _reply_of(node_id: int, sent: SentReply) -> _Reply:
    return (node_id, sent.kind, sent.run_id, sent.round, sent.digest, sent.num_bytes)
