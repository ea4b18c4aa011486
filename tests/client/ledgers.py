"""Ledgers for tests: small data sets, rounds whose cost is quick to compute, damage by hand."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from client.privacy.accounting import Cost, epsilon_spent
from client.privacy.composition import Budget
from client.privacy.ledger import Ledger, RoundCost
from client.privacy.units import DataUnits, data_units
from client.receipts import ReceiptLog
from models.examples import ClauseExample

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


def tamper(ledger: Ledger, *statements: str, values: Sequence[object] = ()) -> None:
    """Change the file as anyone with sqlite3 could."""
    with closing(sqlite3.connect(ledger.path)) as connection, connection:
        for statement in statements:
            connection.execute(statement, values)
