"""The site's privacy ledger: what was spent on which data, over all rounds, runs and restarts.

A round's cost is reserved before training and confirmed after it; a crash in between counts as
spent. SQLite with a rollback journal and synchronous=EXTRA: a committed row outlives a power cut,
and one file is the whole ledger, so a plain copy of it is a backup. Every reservation leaves its
head in the receipts before training starts: a ledger that lost a row is refused (fails closed).
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from client.privacy.accounting import Cost
from client.privacy.composition import Budget, DataSetAccount, accounts, charge, worst_epsilon
from client.privacy.ledger_rows import (
    CONFIRMED,
    LedgerContent,
    LedgerRow,
    broken,
    create_tables,
    insert,
    problem_in,
    read_content,
    unusable,
)
from client.privacy.units import DataUnits
from client.receipts import ReceiptLog
from protocol.chained_lines import GENESIS
from protocol.errors import FoedusError, Refusal
from protocol.reasons import RefusalReason

# A reservation waits for others, whose epsilon may take seconds to compute.
_LOCK_SECONDS = 120.0


@dataclass(frozen=True)
class RoundCost:
    """What one round will cost. unit: "matter", "example", or "none" where no noise is added.

    delta, target_epsilon: what the run asked for; kept for the reader.
    """

    run_id: str
    round: int
    unit: str
    cost: Cost
    delta: float
    target_epsilon: float = 0.0


@dataclass(frozen=True)
class Reservation:
    """A row in the ledger. epsilon: of the worst unit with this round; None without a budget."""

    sequence: int
    head: str
    epsilon: float | None = None


class Ledger:
    """One site's ledger. Any number of processes may use the same file at once."""

    def __init__(self, path: Path, receipts: ReceiptLog) -> None:
        self.path = path
        self._receipts = receipts

    def reserve(
        self, entry: RoundCost, units: DataUnits, budget: Budget | None = None
    ) -> Reservation:
        """Charge a round before it starts. A repeated request is charged again: its noise is new.

        Errors: Refusal(BUDGET_SPENT) where it would take a unit over the budget, Refusal(POLICY)
        where the budget's unit is not bounded by it, Refusal(LEDGER_BROKEN) where the ledger cannot
        be relied on; OSError where the disk refuses the receipt. In each case nothing may be
        trained.
        """
        _check_entry(entry, units, budget)
        with self._transaction(create=True) as connection:
            content = self._checked(read_content(connection))
            epsilon = _affordable(content, entry, units, budget) if budget else None
            row = _next_row(content, entry, units)
            insert(connection, row, units)
        self._receipts.append(
            kind="ledger",
            run_id=entry.run_id,
            round_=entry.round,
            status=row.state,
            digest=row.hash,
            num_bytes=0,
            ledger=row.head,
        )
        return Reservation(row.sequence, row.head, epsilon)

    def confirm(self, reservation: Reservation) -> None:
        """Note that the round was trained. What it costs does not change by that.

        Errors: Refusal(LEDGER_BROKEN) where the row is not there.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE rounds SET state = ? WHERE sequence = ? AND hash = ?",
                (CONFIRMED, reservation.sequence, reservation.head.partition(":")[2]),
            )
            if changed.rowcount != 1:
                raise broken(self.path, f"got no row {reservation.sequence} to confirm")

    def head(self) -> str:
        """The newest row as "sequence:hash"; empty where there is none or the ledger is broken.

        A head in a receipt vouches for the ledger, so a broken one must not get there.
        """
        try:
            return self._content().head
        except (Refusal, OSError):
            return ""

    def account(self, budget: Budget) -> tuple[DataSetAccount, ...]:
        """What was spent and is left for each data set. Errors: as `verify`."""
        return accounts(self._content(), budget)

    def verify(self) -> int:
        """The number of rows.

        Errors: Refusal(LEDGER_BROKEN) where anything does not fit; FoedusError where receipts that
        were once written are gone, which leaves the ledger right but unguarded.
        """
        content = self._content()
        heads = self._receipts.ledger_heads()
        gone = [
            str(r.sequence) for r in content.rows if r.state == CONFIRMED and r.head not in heads
        ]
        if gone:
            raise FoedusError(
                f"Expected in {self._receipts.path} a receipt for each confirmed round of the "
                f"ledger, got none for {len(gone)} (first: {gone[0]}): receipts were cut off or "
                "replaced. Restore them, or nothing shows if the ledger is put back."
            )
        return len(content.rows)

    def _content(self) -> LedgerContent:
        if not self.path.exists():
            return self._checked(LedgerContent([], {}))
        with self._reading() as connection:
            return self._checked(read_content(connection))

    def _checked(self, content: LedgerContent) -> LedgerContent:
        try:
            heads = self._receipts.ledger_heads()
        except FoedusError as error:
            raise broken(self.path, f"but the receipts are damaged: {error}") from error
        try:
            problem = problem_in(content, heads)
        except (TypeError, ValueError):
            problem = "got values of another type"
        if problem:
            raise broken(self.path, problem)
        return content

    @contextmanager
    def _transaction(self, create: bool = False) -> Iterator[sqlite3.Connection]:
        """All or nothing, alone. create: where there is no file yet and none is missing."""
        if create and not self.path.exists():
            self._checked(LedgerContent([], {}))
            self.path.parent.mkdir(parents=True, exist_ok=True)
        elif not self.path.exists():
            raise broken(self.path, "got no file")
        try:
            # Before SQLite opens it, so that the file is never readable by others.
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600))
            os.chmod(self.path, 0o600)
            with closing(self._connected()) as connection:
                connection.execute("PRAGMA synchronous = EXTRA")
                connection.execute("BEGIN IMMEDIATE")
                create_tables(connection)
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """One state of the file, which no reservation changes meanwhile; several may read at once.

        Nothing is written, but that SQLite undoes what a crash left of a change half made.
        """
        try:
            with closing(self._connected()) as connection:
                connection.execute("BEGIN")
                yield connection
        except sqlite3.Error as error:
            raise unusable(self.path, error) from error

    def _connected(self) -> sqlite3.Connection:
        uri = f"{self.path.absolute().as_uri()}?mode=rw"
        return sqlite3.connect(uri, uri=True, timeout=_LOCK_SECONDS, isolation_level=None)


def _check_entry(entry: RoundCost, units: DataUnits, budget: Budget | None) -> None:
    if entry.unit != units.unit:
        raise FoedusError(f"Expected units by {entry.unit}, got units by {units.unit}.")
    if not units.records:
        by_matter = entry.unit == "matter"
        raise Refusal(
            RefusalReason.NO_MATTERS if by_matter else RefusalReason.NO_DATA,
            f"Expected {'examples with a matter' if by_matter else 'examples'} to charge round "
            f"{entry.round} to, got none.",
        )
    if budget and charge(entry.unit, Cost(1.0, 1.0, 1), budget.unit).sigma == 0:
        raise Refusal(
            RefusalReason.POLICY,
            f"Expected a round whose unit is the {budget.unit}, as this site's budget is, got unit "
            f"{entry.unit}: it bounds nothing for a {budget.unit}. Run with privacy.mode=dp and "
            f"privacy.unit={budget.unit}.",
        )


def _affordable(
    content: LedgerContent, entry: RoundCost, units: DataUnits, budget: Budget
) -> float:
    """Epsilon with this round. Errors: Refusal(BUDGET_SPENT) over the budget or without a bound."""
    asked = charge(entry.unit, entry.cost, budget.unit)
    try:
        before = worst_epsilon(content, units.content, budget)
        after = worst_epsilon(content, units.content, budget, [asked])
    except FoedusError as error:
        raise Refusal(RefusalReason.BUDGET_SPENT, f"Unaffordable: {error}") from error
    if after <= budget.epsilon:
        return after
    text = (
        f"Round {entry.round} would bring a {budget.unit} of data set {units.digest[:12]} from "
        f"epsilon {before:.3f} to {after:.3f} at delta {budget.delta:g}, and the budget is "
        f"{budget.epsilon:g}."
    )
    if before == float("inf"):
        text += (
            f" Earlier rounds on this data bound nothing for a {budget.unit}: they were trained "
            "without noise, or by example where the budget speaks of matters."
        )
    raise Refusal(
        RefusalReason.BUDGET_SPENT, f"{text} See `foedus client ledger`; the round was not trained."
    )


def _next_row(content: LedgerContent, entry: RoundCost, units: DataUnits) -> LedgerRow:
    row = LedgerRow(
        sequence=len(content.rows) + 1,
        time=datetime.now(UTC).isoformat(timespec="milliseconds"),
        run_id=entry.run_id,
        round=entry.round,
        data_set=units.digest,
        unit=entry.unit,
        sampling_rate=float(entry.cost.sampling_rate),
        sigma=float(entry.cost.sigma),
        steps=int(entry.cost.steps),
        delta=float(entry.delta),
        target_epsilon=float(entry.target_epsilon),
        previous=content.rows[-1].hash if content.rows else GENESIS,
    )
    return replace(row, hash=row.chain_hash())
