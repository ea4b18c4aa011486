"""Ledgers for tests: small data sets, rounds whose cost is quick to compute, damage by hand."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from client.privacy.accounting import Cost, epsilon_spent
from client.privacy.composition import Budget
from client.privacy.ledger import Ledger, RoundCost
from client.privacy.ledger_rows import create_tables
from client.privacy.units import DataUnits, data_units, matter_digest
from client.receipts import ReceiptLog
from models.examples import ClauseExample
from protocol.chained_lines import GENESIS

DELTA = 1e-5
RUN_ID = "0123456789abcdef" * 2
# Without sampling the accountant is fast.
COST = Cost(1.0, 8.0, 4)


def epsilon_of(rounds: int, cost: Cost = COST) -> float:
    """What so many rounds come to."""
    return epsilon_spent([cost] * rounds, DELTA)


def budget_for(rounds: int, unit: str = "matter") -> Budget:
    """Just enough for so many rounds."""
    return Budget(unit, epsilon_of(rounds), DELTA)


def clauses(*matters: str | None, each: int = 3) -> list[ClauseExample]:
    """Some clauses of each matter, no two alike."""
    return [
        ClauseExample(f"clause {number} of {matter}", "payment", matter)
        for matter in matters
        for number in range(each)
    ]


def units_of(*matters: str | None, unit: str = "matter") -> DataUnits:
    """The units of `clauses`."""
    return data_units(clauses(*matters), unit)


def entry(round_: int = 1, unit: str = "matter", cost: Cost = COST) -> RoundCost:
    """One round of the run."""
    return RoundCost(RUN_ID, round_, unit, cost, DELTA, target_epsilon=8.0)


def open_ledger(folder: Path) -> Ledger:
    """The ledger of a state folder, as another process would open it."""
    return Ledger(folder / "privacy.sqlite3", ReceiptLog(folder / "receipts.jsonl"))


def ledger_with(folder: Path, rounds: int, units: DataUnits | None = None) -> Ledger:
    """A ledger with confirmed rounds."""
    ledger = open_ledger(folder)
    for round_ in range(1, rounds + 1):
        ledger.confirm(ledger.reserve(entry(round_), units or units_of("alpha", "beta")))
    return ledger


def first_version_ledger(folder: Path, unit: str) -> None:
    """A ledger as the first version left it: one round of one example of one matter."""
    content = hashlib.sha256(b"an example with its label").digest() + matter_digest("alpha")
    data_set = hashlib.sha256(b"foedus data set 1\n" + content).hexdigest()
    cost = [COST.sampling_rate, COST.sigma, COST.steps, DELTA, 8.0]
    fixed = [1, "2026-01-01T00:00:00.000+00:00", RUN_ID, 1, data_set, unit, *cost, GENESIS]
    row_hash = hashlib.sha256(json.dumps(["foedus ledger row 1", *fixed]).encode()).hexdigest()
    ReceiptLog(folder / "receipts.jsonl").append(
        kind="ledger", run_id=RUN_ID, round_=1, status="reserved", digest=row_hash, num_bytes=0,
        ledger=f"1:{row_hash}",
    )  # fmt: skip
    with closing(sqlite3.connect(folder / "privacy.sqlite3")) as connection, connection:
        create_tables(connection)
        connection.execute("INSERT INTO data_sets VALUES (?, ?)", (data_set, content))
        values = [*fixed, row_hash, "reserved"]
        connection.execute(f"INSERT INTO rounds VALUES ({', '.join('?' * len(values))})", values)
        connection.execute("PRAGMA user_version = 1")


def tamper(ledger: Ledger, *statements: str, values: Sequence[object] = ()) -> None:
    """Change the file as anyone with sqlite3 could."""
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        for statement in statements:
            connection.execute(statement, values)
