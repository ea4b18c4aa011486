"""The coordinator's word for what it received of this site: asked for, checked and kept here.

A receipt alone shows what left; countersigned it also shows that it came. And the coordinator's
copies show what a log that was cut or begun anew once held.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from client.enrolment.coordinator_api import CoordinatorApi
from client.enrolment.trusted_roster import pinned_key
from client.receipts import LEDGER, Receipt
from client.site import Site
from protocol.chained_lines import Position
from protocol.consortium.chain import read_chain
from protocol.consortium.countersignature import CountersignedReceipt, SentReply, SignedReceipt
from protocol.consortium.countersigned_file import CountersignedFile
from protocol.consortium.identity import Identity, load_identity
from protocol.consortium.invitation import Invitation
from protocol.consortium.parties import Parties
from protocol.consortium.passphrase import read_passphrase
from protocol.errors import FoedusError

PATH = "/v1/foedus/receipts"
_BATCH = 500
_TRIED_FOR = timedelta(days=1)


@dataclass(frozen=True)
class Standing:
    """A site's log beside what the coordinator has signed of it.

    left: receipts of replies; not_countersigned: those of them that the coordinator has not
    signed. problems: what must not be, in words.
    """

    left: int
    not_countersigned: tuple[Receipt, ...]
    problems: tuple[str, ...] = field(default=())


class KeptCountersignatures:
    """Those in the site's state folder, a file for each identity the site has had."""

    def __init__(self, site: Site) -> None:
        self.folder = site.state_folder / "countersignatures"
        self._site = site

    def standing(self) -> Standing:
        """Errors: FoedusError where the site's log, roster or files are damaged."""
        kept = [
            (file, member_id, receipt)
            for member_id, file in CountersignedFile.all_in(self.folder).items()
            for receipt in file.read()
        ]
        parties = parties_of(self._site) if kept else None
        problems = [
            f"{file.path}: the signatures of receipt {receipt.receipt.sent.sequence} do not hold."
            for file, member_id, receipt in kept
            if parties and not parties.signed(member_id, receipt)
        ]
        signed = {receipt.receipt.sent for _, _, receipt in kept}
        left = {
            sent_reply(receipt, line.hash): receipt
            for receipt, line in self._site.receipts.lines()
            if receipt.kind != LEDGER
        }
        problems += [
            f"The coordinator has countersigned receipt {sent.sequence} ({sent.kind}, round "
            f"{sent.round} of run {sent.run_id[:8]}), which {self._site.receipts.path} lacks: the "
            "log was cut, or begun anew."
            for sent in sorted(signed - left.keys(), key=lambda sent: sent.sequence)
        ]
        missing = tuple(receipt for sent, receipt in left.items() if sent not in signed)
        return Standing(len(left), missing, tuple(problems))


class ReceiptExchange:
    """Has this site's receipts countersigned. One object for a process: it remembers what is done.

    Errors of its methods: FoedusError where the coordinator does not answer, answers wrongly, or a
    file here is damaged; OSError.
    """

    def __init__(self, site: Site) -> None:
        invitation = Invitation.read(_invitation_file(site))
        self._site = site
        self._identity = _identity_of(site)
        self._consortium = invitation.consortium
        self._api = CoordinatorApi(invitation, self._identity)
        folder = KeptCountersignatures(site).folder
        self._file = CountersignedFile(folder, self._identity.member_id)
        self._signed = {receipt.receipt.sent for receipt in self._file.read()}
        self._read_to = Position()
        self._waiting: dict[SentReply, datetime] = {}

    def submit(self, *, everything: bool = False) -> None:
        """Send what is not countersigned; keep what comes back.

        everything: else what left more than a day ago is given up: it never arrived.
        """
        self._read_on()
        since = datetime.now(UTC) - _TRIED_FOR
        due = [sent for sent, left_at in self._waiting.items() if everything or left_at > since]
        for start in range(0, len(due), _BATCH):
            batch = {sent: self._sign(sent) for sent in due[start : start + _BATCH]}
            body = {"receipts": [receipt.to_values() for receipt in batch.values()]}
            answered = self._checked(self._api.post(PATH, body))
            self._keep([one for one in answered if one.receipt.sent in batch])

    def fetch(self) -> None:
        """Get all that the coordinator holds of this site, known here or not."""
        seen: set[SentReply] = set()
        total = 1
        while len(seen) < total:
            answer = self._api.get(f"{PATH}?after={len(seen)}")
            page = self._checked(answer)
            self._keep(page)
            total, before = _total_of(answer), len(seen)
            seen |= {one.receipt.sent for one in page}
            # It says itself how many there are: what brings nothing new could go on for ever.
            if before == len(seen) < total:
                raise FoedusError(
                    f"Expected {total} countersigned receipts from the coordinator, as it says it "
                    f"holds, got {len(seen)} and then none that were new. Ask its operator."
                )

    def _read_on(self) -> None:
        """Take up what has left since the last time."""
        for receipt, line in self._site.receipts.lines(self._read_to):
            sent = sent_reply(receipt, line.hash)
            if receipt.kind != LEDGER and sent not in self._signed:
                self._waiting[sent] = datetime.fromisoformat(receipt.time)
            self._read_to = line.end

    def _sign(self, sent: SentReply) -> SignedReceipt:
        return SignedReceipt.by(self._identity, self._consortium, sent)

    def _checked(self, answer: Any) -> list[CountersignedReceipt]:
        """The receipts of an answer, their signatures checked."""
        listed = answer.get("countersigned") if isinstance(answer, dict) else None
        if not isinstance(listed, list):
            raise FoedusError("Expected countersigned receipts from the coordinator, got none.")
        receipts = [CountersignedReceipt.from_values(one, "the answer") for one in listed]
        parties = parties_of(self._site)
        if not all(parties.signed(self._identity.member_id, one) for one in receipts):
            raise FoedusError(
                "Expected receipts with this site's and the coordinator's signature, got others. "
                "Ask the coordinator's operator which key it signs with."
            )
        return receipts

    def _keep(self, receipts: Sequence[CountersignedReceipt]) -> None:
        new = {one.receipt.sent: one for one in receipts if one.receipt.sent not in self._signed}
        self._file.append(list(new.values()))
        self._signed |= new.keys()
        for sent in new:
            self._waiting.pop(sent, None)


def _total_of(answer: Mapping[str, Any]) -> int:
    total = answer.get("total")
    if type(total) is not int:
        raise FoedusError(
            "Expected from the coordinator how many countersigned receipts it holds, got "
            f"{type(total).__name__}."
        )
    return total


def sent_reply(receipt: Receipt, line_hash: str) -> SentReply:
    """What is signed of a line of the log."""
    return SentReply(
        receipt.sequence,
        line_hash,
        receipt.run_id,
        receipt.round,
        receipt.kind,
        receipt.digest,
        receipt.num_bytes,
    )


def parties_of(site: Site) -> Parties:
    """By the roster that the site keeps. Errors: FoedusError where it has none, or it is wrong."""
    invitation = _invitation_file(site)
    if site.roster_file is None:
        raise FoedusError("Expected `roster` in site.yaml, the consortium's signed one, got none.")
    return Parties.of(read_chain(site.roster_file, pinned_key(invitation)))


def _invitation_file(site: Site) -> Path:
    if site.invitation_file is None:
        raise FoedusError(
            "Expected `consortium` in site.yaml, the invitation's file: without a consortium "
            "nobody countersigns receipts."
        )
    return site.invitation_file


def _identity_of(site: Site) -> Identity:
    if site.identity_file is None:
        raise FoedusError("Expected `identity` in site.yaml, by which receipts are signed.")
    return load_identity(site.identity_file, read_passphrase(site.passphrase_file))
