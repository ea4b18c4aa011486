"""The site's own record of everything that left it: hash-chained lines, see protocol.chained_lines.

Lines name digests and sizes only, never text. A cut at the end shows where somebody else knows the
newest line: the coordinator countersigns them, see client/countersigned.py.

A line of kind "ledger" is a round's entry in the privacy ledger, which stays here; see
client/privacy/ledger.py.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from protocol.append_only import AppendOnlyLines
from protocol.chained_lines import GENESIS, ChainedLine, ChainedLines, Position

LEDGER = "ledger"
_SALT_BYTES = 16


@dataclass(frozen=True)
class Receipt:
    """One thing that left. digest: SHA-256 of its content; num_bytes: of tensors and numbers, both
    as protocol.reply_facts counts them.

    ledger: newest row of the privacy ledger then, "sequence:hash"; empty where there is none.
    salt: random, hex; empty in lines of earlier releases. The coordinator gets the line's hash, and
    the ledger's covers the data set: without it, who guesses that could see whether he is right.
    """

    sequence: int
    time: str
    kind: str
    run_id: str
    round: int
    status: str
    digest: str
    num_bytes: int
    previous: str
    ledger: str = ""
    salt: str = ""


@dataclass(frozen=True)
class _Whole:
    """A log all of whose lines fitted. look: see _look_of; last: hash of the newest line."""

    look: tuple[int, ...]
    last: str
    heads: frozenset[str]


class ReceiptLog:
    """Append-only; writers take turns. Every append is on disk before the reply may leave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = ChainedLines(path, "receipt")
        self._whole: _Whole | None = None

    def append(
        self,
        *,
        kind: str,
        run_id: str,
        round_: int,
        status: str,
        digest: str,
        num_bytes: int,
        ledger: str = "",
    ) -> Receipt:
        """Write the next receipt.

        Errors: OSError where the disk refuses, FoedusError where the last line is damaged: then
        nothing leaves.
        """
        whole = self._whole if self._is_as_it_was() else None
        line = self._lines.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
                "kind": kind,
                "run_id": run_id,
                "round": round_,
                "status": status,
                "digest": digest,
                "num_bytes": num_bytes,
                "ledger": ledger,
                "salt": secrets.token_hex(_SALT_BYTES),
            }
        )
        receipt = Receipt(**line.values)
        self._take_up(receipt, line, whole)
        return receipt

    def ledger_heads(self) -> frozenset[str]:
        """Every row of the privacy ledger that a receipt vouches for.

        The log is read once, and again where anything but this object has touched the file since.
        Errors: FoedusError as `verify`.
        """
        if self._whole is None or not self._is_as_it_was():
            # Looked at before it is read: what is added meanwhile shows the next time.
            look, last, heads = _look_of(self.path), GENESIS, set()
            for receipt, line in self.lines():
                last = line.hash
                heads.add(receipt.ledger)
            self._whole = _Whole(look, last, frozenset(heads - {""}))
        return self._whole.heads

    def verify(self) -> Iterator[Receipt]:
        """Every receipt in order, checking the chain. Half a line at the end is left out: somebody
        is writing it, or a crash left it, and it was promised to nobody.

        Errors: FoedusError naming the first line that does not follow from the one before.
        """
        return (receipt for receipt, _ in self.lines())

    def lines(self, after: Position | None = None) -> Iterator[tuple[Receipt, ChainedLine]]:
        """As `verify`, each with its line, whose hash says all that came before it.

        after: go on from here. Errors: as `verify`.
        """
        for line in self._lines.verify(after):
            yield self._receipt(line), line

    def _receipt(self, line: ChainedLine) -> Receipt:
        try:
            return Receipt(**line.values)
        except TypeError as error:
            raise self._lines.no_such_line(line.end.count) from error

    def _is_as_it_was(self) -> bool:
        return self._whole is not None and self._whole.look == _look_of(self.path)

    def _take_up(self, receipt: Receipt, line: ChainedLine, before: _Whole | None) -> None:
        """Go on from what was whole, unless another process wrote before or after this line."""
        look = _look_of(self.path)
        if before is None or receipt.previous != before.last or look[:1] != (line.end.offset,):
            return
        heads = before.heads | {receipt.ledger} if receipt.ledger else before.heads
        self._whole = _Whole(look, line.hash, heads)


def _look_of(path: Path) -> tuple[int, ...]:
    """By what a change of the file shows without reading it, its size first; empty where there is
    none. Nobody can set the time of change (ctime) back without the machine's clock."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ()
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino


def as_they_stand(path: Path) -> tuple[list[Receipt], list[str]]:
    """The receipts of a log whose chain is not checked, and which lines are none. Half a line at
    the end is left out, as by ReceiptLog.verify."""
    receipts: list[Receipt] = []
    problems: list[str] = []
    for number, line in enumerate(AppendOnlyLines(path).lines(), 1):
        try:
            receipts.append(Receipt(**json.loads(line)))
        except (ValueError, TypeError):
            problems.append(f"{path}, line {number} is no receipt.")
    return receipts, problems
