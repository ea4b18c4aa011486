"""One run's log of replies beside the receipts that both sides have signed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from protocol.consortium.countersignature import SentReply
from protocol.consortium.countersigned_file import CountersignedFile
from protocol.consortium.parties import Parties
from protocol.errors import FoedusError
from server.receipts.received import ReceivedLog, ReceivedReply

# (member, kind, run, round, digest, size) of a reply.
_Reply = tuple[str, str, str, int, str, int]


@dataclass(frozen=True)
class ReviewedReply:
    """site: the member's name, or the node's number where no member has it. signed: the site has
    vouched for the reply, and both signatures hold."""

    reply: ReceivedReply
    site: str
    signed: bool


@dataclass(frozen=True)
class Review:
    """Every reply up to the first wrong line, and what is wrong, in words."""

    replies: tuple[ReviewedReply, ...]
    problems: tuple[str, ...]


@dataclass(frozen=True)
class Reviewer:
    """member_of: node id to member id; names: member id to name; receipts: the members' files."""

    parties: Parties
    member_of: Mapping[int, str]
    names: Mapping[str, str]
    receipts: Path

    def review(self, log_file: Path) -> Review:
        """Errors: FoedusError where a member's file is damaged."""
        replies, problems = _readable(log_file)
        run_ids = {reply.run_id for reply in replies}
        signed: Counter[_Reply] = Counter()
        for member_id, file in CountersignedFile.all_in(self.receipts).items():
            for receipt in file.read():
                sent = receipt.receipt.sent
                if sent.run_id not in run_ids:
                    continue
                if self.parties.signed(member_id, receipt):
                    signed[_sent(member_id, sent)] += 1
                else:
                    problems.append(f"{file.path}: the signatures of {_named(sent)} do not hold.")
        reviewed = []
        for reply in replies:
            member_id = self.member_of.get(reply.node_id, "")
            key = _received(member_id, reply)
            site = self.names.get(member_id, str(reply.node_id))
            reviewed.append(ReviewedReply(reply, site, signed[key] > 0))
            signed[key] -= 1
        problems += [
            f"{log_file} lacks a reply that was countersigned for {self.names.get(key[0], key[0])}:"
            f" {key[1]}, round {key[3]} of run {key[2][:8]}. The log was cut, or the member's "
            "SuperNode has another number now."
            for key, left in signed.items()
            if left > 0
        ]
        return Review(tuple(reviewed), tuple(problems))


def _readable(log_file: Path) -> tuple[list[ReceivedReply], list[str]]:
    replies: list[ReceivedReply] = []
    try:
        for reply, _ in ReceivedLog(log_file).verify():
            replies.append(reply)
    except FoedusError as error:
        return replies, [str(error)]
    return replies, []


def _sent(member_id: str, sent: SentReply) -> _Reply:
    return (member_id, sent.kind, sent.run_id, sent.round, sent.digest, sent.num_bytes)


def _received(member_id: str, reply: ReceivedReply) -> _Reply:
    return (member_id, reply.kind, reply.run_id, reply.round, reply.digest, reply.num_bytes)


def _named(sent: SentReply) -> str:
    return f"receipt {sent.sequence} ({sent.kind}, round {sent.round} of run {sent.run_id[:8]})"
