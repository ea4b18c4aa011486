"""Countersigning: what is on record gets the coordinator's word, once, and nothing else does."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from protocol.consortium.countersignature import CountersignedReceipt, SignedReceipt
from protocol.consortium.countersigned_file import CountersignedFile
from protocol.consortium.parties import Parties
from protocol.errors import FoedusError
from server.consortium.folder import ConsortiumFolder
from server.receipts.countersign import MAX_RECEIPTS, CountersigningDesk
from tests.protocol.consortium.leagues import ANNE, BELL, LEAGUE, YEAR, Firm
from tests.server.receipts.desks import came, found, log_of, receipt_for
from tests.small_runs import RUN_ID


@pytest.fixture
def folder(tmp_path: Path) -> ConsortiumFolder:
    return found(tmp_path / "consortium", [ANNE, BELL])


def push(folder: ConsortiumFolder, firm: Firm, *receipts: SignedReceipt, **more: Any) -> Any:
    desk = more.get("desk") or CountersigningDesk.of(folder)
    return desk.push(firm.entry(0, YEAR), {}, {"receipts": [one.to_values() for one in receipts]})


def pull(folder: ConsortiumFolder, firm: Firm, after: int = 0) -> Any:
    return CountersigningDesk.of(folder).pull(firm.entry(0, YEAR), {"after": str(after)}, None)


def test_a_reply_on_record_is_countersigned_and_kept(folder: ConsortiumFolder) -> None:
    log = log_of(folder)
    came(log, 11, 1)
    answer = push(folder, ANNE, receipt_for(ANNE, log, 0))
    assert answer["unknown"] == []
    (values,) = answer["countersigned"]
    receipt = CountersignedReceipt.from_values(values, "here")
    assert Parties.of(folder.chain()).signed(ANNE.identity.member_id, receipt)
    assert CountersignedFile(folder.receipts, ANNE.identity.member_id).read() == [receipt]
    assert pull(folder, ANNE) == {"countersigned": [values], "total": 1}


def test_a_reply_that_was_set_aside_came_all_the_same(folder: ConsortiumFolder) -> None:
    log = log_of(folder)
    came(log, 11, 1, reason="refused_by_site")
    assert len(push(folder, ANNE, receipt_for(ANNE, log, 0))["countersigned"]) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"run_id": "f" * 32},
        {"round": 2},
        {"kind": "evaluate"},
        {"digest": "f" * 64},
        {"num_bytes": 1},
    ],
)
def test_what_is_not_on_record_is_not_countersigned(
    folder: ConsortiumFolder, change: dict[str, Any]
) -> None:
    log = log_of(folder)
    came(log, 11, 1)
    sent = replace(receipt_for(ANNE, log, 0).sent, **change)
    answer = push(folder, ANNE, SignedReceipt.by(ANNE.identity, LEAGUE, sent))
    assert answer == {"countersigned": [], "unknown": [sent.line_hash]}
    assert not CountersignedFile(folder.receipts, ANNE.identity.member_id).path.exists()


def test_another_member_s_reply_is_not_one_s_own(folder: ConsortiumFolder) -> None:
    log = log_of(folder)
    came(log, 12, 1)
    assert push(folder, ANNE, receipt_for(ANNE, log, 0))["countersigned"] == []
    assert len(push(folder, BELL, receipt_for(BELL, log, 0))["countersigned"]) == 1
    assert pull(folder, ANNE) == {"countersigned": [], "total": 0}


def test_asking_again_gives_the_same_and_one_reply_vouches_for_one_receipt(
    folder: ConsortiumFolder,
) -> None:
    log = log_of(folder)
    came(log, 11, 1)
    first, second = receipt_for(ANNE, log, 0), receipt_for(ANNE, log, 0, sequence=7)
    answer = push(folder, ANNE, first, second, first)
    assert answer["unknown"] == [second.sent.line_hash]
    assert len(answer["countersigned"]) == 2  # The one receipt, each time it was handed in.
    assert push(folder, ANNE, first)["countersigned"] == answer["countersigned"][:1]
    assert push(folder, ANNE, second)["countersigned"] == []
    came(log, 11, 1)
    assert len(push(folder, ANNE, second)["countersigned"]) == 1
    assert pull(folder, ANNE)["total"] == 2


def test_what_comes_to_be_on_record_later_and_in_other_runs_is_found(
    folder: ConsortiumFolder,
) -> None:
    desk, log, other = CountersigningDesk.of(folder), log_of(folder), log_of(folder, "second")
    came(log, 11, 1)
    early = receipt_for(ANNE, log, 0)
    assert len(push(folder, ANNE, early, desk=desk)["countersigned"]) == 1
    came(log, 11, 2)
    came(other, 11, 3)
    later = [receipt_for(ANNE, log, 1, 1), receipt_for(ANNE, other, 0, 2)]
    assert push(folder, ANNE, *later, desk=desk)["unknown"] == []


def test_a_record_that_was_changed_vouches_for_nothing_after_the_change(
    folder: ConsortiumFolder,
) -> None:
    log = log_of(folder)
    for round_ in (1, 2, 3):
        came(log, 11, round_)
    receipts = [receipt_for(ANNE, log, number, number) for number in range(3)]
    lines = log.path.read_bytes().splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"reason": ""', b'"reason": "x"')
    log.path.write_bytes(b"".join(lines))
    answer = push(folder, ANNE, *receipts)
    assert answer["unknown"] == [receipts[2].sent.line_hash]


def test_half_a_line_is_waited_for(folder: ConsortiumFolder) -> None:
    desk, log = CountersigningDesk.of(folder), log_of(folder)
    came(log, 11, 1)
    receipt = receipt_for(ANNE, log, 0)
    whole = log.path.read_bytes()
    log.path.write_bytes(whole[:-20])
    assert push(folder, ANNE, receipt, desk=desk)["countersigned"] == []
    log.path.write_bytes(whole)
    assert len(push(folder, ANNE, receipt, desk=desk)["countersigned"]) == 1


def test_a_member_without_a_node_yet_is_told_unknown(folder: ConsortiumFolder) -> None:
    log = log_of(folder)
    came(log, 11, 1)
    folder.nodes.unlink()
    assert push(folder, ANNE, receipt_for(ANNE, log, 0))["countersigned"] == []


@pytest.mark.parametrize(
    "body",
    [None, [], {}, {"receipts": None}, {"receipts": [{}]}, {"receipts": ["x"]},
     {"receipts": [{}] * (MAX_RECEIPTS + 1)}],
)  # fmt: skip
def test_a_malformed_request_is_refused_in_one_piece(folder: ConsortiumFolder, body: Any) -> None:
    with pytest.raises(FoedusError):
        CountersigningDesk.of(folder).push(ANNE.entry(0, YEAR), {}, body)


def test_a_receipt_that_the_member_has_not_signed_itself_is_refused(
    folder: ConsortiumFolder,
) -> None:
    log = log_of(folder)
    came(log, 11, 1)
    with pytest.raises(FoedusError, match="the member's own signature"):
        push(folder, ANNE, receipt_for(BELL, log, 0))


def test_the_list_comes_in_pages_from_where_one_asks(folder: ConsortiumFolder) -> None:
    log = log_of(folder)
    for round_ in (1, 2, 3):
        came(log, 11, round_)
    push(folder, ANNE, *(receipt_for(ANNE, log, number, number) for number in range(3)))
    rounds = [one["round"] for one in pull(folder, ANNE, after=1)["countersigned"]]
    assert rounds == [2, 3]
    assert pull(folder, ANNE, after=3) == {"countersigned": [], "total": 3}
    with pytest.raises(FoedusError):
        CountersigningDesk.of(folder).pull(ANNE.entry(0, YEAR), {"after": "-1"}, None)


def test_members_that_ask_at_once_each_get_theirs_once(folder: ConsortiumFolder) -> None:
    desk, log = CountersigningDesk.of(folder), log_of(folder)
    for round_ in range(1, 9):
        came(log, 11, round_)
    receipts = [receipt_for(ANNE, log, number, number) for number in range(8)]
    with ThreadPoolExecutor(4) as threads:
        asked = [threads.submit(push, folder, ANNE, *receipts, desk=desk) for _ in range(6)]
        answers = [one.result() for one in asked]
    assert all(len(answer["countersigned"]) == 8 for answer in answers)
    stored = CountersignedFile(folder.receipts, ANNE.identity.member_id).read()
    assert len(stored) == 8 and {one.receipt.sent.run_id for one in stored} == {RUN_ID}
