"""Receipts: a chain in which a change shows, and which survives a crash."""

from __future__ import annotations

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from client.receipts import Receipt, ReceiptLog
from protocol.chained_lines import GENESIS
from protocol.errors import FoedusError
from tests.small_runs import RUN_ID


def append(log: ReceiptLog, round_: int) -> Receipt:
    return log.append(
        kind="train", run_id=RUN_ID, round_=round_, status="ok", digest="d" * 64, num_bytes=99
    )


@pytest.fixture
def chain(tmp_path: Path) -> ReceiptLog:
    """Four receipts."""
    log = ReceiptLog(tmp_path / "state" / "receipts.jsonl")
    for round_ in range(1, 5):
        append(log, round_)
    return log


def test_the_chain_verifies_and_says_what_left(chain: ReceiptLog) -> None:
    receipts = list(chain.verify())
    assert [r.sequence for r in receipts] == [0, 1, 2, 3]
    assert [r.round for r in receipts] == [1, 2, 3, 4]
    assert receipts[0].previous == GENESIS
    assert len({r.previous for r in receipts}) == 4
    assert all((r.kind, r.status, r.num_bytes) == ("train", "ok", 99) for r in receipts)


def test_no_log_is_an_empty_chain(tmp_path: Path) -> None:
    assert list(ReceiptLog(tmp_path / "none.jsonl").verify()) == []


def test_another_process_continues_the_chain(chain: ReceiptLog) -> None:
    assert append(ReceiptLog(chain.path), 5).sequence == 4
    assert len(list(chain.verify())) == 5


@pytest.mark.parametrize("line", [0, 1, 2])
def test_an_altered_receipt_shows(chain: ReceiptLog, line: int) -> None:
    lines = chain.path.read_bytes().splitlines(keepends=True)
    lines[line] = lines[line].replace(b'"num_bytes": 99', b'"num_bytes": 98')
    chain.path.write_bytes(b"".join(lines))
    with pytest.raises(FoedusError, match=f"line {line + 2} does not follow"):
        list(chain.verify())


@pytest.mark.parametrize("line", [0, 1, 2])
def test_a_removed_receipt_shows(chain: ReceiptLog, line: int) -> None:
    lines = chain.path.read_bytes().splitlines(keepends=True)
    del lines[line]
    chain.path.write_bytes(b"".join(lines))
    with pytest.raises(FoedusError, match=f"line {line + 1} does not follow"):
        list(chain.verify())


def test_an_inserted_or_swapped_receipt_shows(chain: ReceiptLog) -> None:
    lines = chain.path.read_bytes().splitlines(keepends=True)
    chain.path.write_bytes(b"".join([*lines[:2], lines[1], *lines[2:]]))
    with pytest.raises(FoedusError, match="line 3 does not follow"):
        list(chain.verify())
    chain.path.write_bytes(b"".join([lines[0], lines[2], lines[1], lines[3]]))
    with pytest.raises(FoedusError, match="line 2 does not follow"):
        list(chain.verify())


@pytest.mark.parametrize("text", ["no json", '{"sequence": 0}', "[]"])
def test_a_line_that_is_no_receipt_shows(chain: ReceiptLog, text: str) -> None:
    lines = chain.path.read_bytes().splitlines(keepends=True)
    chain.path.write_bytes(b"".join([lines[0], text.encode() + b"\n", *lines[2:]]))
    with pytest.raises(FoedusError, match="line 2 is no receipt"):
        list(chain.verify())


@pytest.mark.parametrize("kept_bytes", [1, 40, -1])
def test_a_half_written_last_line_is_healed_by_the_next_receipt(
    chain: ReceiptLog, kept_bytes: int
) -> None:
    data = chain.path.read_bytes()
    start = data[:-1].rindex(b"\n") + 1
    chain.path.write_bytes(data[:start] + data[start:][:kept_bytes])
    # With -1 the line is whole but for its end of line, so it was not promised to anyone yet.
    assert append(chain, 5).sequence == 3
    receipts = list(chain.verify())
    assert [r.round for r in receipts] == [1, 2, 3, 5]


def test_a_half_written_only_line_is_healed(tmp_path: Path) -> None:
    log = ReceiptLog(tmp_path / "receipts.jsonl")
    log.path.write_bytes(b'{"digest": "ab')
    assert append(log, 1).sequence == 0
    assert len(list(log.verify())) == 1


def test_a_log_longer_than_one_read_is_continued_and_healed(tmp_path: Path) -> None:
    log = ReceiptLog(tmp_path / "receipts.jsonl")
    for round_ in range(40):
        append(log, round_)
    assert log.path.stat().st_size > 8192
    with log.path.open("ab") as stream:
        stream.write(b'{"digest": "ab')
    assert append(log, 40).sequence == 40
    assert len(list(log.verify())) == 41


def test_a_receipt_holds_digests_and_sizes_only(chain: ReceiptLog) -> None:
    keys = set(json.loads(chain.path.read_text().splitlines()[0]))
    assert keys == {
        "sequence",
        "time",
        "kind",
        "run_id",
        "round",
        "status",
        "digest",
        "num_bytes",
        "previous",
        "ledger",
        "salt",
    }


def test_who_knows_all_that_a_line_says_cannot_compute_its_hash(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stopped(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime(2026, 1, 1, tzinfo=UTC)

    monkeypatch.setattr("client.receipts.datetime", Stopped)
    twins = [ReceiptLog(tmp_path / f"{name}.jsonl") for name in "ab"]
    for twin in twins:
        append(twin, 1)
        append(twin, 2)
    hashes = {line.hash for twin in twins for _, line in twin.lines()}
    salts = {receipt.salt for twin in twins for receipt in twin.verify()}
    assert len(hashes) == len(salts) == 4
    assert all(len(bytes.fromhex(salt)) == 16 for salt in salts)


def test_lines_written_before_there_was_a_ledger_still_verify(chain: ReceiptLog) -> None:
    chain.path.unlink()
    previous = GENESIS
    for number in range(2):
        line = json.dumps(
            {"sequence": number, "time": "t", "kind": "train", "run_id": RUN_ID, "round": 1,
             "status": "ok", "digest": "d", "num_bytes": 9, "previous": previous}
        )  # fmt: skip
        previous = hashlib.sha256(line.encode()).hexdigest()
        with chain.path.open("a") as stream:
            stream.write(line + "\n")
    append(chain, 2)
    receipts = list(chain.verify())
    assert [receipt.ledger for receipt in receipts] == ["", "", ""]
    assert [bool(receipt.salt) for receipt in receipts] == [False, False, True]
    assert chain.ledger_heads() == frozenset()


def test_the_heads_of_the_ledger_are_those_that_receipts_name(chain: ReceiptLog) -> None:
    for head in ("1:a", "2:b", "2:b"):
        vouch(chain, head)
    assert chain.ledger_heads() == {"1:a", "2:b"}
    assert ReceiptLog(chain.path.parent / "none.jsonl").ledger_heads() == frozenset()


def vouch(log: ReceiptLog, head: str) -> None:
    log.append(
        kind="ledger", run_id=RUN_ID, round_=1, status="reserved", digest="d", num_bytes=0,
        ledger=head,
    )  # fmt: skip


def test_the_heads_are_known_without_reading_the_log_again(
    chain: ReceiptLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[tuple[Path, str]] = []
    real = Path.open

    def noted(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        opened.append((path, mode))
        return real(path, mode, *rest, **named)

    monkeypatch.setattr(Path, "open", noted)
    assert chain.ledger_heads() == frozenset()
    assert opened == [(chain.path, "rb")]
    for head in ("1:a", "2:b"):
        vouch(chain, head)
    assert chain.ledger_heads() == {"1:a", "2:b"}
    assert opened.count((chain.path, "rb")) == 1


def test_what_another_process_writes_is_taken_up(chain: ReceiptLog) -> None:
    vouch(chain, "1:a")
    assert chain.ledger_heads() == {"1:a"}
    vouch(ReceiptLog(chain.path), "2:b")
    vouch(chain, "3:c")
    assert chain.ledger_heads() == {"1:a", "2:b", "3:c"}


def test_a_change_under_a_process_that_has_read_the_log_shows(chain: ReceiptLog) -> None:
    vouch(chain, "1:a")
    assert chain.ledger_heads() == {"1:a"}
    good = chain.path.read_bytes()
    rewrite(chain.path, good.replace(b'"num_bytes": 99', b'"num_bytes": 98', 1))
    with pytest.raises(FoedusError, match="line 2 does not follow"):
        chain.ledger_heads()
    # What is written after it makes it no better.
    append(chain, 6)
    with pytest.raises(FoedusError, match="line 2 does not follow"):
        chain.ledger_heads()
    rewrite(chain.path, good)
    assert chain.ledger_heads() == {"1:a"}


def rewrite(path: Path, data: bytes) -> None:
    """In place, until the kernel's clock, which dates changes, has moved on."""
    before = path.stat().st_ctime_ns
    while path.stat().st_ctime_ns == before:
        path.write_bytes(data)


def test_a_log_that_was_cut_vouches_for_what_is_left(chain: ReceiptLog) -> None:
    vouch(chain, "1:a")
    before = chain.path.read_bytes()
    vouch(chain, "2:b")
    assert chain.ledger_heads() == {"1:a", "2:b"}
    chain.path.write_bytes(before)
    assert chain.ledger_heads() == {"1:a"}
    chain.path.unlink()
    assert chain.ledger_heads() == frozenset()


def test_half_a_line_vouches_for_nothing_and_is_left_to_who_writes_it(chain: ReceiptLog) -> None:
    vouch(chain, "1:a")
    whole = chain.path.read_bytes()
    vouch(chain, "2:b")
    chain.path.write_bytes(chain.path.read_bytes()[:-1])
    before = chain.path.read_bytes()
    assert chain.ledger_heads() == {"1:a"}
    assert chain.path.read_bytes() == before
    vouch(chain, "2:c")
    assert chain.ledger_heads() == {"1:a", "2:c"}
    assert chain.path.read_bytes().startswith(whole)


def test_threads_that_append_at_once_keep_the_chain_whole(chain: ReceiptLog) -> None:
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda round_: append(ReceiptLog(chain.path), round_), range(40)))
    assert len(list(chain.verify())) == 44
