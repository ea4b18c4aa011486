"""The site's own record of everything that left it: hash-chained lines, see protocol.chained_lines.

Lines name digests and sizes only, never text. A cut at the end shows where somebody else knows the
newest line: the coordinator countersigns them, see client/countersigned.py.

A line of kind "ledger" is a round's entry in the privacy ledger, which stays here; see
client/privacy/ledger.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from protocol.append_only import AppendOnlyLines
from protocol.chained_lines import ChainedLine, ChainedLines, Position

LEDGER = "ledger"


@dataclass(frozen=True)
class Receipt:
    """One thing that left. digest: SHA-256 of its content; num_bytes: of tensors and numbers, both
    as protocol.reply_digest counts them.

    ledger: newest row of the privacy ledger then, "sequence:hash"; empty where there is none.
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


class ReceiptLog:
    """Append-only; writers take turns. Every append is on disk before the reply may leave."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines = ChainedLines(path, "receipt")

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
            }
        )
        return Receipt(**line.values)

    def ledger_heads(self) -> frozenset[str]:
        """Every row of the privacy ledger that a receipt vouches for.

        A half-written last line (crash) is cut off first: it was not promised to anyone yet.
        Errors: FoedusError as `verify`.
        """
        self._lines.heal()
        return frozenset(receipt.ledger for receipt in self.verify() if receipt.ledger)

    def verify(self) -> Iterator[Receipt]:
        """Every receipt in order, checking the chain.

        Errors: FoedusError naming the first line that does not follow from the one before.
        """
        return (receipt for receipt, _ in self.lines())

    def lines(
        self, after: Position | None = None, *, unfinished: bool = True
    ) -> Iterator[tuple[Receipt, ChainedLine]]:
        """Every receipt with its line, whose hash says all that came before it.

        Parameters and errors: ChainedLines.verify.
        """
        for line in self._lines.verify(after, unfinished=unfinished):
            yield self._receipt(line), line

    def _receipt(self, line: ChainedLine) -> Receipt:
        try:
            return Receipt(**line.values)
        except TypeError as error:
            raise self._lines.no_such_line(line.end.count) from error


def as_they_stand(path: Path) -> tuple[list[Receipt], list[str]]:
    """The receipts of a log whose chain is not checked, and which lines are none."""
    receipts: list[Receipt] = []
    problems: list[str] = []
    for number, line in enumerate(AppendOnlyLines(path).lines(unfinished=True), 1):
        try:
            receipts.append(Receipt(**json.loads(line)))
        except (ValueError, TypeError):
            problems.append(f"{path}, line {number} is no receipt.")
    return receipts, problems
