"""A coordinator's folder with members and a run's record, for receipts that are handed in."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from flwr.app import Message, RecordDict

from protocol.consortium.chain import append_version, next_version
from protocol.consortium.countersignature import SentReply, SignedReceipt
from protocol.files import write_atomically
from protocol.messages import Reply
from server.consortium.folder import ConsortiumFolder
from server.consortium.founding import found_consortium
from server.consortium.settings import ConsortiumSettings
from server.receipts.received import FILE, Asked, ReceivedLog
from tests.protocol.consortium.leagues import LEAGUE, YEAR, Firm
from tests.small_runs import RUN_ID

NODES = (11, 12, 13)


def found(path: Path, firms: Sequence[Firm], address: str = "127.0.0.1:9443") -> ConsortiumFolder:
    """A consortium of these firms, each with a node of its own."""
    now = datetime.datetime.now(datetime.UTC)
    found_consortium(path, ConsortiumSettings(LEAGUE, address), 0, (), None, now)
    folder = ConsortiumFolder(path)
    set_members(folder, firms)
    nodes = {one.identity.member_id: node for one, node in zip(firms, NODES, strict=False)}
    write_atomically(folder.nodes, json.dumps(nodes).encode())
    return folder


def set_members(folder: ConsortiumFolder, firms: Sequence[Firm]) -> None:
    """A new version of the roster."""
    now = int(time.time())
    entries = tuple(one.entry(now, now + YEAR) for one in firms)
    version = replace(next_version(folder.chain()[-1], now), members=entries)
    append_version(folder.roster, version.signed_by(folder.coordinator()))


def log_of(folder: ConsortiumFolder, name: str = "first") -> ReceivedLog:
    return ReceivedLog(folder.runs / name / FILE)


def came(log: ReceivedLog, node: int, round_: int, *, reason: str = "") -> RecordDict:
    """A reply of this node and round is on record."""
    content = Reply(RUN_ID, round_, "policy").to_content()
    reply = Message(content, reply_to=Message(RecordDict(), node, "train"))
    log.reply_came(Asked(RUN_ID, round_, "train"), node, reply, reason)
    return content


def receipt_for(firm: Firm, log: ReceivedLog, number: int, sequence: int = 0) -> SignedReceipt:
    """What the firm's site would hand in for the number-th reply on record."""
    facts = [reply for reply, _ in log.verify()][number].facts
    sent = SentReply(
        sequence, f"{sequence:064x}", facts.run_id, facts.round, facts.kind, facts.digest,
        facts.num_bytes,
    )  # fmt: skip
    return SignedReceipt.by(firm.identity, LEAGUE, sent)
