"""The ledger under attack and accident: it fails closed, and no crash gives anything back."""

from __future__ import annotations

import multiprocessing
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client.privacy import ledger as ledger_module
from client.privacy.ledger import Ledger
from client.privacy.ledger_rows import read_content
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason
from tests.client.ledgers import (
    budget_for,
    entry,
    epsilon_of,
    ledger_with,
    open_ledger,
    tamper,
    units_of,
)

pytestmark = pytest.mark.faults

ROOT = Path(__file__).parents[2]
PRELUDE = """
import sys, time
from pathlib import Path
from client.privacy import ledger as ledger_module
from client.receipts import ReceiptLog
from tests.client.ledgers import budget_for, entry, open_ledger, units_of
from protocol.errors import Refusal
folder = Path(sys.argv[1])
def wait(word):
    print(word, flush=True)
    time.sleep(60)
"""


def start(script: str, folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PRELUDE + script, str(folder)],
        cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip


def kill_at(word: str, script: str, folder: Path) -> None:
    """Kill -9 a process once it has said the word."""
    with start(script, folder) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == word
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL


def assert_refused_as_broken(folder: Path, match: str | None = None) -> None:
    """No budget is needed to be refused, and nothing of it gets into the receipts."""
    ledger = open_ledger(folder)
    for budget in (None, budget_for(100)):
        with pytest.raises(Refusal, match=match) as refused:
            ledger.reserve(entry(9), units_of("alpha"), budget)
        assert refused.value.code == RefusalReason.LEDGER_BROKEN
        assert "Never delete" in str(refused.value)
    for look in (ledger.verify, lambda: ledger.account(budget_for(100))):
        with pytest.raises(Refusal, match=match):
            look()
    assert ledger.head() == ""


def test_a_killed_process_that_held_a_reservation_has_spent_it(tmp_path: Path) -> None:
    kill_at("reserved", "open_ledger(folder).reserve(entry(), units_of('alpha')); wait('reserved')",
            tmp_path)  # fmt: skip
    (account,) = open_ledger(tmp_path).account(budget_for(1))
    assert (account.unconfirmed, account.epsilon_spent) == (1, epsilon_of(1))
    with pytest.raises(Refusal) as refused:
        open_ledger(tmp_path).reserve(entry(), units_of("alpha"), budget_for(1))
    assert refused.value.code == RefusalReason.BUDGET_SPENT


def test_a_process_killed_between_row_and_receipt_has_spent_it(tmp_path: Path) -> None:
    ledger_with(tmp_path, 1, units_of("alpha"))
    script = """
ReceiptLog.append = lambda *_, **__: wait("written")
open_ledger(folder).reserve(entry(2), units_of("alpha"))
"""
    kill_at("written", script, tmp_path)
    assert open_ledger(tmp_path).verify() == 2
    with pytest.raises(Refusal) as refused:
        open_ledger(tmp_path).reserve(entry(), units_of("alpha"), budget_for(2))
    assert refused.value.code == RefusalReason.BUDGET_SPENT


def test_a_process_killed_before_its_row_was_written_has_started_nothing(tmp_path: Path) -> None:
    ledger_with(tmp_path, 1, units_of("alpha"))
    script = """
write = ledger_module.insert
ledger_module.insert = lambda *rest: (write(*rest), wait("half"))
open_ledger(folder).reserve(entry(2), units_of("alpha"))
"""
    kill_at("half", script, tmp_path)
    assert open_ledger(tmp_path).verify() == 1
    open_ledger(tmp_path).reserve(entry(2), units_of("alpha"), budget_for(2))


def reserve_at_once(folder: Path, start: Any, answers: Any) -> None:
    units, budget = units_of("alpha"), budget_for(2)
    start.wait()
    try:
        open_ledger(folder).reserve(entry(), units, budget)
        answers.put("passed")
    except Refusal as refusal:
        answers.put(str(refusal.code))


def reserve_often(folder: Path, start: Any, answers: Any) -> None:
    start.wait()
    for round_ in range(8):
        ledger = open_ledger(folder)
        ledger.confirm(ledger.reserve(entry(round_), units_of("alpha")))
    answers.put("done")


def in_processes(number: int, work: Callable[[Path, Any, Any], None], folder: Path) -> list[str]:
    """What real processes answer that all start to work at once."""
    epsilon_of(1)  # loads the accountant, which the forked processes then have
    context = multiprocessing.get_context("fork")
    start, answers = context.Barrier(number), context.Queue()
    processes = [context.Process(target=work, args=(folder, start, answers)) for _ in range(number)]
    for process in processes:
        process.start()
    found = sorted(answers.get(timeout=60) for _ in processes)
    for process in processes:
        process.join()
    return found


def test_of_processes_that_reserve_at_once_only_as_many_pass_as_fit(tmp_path: Path) -> None:
    answers = in_processes(4, reserve_at_once, tmp_path)
    assert answers == ["budget_spent", "budget_spent", "passed", "passed"]
    assert open_ledger(tmp_path).verify() == 2


def test_processes_that_write_at_once_keep_ledger_and_receipts_whole(tmp_path: Path) -> None:
    assert in_processes(4, reserve_often, tmp_path) == ["done"] * 4
    ledger = open_ledger(tmp_path)
    assert ledger.verify() == 32
    assert len(list(ledger._receipts.verify())) == 32


def as_written(folder: Path) -> dict[str, tuple[bytes, int, int]]:
    """Content, mode and time of change of all files."""
    return {
        path.name: (path.read_bytes(), path.stat().st_mode, path.stat().st_ctime_ns)
        for path in folder.iterdir()
    }


def test_looking_at_a_ledger_writes_nothing_and_waits_for_no_reservation(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    ledger.path.chmod(0o640)
    with (tmp_path / "receipts.jsonl").open("ab") as stream:
        stream.write(b'{"digest": "ab')
    before = as_written(tmp_path)
    with closing(_connect(ledger)) as writer:
        writer.execute("BEGIN IMMEDIATE")
        looking = open_ledger(tmp_path)
        assert looking.verify() == 2
        assert looking.account(budget_for(9)) and looking.head().startswith("2:")
        assert set(as_written(tmp_path)) == set(before)
    assert as_written(tmp_path) == before


def test_what_a_crash_left_of_a_row_is_undone_by_whoever_looks(tmp_path: Path) -> None:
    ledger_with(tmp_path, 1)
    # So large that SQLite writes to the file before the end of the change.
    script = """
import sqlite3
connection = sqlite3.connect(folder / "privacy.sqlite3", isolation_level=None)
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN IMMEDIATE")
for number in range(200):
    connection.execute("INSERT INTO data_sets VALUES (?, ?)", (str(number), b"x" * 4096))
wait("half")
"""
    kill_at("half", script, tmp_path)
    assert (tmp_path / "privacy.sqlite3-journal").exists()
    assert open_ledger(tmp_path).verify() == 1


@pytest.mark.parametrize(
    ("trouble", "advice"),
    [
        ("PRAGMA max_page_count = 1", "Make room on the disk"),
        ("PRAGMA query_only = 1", "Let this account read and write"),
        ("", "Another process has held it for minutes"),
    ],
)
def test_a_ledger_that_cannot_be_written_now_is_not_called_broken(
    tmp_path: Path, trouble: str, advice: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_with(tmp_path, 1)
    connect = sqlite3.connect

    def troubled(*words: Any, **named: Any) -> sqlite3.Connection:
        connection: sqlite3.Connection = connect(*words, **named)
        connection.execute(trouble)
        return connection

    with closing(_connect(ledger)) as other:
        if trouble:
            monkeypatch.setattr(sqlite3, "connect", troubled)
        else:
            monkeypatch.setattr(ledger_module, "_LOCK_SECONDS", 0.1)
            other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Refusal, match=advice) as refused:
            ledger.reserve(entry(2), units_of(*(f"matter {number}" for number in range(200))))
        assert refused.value.code == RefusalReason.LEDGER_BROKEN
        assert "restored" not in str(refused.value)
    monkeypatch.undo()
    assert ledger.verify() == 1
    assert ledger.reserve(entry(2), units_of("alpha")).sequence == 2


def test_a_deleted_ledger_is_not_begun_anew(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    ledger.path.unlink()
    assert_refused_as_broken(tmp_path, "deleted")
    assert not ledger.path.exists()


@pytest.mark.parametrize("content", [b"", b"not a database" * 100])
def test_an_emptied_or_overwritten_ledger_is_refused(tmp_path: Path, content: bytes) -> None:
    ledger_with(tmp_path, 2).path.write_bytes(content)
    assert_refused_as_broken(tmp_path)


@pytest.mark.parametrize("rounds_in_copy", [1, 2])
def test_an_older_copy_is_refused_until_the_newest_is_back(
    tmp_path: Path, rounds_in_copy: int
) -> None:
    ledger = ledger_with(tmp_path, rounds_in_copy)
    older = tmp_path / "older.sqlite3"
    shutil.copy(ledger.path, older)
    ledger_with(tmp_path, 3 - rounds_in_copy)
    newest = tmp_path / "newest.sqlite3"
    shutil.copy(ledger.path, newest)
    shutil.copy(older, ledger.path)
    assert_refused_as_broken(tmp_path, "without row 3")
    shutil.copy(newest, ledger.path)
    ledger.reserve(entry(4), units_of("alpha"), budget_for(4))


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE rounds SET sigma = 1000.0 WHERE sequence = 2",
        "UPDATE rounds SET steps = 0 WHERE sequence = 1",
        "UPDATE rounds SET sampling_rate = 0.0 WHERE sequence = 3",
        "UPDATE rounds SET unit = 'example' WHERE sequence = 3",
        "UPDATE rounds SET unit = x'00' WHERE sequence = 3",
        "UPDATE rounds SET hash = 'x' WHERE sequence = 2",
        "UPDATE rounds SET sequence = 9 WHERE sequence = 3",
        "DELETE FROM rounds WHERE sequence = 1",
        "DELETE FROM rounds WHERE sequence = 2",
        "DELETE FROM rounds WHERE sequence = 3",
        "DELETE FROM rounds",
        "DELETE FROM data_sets",
        "UPDATE data_sets SET content = x''",
        "UPDATE data_sets SET content = 'text'",
        "UPDATE data_sets SET content = zeroblob(64)",
        "DROP TABLE data_sets",
        "PRAGMA user_version = 7",
    ],
)
def test_any_edit_of_the_ledger_shows(tmp_path: Path, change: str) -> None:
    tamper(ledger_with(tmp_path, 3), change)
    assert_refused_as_broken(tmp_path)


def test_an_inserted_row_shows(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    tamper(ledger, "INSERT INTO rounds SELECT 3, time, run_id, 3, data_set, unit, sampling_rate, "
           "sigma, steps, delta, target_epsilon, hash, 'h', state FROM rounds WHERE sequence = 2",
           )  # fmt: skip
    assert_refused_as_broken(tmp_path, "breaks at row 3")


def test_a_chain_that_was_computed_anew_shows_by_the_receipts(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    with closing(_connect(ledger)) as connection:
        first, second = read_content(connection).rows
    cheap = replace(first, sigma=1000.0)
    cheap = replace(cheap, hash=cheap.chain_hash())
    after = replace(second, previous=cheap.hash)
    for row in (cheap, replace(after, hash=after.chain_hash())):
        tamper(
            ledger, "UPDATE rounds SET sigma = ?, previous = ?, hash = ? WHERE sequence = ?",
            values=(row.sigma, row.previous, row.hash, row.sequence),
        )  # fmt: skip
    assert_refused_as_broken(tmp_path, "altered")


def test_whether_a_round_was_confirmed_may_be_edited_and_changes_nothing(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    tamper(ledger, "UPDATE rounds SET state = 'reserved'")
    assert ledger.verify() == 2
    with pytest.raises(Refusal, match="budget is"):
        ledger.reserve(entry(3), units_of("alpha"), budget_for(2))


def _damage_first(lines: list[bytes]) -> list[bytes]:
    return [lines[0].replace(b'"num_bytes": 0', b'"num_bytes": 1'), *lines[1:]]


@pytest.mark.parametrize("damage", [_damage_first, lambda lines: lines[1:], lambda _: [b"half\n"]])
def test_damaged_receipts_vouch_for_nothing(
    tmp_path: Path, damage: Callable[[list[bytes]], list[bytes]]
) -> None:
    ledger_with(tmp_path, 3)
    receipts = tmp_path / "receipts.jsonl"
    receipts.write_bytes(b"".join(damage(receipts.read_bytes().splitlines(keepends=True))))
    assert_refused_as_broken(tmp_path, "receipts are damaged")


def test_a_half_written_receipt_is_no_damage(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    with (tmp_path / "receipts.jsonl").open("ab") as stream:
        stream.write(b'{"digest": "ab')
    assert ledger.reserve(entry(3), units_of("alpha"), budget_for(3)).sequence == 3
    assert ledger.verify() == 3


def test_missing_receipts_are_told_and_what_was_spent_still_counts(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 2)
    (tmp_path / "receipts.jsonl").unlink()
    with pytest.raises(FoedusError, match="none for 2"):
        ledger.verify()
    with pytest.raises(Refusal, match="budget is"):
        ledger.reserve(entry(3), units_of("alpha"), budget_for(2))


def test_a_reservation_that_is_gone_cannot_be_confirmed(tmp_path: Path) -> None:
    ledger = open_ledger(tmp_path)
    reservation = ledger.reserve(entry(), units_of("alpha"))
    tamper(ledger, "DELETE FROM rounds")
    with pytest.raises(Refusal, match="no row 1 to confirm"):
        ledger.confirm(reservation)


def test_a_disk_that_refuses_the_receipt_stops_the_round(tmp_path: Path) -> None:
    ledger = ledger_with(tmp_path, 1)
    (tmp_path / "receipts.jsonl").unlink()
    (tmp_path / "receipts.jsonl").mkdir()
    with pytest.raises((OSError, Refusal)):
        ledger.reserve(entry(2), units_of("alpha"))


def _connect(ledger: Ledger) -> sqlite3.Connection:
    return sqlite3.connect(ledger.path)
