"""What the privacy ledger keeps on disk, and how a change to it shows.

Each row of `rounds` holds the SHA-256 of all that is fixed in it and of the row before, so a row
that was removed, altered or inserted breaks the chain; the rows name the digest of their data set,
which covers its whole content. Only a row's state, reserved or confirmed, may change; both count.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from client.privacy.accounting import Cost
from client.privacy.units import DataUnits, dataset_digest, first_dataset_digest
from protocol.chained_lines import GENESIS
from protocol.errors import Refusal
from protocol.reasons import RefusalReason

RESERVED, CONFIRMED = "reserved", "confirmed"

_SCHEMA_VERSION = 2
# The same tables. Since then an example is known by its contract's own words alone.
_FIRST_VERSION = 1
_SCHEMA = """
CREATE TABLE data_sets (digest TEXT PRIMARY KEY, content BLOB NOT NULL);
CREATE TABLE rounds (
    sequence INTEGER PRIMARY KEY, time TEXT NOT NULL, run_id TEXT NOT NULL, round INTEGER NOT NULL,
    data_set TEXT NOT NULL REFERENCES data_sets (digest), unit TEXT NOT NULL,
    sampling_rate REAL NOT NULL, sigma REAL NOT NULL, steps INTEGER NOT NULL, delta REAL NOT NULL,
    target_epsilon REAL NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL CHECK (state IN ('reserved', 'confirmed'))
);
"""

# What to do where SQLite cannot go on and the ledger is as good as before, by kind of error.
_PERMISSIONS = "Let this account read and write the file and its folder."
_UNTOUCHED = {
    sqlite3.SQLITE_FULL: "Make room on the disk.",
    sqlite3.SQLITE_BUSY: "Another process has held it for minutes: see which has the file open.",
    sqlite3.SQLITE_READONLY: _PERMISSIONS,
    sqlite3.SQLITE_CANTOPEN: _PERMISSIONS,
}


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """One round's cost. time: UTC, for the reader; nothing is decided by it."""

    sequence: int
    time: str
    run_id: str
    round: int
    data_set: str
    unit: str
    sampling_rate: float
    sigma: float
    steps: int
    delta: float
    target_epsilon: float
    previous: str
    hash: str = ""
    state: str = RESERVED

    @property
    def cost(self) -> Cost:
        """What the accountant needs of it."""
        return Cost(self.sampling_rate, self.sigma, self.steps)

    @property
    def head(self) -> str:
        """What names this row, and through the chain all before it."""
        return f"{self.sequence}:{self.hash}"

    def chain_hash(self) -> str:
        """SHA-256 over everything that may never change."""
        fixed = [getattr(self, name) for name in _FIXED]
        return hashlib.sha256(json.dumps(["foedus ledger row 1", *fixed]).encode()).hexdigest()


_COLUMNS = LedgerRow.__slots__
_FIXED = tuple(name for name in _COLUMNS if name not in ("hash", "state"))


@dataclass(frozen=True)
class LedgerContent:
    """Everything in a ledger: rows in order, content of data sets by digest; no name, no text."""

    rows: Sequence[LedgerRow]
    data_sets: Mapping[str, bytes]

    @property
    def head(self) -> str:
        """The newest row's head; empty where there is no row."""
        return self.rows[-1].head if self.rows else ""


def broken(path: object, what: str) -> Refusal:
    """The refusal of a ledger that cannot be relied on."""
    return Refusal(
        RefusalReason.LEDGER_BROKEN,
        f"Expected in {path} the privacy ledger that the receipts vouch for, {what}. No private "
        "data is used until the newest copy is restored. Never delete or edit the ledger: without "
        "it nobody knows what was spent. If no copy is left, see docs/privacy.md.",
    )


def unusable(path: object, error: sqlite3.Error) -> Refusal:
    """The refusal of a ledger that SQLite does not read or write, by why it does not."""
    # The low byte is the kind of error, the rest says more of it.
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
    advice = _UNTOUCHED.get(kind)
    if advice is None:
        return broken(path, f"got a file that SQLite refuses ({error})")
    return Refusal(
        RefusalReason.LEDGER_BROKEN,
        f"Expected to use the privacy ledger {path}, got: {error}. {advice} The ledger itself is "
        "as it was; until then no private data is used.",
    )


def create_tables(connection: sqlite3.Connection) -> None:
    """Make an empty file a ledger, and one of the first version one of today's.

    Errors: Refusal where it is one of another version.
    """
    version = _version_of(connection)
    if version == _SCHEMA_VERSION:
        return
    if not version:
        for statement in _SCHEMA.split(";")[:-1]:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _version_of(connection: sqlite3.Connection) -> int:
    """0 for an empty file. Errors: Refusal where it is a ledger of an unknown version."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version in (_FIRST_VERSION, _SCHEMA_VERSION):
        return int(version)
    if version or connection.execute("SELECT 1 FROM sqlite_master").fetchone():
        raise broken("its file", f"got version {version} where {_SCHEMA_VERSION} is understood")
    return 0


def read_content(connection: sqlite3.Connection) -> LedgerContent:
    """All rows and data sets as they stand, unchecked; none in an empty file.

    Errors: Refusal where it is a ledger of another version.
    """
    if not _version_of(connection):
        return LedgerContent([], {})
    names = ", ".join(_COLUMNS)
    rows = connection.execute(f"SELECT {names} FROM rounds ORDER BY sequence").fetchall()
    return LedgerContent(
        [LedgerRow(*row) for row in rows],
        dict(connection.execute("SELECT digest, content FROM data_sets").fetchall()),
    )


def insert(connection: sqlite3.Connection, row: LedgerRow, units: DataUnits) -> None:
    """Write a row and, where it is new, its data set."""
    connection.execute(
        "INSERT OR IGNORE INTO data_sets VALUES (?, ?)", (units.digest, units.content)
    )
    values = [getattr(row, name) for name in _COLUMNS]
    marks = ", ".join("?" * len(values))
    connection.execute(f"INSERT INTO rounds ({', '.join(_COLUMNS)}) VALUES ({marks})", values)


def problem_in(content: LedgerContent, heads: Collection[str]) -> str:
    """What is wrong with a ledger, or nothing. heads: all that the receipts name.

    More rows than the receipts name are in order: a crash may come between row and receipt.
    """
    previous = GENESIS
    for number, row in enumerate(content.rows, 1):
        if row.sequence != number or row.previous != previous or row.hash != row.chain_hash():
            return f"got a chain that breaks at row {number}: a row was removed, altered or added"
        if row.data_set not in content.data_sets:
            return f"got no data set for row {number}"
        previous = row.hash
    for digest, members in content.data_sets.items():
        known_as = (dataset_digest(members), first_dataset_digest(members))
        if digest not in known_as or len(members) % 64:
            return f"got another content of data set {digest[:12]}"
    missing = set(heads) - {row.head for row in content.rows}
    if missing:
        newest = max(missing, key=lambda head: int(head.partition(":")[0] or 0))
        return (
            f"got one of {len(content.rows)} rows without row {newest.partition(':')[0]}: it was "
            "deleted, replaced by an older copy, or altered"
        )
    return ""
